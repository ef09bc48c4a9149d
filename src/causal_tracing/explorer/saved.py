"""The explorer without a model: saved traces and run folders, to be read. Nothing heavy is loaded."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from causal_tracing.errors import InvalidOption
from causal_tracing.experiments.open_trace import open_trace
from causal_tracing.explorer.asked import Asked, Deeper
from causal_tracing.explorer.jobs import Job, Worker
from causal_tracing.explorer.views import whole_view
from causal_tracing.report.page.text import visible

WHY = (
    "Saved traces are open, without a model: nothing can be traced here. Start `causal-tracing explore --model NAME` "
    "to trace what you type."
)


class Saved:
    """A session of folders that were saved."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.worker = Worker()
        self.out = Path()
        for folder in folders:
            self.worker.keep(_opened(folder))

    def start(self) -> None:
        """Begins to work."""
        self.worker.start()

    def about(self) -> dict[str, Any]:
        """That nothing can be traced, and why; what is open."""
        return {"live": False, "why": WHY, "example": next(iter(self.worker.jobs), None), "deeper": {}}

    def tokens(self, asked: Asked) -> Mapping[str, Any]:
        """Raises InvalidOption."""
        raise InvalidOption(WHY)

    def preview(self, asked: Asked) -> Callable[[], Mapping[str, Any]]:
        """Raises InvalidOption."""
        raise InvalidOption(WHY)

    def estimate(self, asked: Asked) -> Callable[[], Mapping[str, Any]]:
        """Raises InvalidOption."""
        raise InvalidOption(WHY)

    def trace(self, asked: Asked) -> Job:
        """Raises InvalidOption."""
        raise InvalidOption(WHY)

    def deeper(self, job: Job, asked: Deeper) -> Job:
        """Raises InvalidOption."""
        raise InvalidOption(WHY)

    def save(self, job: Job, name: str) -> str:
        """Raises InvalidOption: it is saved already."""
        raise InvalidOption("This trace is saved already.")


def _opened(folder: Path) -> Job:
    """A job that has ended, of a folder. Raises InvalidResults."""
    trace = open_trace(folder)
    count = trace.measurements.pairs.sizes["pair"]
    named = visible(folder.resolve().name)
    job = Job(work=lambda _: None, about={"label": named + (f" ({count} pairs)" if count > 1 else "")}, key=str(folder))
    job.tell("view", **whole_view(trace.measurements), command=trace.provenance.get("command"), python=None)
    job.tell("done", **{name: trace.provenance.get(name) for name in ("seconds", "worlds", "worlds_skipped", "engine")})
    job.result, job.state = trace, "done"
    return job
