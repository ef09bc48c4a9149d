"""Work that the page asked for, and the one thread that does it.

1. A job keeps what was told of it, in order: whoever listens later, or again, hears all of it.
2. One thread works, for there is one model: jobs in the order in which they came, a newer one of a tab in the place of
   its older one, which stops between two layers.
3. Errands are short (a preview): they are run before jobs, and between two batches of the one that is being run.
4. While nothing is asked for, it does what will be wanted (`spare`), a step at a time.
"""

import json
import secrets
import sys
import threading
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from causal_tracing.errors import CausalTracingError
from causal_tracing.report.document import jsonable

MOST_WAITING = 8
MOST_KEPT = 24  # jobs whose results stay
Work = Callable[["Job"], None]


class Stopped(Exception):
    """The work is not wanted any more."""


class Full(Exception):
    """Too many jobs wait already."""


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """Work, what was told of it so far, and what came of it (`result`). `about` says what was asked, to people."""

    work: Work
    about: Mapping[str, Any]
    tab: str = ""
    lane: str = "trace"  # in each lane a tab has one live job
    key: str = ""  # equal jobs have equal keys
    yields: bool = False  # to whatever is asked for: nobody asked for it
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    events: list[tuple[str, str]] = field(default_factory=list)
    state: str = "waiting"
    result: Any = None
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def ended(self) -> bool:
        """Whether nothing more will be told."""
        return self.state in ("done", "cancelled", "failed")

    def tell(self, kind: str, **data: Any) -> None:
        """Keeps an event, as JSON."""
        event = {"v": 1, **data}
        try:  # numbers to draw are plain already: a map has tens of thousands
            text = json.dumps(event, allow_nan=False)
        except (TypeError, ValueError):
            text = json.dumps(jsonable(event), allow_nan=False)
        self.events.append((kind, text))

    def stop(self) -> None:
        """Asks the work to end."""
        self._stop.set()

    def check(self) -> None:
        """Raises Stopped where the work is not wanted any more."""
        if self._stop.is_set():
            raise Stopped

    def run(self) -> None:
        """Does the work; whatever happens is told."""
        try:
            self.check()
            self.state = "running"
            self.tell("started")
            self.work(self)
            state = "done"
        except Stopped:
            self.tell("cancelled")
            state = "cancelled"
        except CausalTracingError as error:
            self.tell("error", **said(error))
            state = "failed"
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            self.tell("error", **fault(error))
            state = "failed"
        self.state = state  # after the last event: who sees it ended has all of it


def said(error: CausalTracingError) -> dict[str, Any]:
    """An error as the page is told it; `field` is where on the page it belongs, if that is known."""
    notes = getattr(error, "__notes__", [])
    return {
        "type": type(error).__name__,
        "message": str(error),
        "exit": error.exit_code,
        "field": notes[0] if notes else None,
    }


def fault(error: Exception) -> dict[str, Any]:
    """An error that should not be, as the page is told it."""
    message = (
        f"This is a fault of the explorer ({type(error).__name__}). What led to it stands in the terminal; please "
        "report it. Another prompt, or a new start, may work."
    )
    return {"type": "Fault", "message": message, "exit": 1, "field": None}


class Worker:
    """The thread that does the jobs, and the jobs that it did. `spare` are steps for when there is none."""

    def __init__(self, spare: Iterator[None] | None = None) -> None:
        self.jobs: OrderedDict[str, Job] = OrderedDict()
        self._waiting: deque[Job] = deque()
        self._errands: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._spare = spare
        self._running: Job | None = None
        self._closing = False
        self._ready = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="causal-tracing explore", daemon=True)

    def start(self) -> None:
        """Begins to work."""
        self._thread.start()

    def submit(self, job: Job) -> Job:
        """The job in line, or an equal one that is finished; one under way belongs to its tab. Raises Full."""
        with self._ready:
            done = (each for each in self.jobs.values() if each.state == "done" and job.key)
            # Answered again from the shelf, though the tab's work under way ends all the same.
            known = next((each for each in done if each.key == job.key), None)
            for other in self._live(job.tab, job.lane):
                other.stop()
            self._drop_stopped()
            if known is not None:
                self.jobs.move_to_end(known.id)
                return known
            if self._closing or len(self._waiting) >= MOST_WAITING:
                raise Full
            job.tell("queued", ahead=self.ahead(job))
            self.keep(job)
            self._waiting.append(job)
            self._ready.notify_all()
        return job

    def keep(self, job: Job) -> None:
        """Puts a job on the shelf; the oldest that ended makes room."""
        self.jobs[job.id] = job
        old = [each for each in self.jobs.values() if each.ended]
        for each in old[: max(0, len(self.jobs) - MOST_KEPT)]:
            del self.jobs[each.id]

    def ahead(self, job: Job) -> int:
        """How many jobs come before this one."""
        before = [each for each in self._waiting if each is not job]
        return len(before) + (self._running is not None and self._running is not job)

    def stop(self, job: Job) -> None:
        """Ends a job, whether it runs or waits."""
        with self._ready:
            job.stop()
            self._drop_stopped()

    def errand(self, work: Callable[[], Any]) -> Future[Any]:
        """A short work's result, as soon as the thread can look at it."""
        future: Future[Any] = Future()
        with self._ready:
            self._errands.append((work, future))
            self._ready.notify_all()
        return future

    def between(self) -> None:
        """Runs the errands that wait: called by the work, where the model is at rest."""
        while self._errands:
            work, future = self._errands.popleft()
            # Whoever asked has gone meanwhile.
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)

    def halt(self) -> None:
        """Stops every job and every errand, and takes no more."""
        with self._ready:
            self._closing = True
            for job in (*self._waiting, *([self._running] if self._running else [])):
                job.stop()
            for _, future in self._errands:
                future.cancel()
            self._drop_stopped()
            self._ready.notify_all()

    def close(self) -> None:
        """Halts and waits for the thread: what still computes when Python ends would abort it."""
        self.halt()
        if self._thread.is_alive():
            self._thread.join()

    def _live(self, tab: str, lane: str) -> list[Job]:
        there = [*self._waiting, *([self._running] if self._running else [])]
        lanes = (lane,) if lane != "trace" else ("trace", "deeper")  # what was opened of a trace ends with it
        return [each for each in there if each.yields or (tab and each.tab == tab and each.lane in lanes)]

    def _drop_stopped(self) -> None:
        """Jobs that are stopped before they began are told so at once."""
        for job in [each for each in self._waiting if each._stop.is_set()]:
            self._waiting.remove(job)
            job.tell("cancelled")
            job.state = "cancelled"

    def _run(self) -> None:
        while True:
            with self._ready:
                self._ready.wait_for(lambda: self._closing or self._errands or self._waiting or self._spare)
                if self._closing:
                    return
                # Errands first, which somebody waits for while typing.
                job = self._running = self._waiting.popleft() if self._waiting and not self._errands else None
            if job is not None:
                job.run()
                with self._ready:
                    self._running = None
            elif self._errands:
                self.between()
            elif self._spare:
                self._step(self._spare)

    def _step(self, spare: Iterator[None]) -> None:
        try:
            next(spare)
        except Exception:  # nobody asked for it: what is wrong is said to the one who does
            self._spare = None
