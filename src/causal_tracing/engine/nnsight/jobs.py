"""Which jobs a server was asked to do: who comes back after a kill collects them instead of asking again."""

import json
import os
from pathlib import Path

from causal_tracing.errors import MachineError


class JobFailed(MachineError):
    """A server ran a job, and it failed there: with the server's own words."""


class Jobs:
    """Jobs by what they were asked, in a file of a line each.

    Those of the file are taken once: the same question asked again in one process is another job, as a repeat must be.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self.left: dict[str, list[str]] = {}
        if file is not None and file.exists():
            for line in file.read_text().splitlines():
                noted = _read(line)
                if noted:
                    self.left.setdefault(noted["asked"], []).append(noted["job"])

    def take(self, asked: str) -> str | None:
        """A job of an earlier process that was asked this."""
        jobs = self.left.get(asked)
        # In the order in which they were asked, for repeats are the same question.
        return jobs.pop(0) if jobs else None

    def note(self, asked: str, job: str) -> None:
        """Notes a job; the line is on the disk when this returns."""
        if self.file is None:
            return
        with self.file.open("a") as stream:
            stream.write(json.dumps({"asked": asked, "job": job}) + "\n")
            stream.flush()
            os.fsync(stream.fileno())


def _read(line: str) -> dict[str, str] | None:
    """A line, or None where a kill cut it short: its job is asked for again."""
    try:
        return json.loads(line)
    except ValueError:
        return None
