"""What a trace would take, before it is run: worlds, token-layers, memory, and a guess at the time."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from causal_tracing.engine.backend import Backend, Cost
from causal_tracing.interventions.edits import World
from causal_tracing.patching.cells import cells
from causal_tracing.patching.job import Job
from causal_tracing.patching.lens import readouts
from causal_tracing.patching.metrics.scoring import asked_for


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceCost:
    """A token-layer is one token in one layer: a naive loop computes every one of every world.

    `memory` is in bytes above the loaded model; `seconds` is a guess from one timed forward.
    """

    engine: str
    worlds: int
    worlds_skipped: int
    token_layers: int
    naive_token_layers: int
    memory: int
    seconds: float

    def __str__(self) -> str:
        less = self.naive_token_layers / max(1, self.token_layers)
        return (
            f"engine        {self.engine}\n"
            f"worlds        {self.worlds:,}, of which {self.worlds_skipped:,} need not be run\n"
            f"token-layers  {self.token_layers:,}; a loop of whole forwards takes {self.naive_token_layers:,} "
            f"({less:.1f} times as many)\n"
            f"memory        about {self.memory / 2**20:,.0f} MB above the model\n"
            f"time          about {self.seconds:,.0f} s on this machine, guessed from one forward"
        )

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)


def cost_of_job(job: Job) -> TraceCost:
    """What a job would take on its backend, pair by pair. May run forwards to time one."""
    asked, costs = 0, []
    for number in range(len(job.pairs)):
        question = job.question(number)
        traced = [*question.unedited, *(cell.world for grid in job.grids for cell in cells(question, grid))]
        worlds = [one for world in traced for one in asked_for(question.pair, world)]
        worlds += [each.world for each in readouts(job, number)] if job.lens else []
        asked += len(worlds)
        costs.append(_cost(job.backend, worlds))
    return TraceCost(
        engine=job.backend.describe().engine,
        worlds=asked,
        worlds_skipped=asked - sum(cost.worlds_run for cost in costs),
        token_layers=sum(cost.token_layers for cost in costs),
        naive_token_layers=sum(cost.naive_token_layers for cost in costs),
        memory=max(cost.memory for cost in costs),
        seconds=sum(cost.seconds for cost in costs),
    )


def _cost(backend: Backend, worlds: Sequence[World]) -> Cost:
    cost = backend.describe(worlds).cost
    assert cost is not None, "a backend that is asked about worlds says what they take"
    return cost
