"""Who works on a run: this process alone, processes of its own, or Ray's actors; and on how many threads each."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from causal_tracing.experiments.chunks import Chunks
from causal_tracing.experiments.workers.dispatch import Measured, Task, Tell, dispatched
from causal_tracing.experiments.workers.processes import Processes
from causal_tracing.experiments.workers.work import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """How many workers, of which kind ("here", "processes", "ray"), and the threads of each in a new run."""

    kind: str
    count: int
    threads: int

    def measured(
        self, tasks: Sequence[Task], chunks: Chunks, work: Work | None, facts: Mapping[str, Any], tell: Tell | None
    ) -> Generator[Measured]:
        """The chunks as they are done. `chunks` are measured here; `work` and `facts` are for all other workers."""
        if work is None:
            return _here(tasks, chunks, tell)
        if self.kind == "processes":
            return dispatched(Processes(work), self.count, tasks, facts, tell)
        from causal_tracing.experiments.workers.on_ray import Actors

        return dispatched(Actors(work), self.count, tasks, facts, tell)


def crew_of(workers: int | str | None) -> Crew:
    """The crew that an option asks for: the threads of this process are shared out. Raises InvalidOption."""
    if workers is None:
        return Crew(kind="here", count=1, threads=torch.get_num_threads())
    if isinstance(workers, int):
        return Crew(kind="processes", count=workers, threads=max(1, torch.get_num_threads() // workers))
    from causal_tracing.experiments.workers.on_ray import joined

    count, threads = joined(int(workers.partition(":")[2] or 0))
    return Crew(kind="ray", count=count, threads=threads)


def _here(tasks: Sequence[Task], chunks: Chunks, tell: Tell | None) -> Generator[Measured]:
    """One after the other, in this process."""
    for task in tasks:
        # As a default, so that each function has the chunk of its own turn.
        def progress(done: int, total: int, chunk: int = task.chunk) -> None:
            if tell:
                tell({chunk: done / max(1, total)})

        rows, record = chunks.rows(task.pairs, progress if tell else None)
        yield Measured(chunk=task.chunk, rows=rows, record=record)
