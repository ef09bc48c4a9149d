"""Traces that a server runs (NDIF): submitted over plain HTTP, waited for, and collected even after a kill.

Which server is said by NDIF_HOST or nnsight's own configuration, and never by a file of this package: what it sends is
unpickled.
"""

import hashlib
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import zstandard
from nnsight.intervention.backends.display import StatusDisplay
from nnsight.intervention.backends.remote import RemoteBackend, RemoteError

from causal_tracing.engine.nnsight.asked import Asked, traced
from causal_tracing.engine.nnsight.jobs import JobFailed, Jobs
from causal_tracing.errors import MachineError

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0  # seconds between looks
WAIT = 6 * 3600.0  # seconds in which a job has its result
UNKNOWN = 120.0  # seconds in which the server must have heard of a job that it took
TRIES = 4  # at a connection that breaks off
PASSING = (429, 500, 502, 503, 504)  # of HTTP: the same may work in a moment
# What reading a result raises that is not whole: JSON and pydantic, zstd, torch.
DAMAGED = (ValueError, EOFError, RuntimeError, pickle.UnpicklingError, zstandard.ZstdError)
Given = TypeVar("Given")


class Ndif:
    """A server that has the model. `model` is nnsight's, without weights."""

    name = "nnsight (NDIF)"

    def __init__(self, model: Any) -> None:
        self.model = model
        self.key, self.env = model.to_model_key(), model._remoteable_get_env()
        self.jobs = Jobs()
        self.host = self._request().host

    def keep_jobs(self, file: Path) -> None:
        """Notes jobs in this file, and collects those that a killed process noted there."""
        self.jobs = Jobs(file)

    def answer(self, asked: Asked) -> Any:
        """What the function gives inside the trace. Raises MachineError."""
        # By server, model and environment too: another one's answer to the same words is another answer.
        question = hashlib.sha256(f"{self.host} {self.key} {self.env} {asked.key()}".encode()).hexdigest()
        earlier = self.jobs.take(question)
        found = earlier and self._collected(earlier, again=True)
        if found:
            return found["found"]
        request = self._request()
        self._said("take a job", lambda: traced(self.model, asked, backend=request))
        if request.job_id is None:
            raise MachineError(f"{self.host} took a job without giving it a number. Run the command again.")
        # Noted before it is waited for: from here on a kill loses nothing.
        self.jobs.note(question, request.job_id)
        return self._collected(request.job_id)["found"]

    def _request(self, job: str | None = None) -> RemoteBackend:
        request = RemoteBackend(self.key, env=self.env, blocking=False, job_id=job)
        request.display = StatusDisplay(enabled=False)
        return request

    def _collected(self, job: str, *, again: bool = False) -> Any:
        """What a job saved; None where one of an earlier process failed, or is not there any more."""
        request, begun, pause = self._request(job), time.monotonic(), FIRST_PAUSE
        while True:
            try:
                found = self._said(f"give the result of job {job}", request.poll, DAMAGED)
            except JobFailed:
                # An earlier process's job is no reason to fail: it is asked for anew.
                if again:
                    return None
                raise
            waited = time.monotonic() - begun
            if found is not None:
                return found
            if request.status is None and (again or waited > UNKNOWN):
                if again:
                    return None
                raise MachineError(f"{self.host} took job {job} and does not know it any more. Run the command again.")
            if waited > WAIT:
                raise MachineError(
                    f"Job {job} at {self.host} is still {request.status and request.status.value} after "
                    f"{waited / 60:.0f} minutes. Run the same command again: it waits for the same job."
                )
            time.sleep(pause)
            pause = min(LONGEST_PAUSE, 1.5 * pause)

    def _said(self, what: str, work: Callable[[], Given], broken: tuple[type[Exception], ...] = ()) -> Given:
        """What the work gives; what the server, or the way to it, says against it, as one error."""
        for left in reversed(range(TRIES)):
            try:
                return work()
            except (RemoteError, httpx.HTTPError) as error:
                if not left or not _passing(error):
                    ran = isinstance(error, RemoteError) and error.__cause__ is None  # it is said of the job itself
                    raise (JobFailed if ran else MachineError)(f"{self.host} does not {what}: {error}") from error
            except broken as error:
                if not left:
                    raise MachineError(
                        f"{self.host} does not {what} whole: what comes is cut off or damaged ({type(error).__name__}: "
                        f"{error}). Run the same command again."
                    ) from error
            time.sleep(FIRST_PAUSE)
        raise AssertionError("the last try returns or raises")


def _passing(error: BaseException) -> bool:
    """Whether the same may work in a moment: a connection that broke off, a server that is overloaded."""
    cause = error.__cause__ if isinstance(error, RemoteError) else error
    if isinstance(cause, httpx.HTTPStatusError):
        return cause.response.status_code in PASSING
    return isinstance(cause, httpx.TransportError)
