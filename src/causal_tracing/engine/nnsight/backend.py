"""The backend that asks nnsight: donors and worlds as rows of one batch, numbers made where the logits are."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from causal_tracing.engine.backend import (
    Collecting,
    Description,
    Differentiable,
    Evaluation,
    Linearised,
    Measure,
    Place,
    Portable,
    Progress,
    Recording,
)
from causal_tracing.engine.checks.bounds import TWO_FORWARDS
from causal_tracing.engine.hooks.forward import check_layers
from causal_tracing.engine.memory import alike
from causal_tracing.engine.nnsight import block
from causal_tracing.engine.nnsight.asked import Asked
from causal_tracing.engine.nnsight.plan import batch_of, in_order, levels_of
from causal_tracing.engine.progress import Steps
from causal_tracing.errors import ComponentNotOffered, InvalidEdit
from causal_tracing.interventions.edits import Run, World
from causal_tracing.interventions.known import plan
from causal_tracing.models.model import Model

TOKENS = 4096  # of all rows of a batch: as much as is asked at a time of a server that many share


@runtime_checkable
class Transport(Protocol):
    """How a trace gets its answer."""

    @property
    def name(self) -> str:
        """What the engine is called in results."""
        ...

    def answer(self, asked: Asked) -> Any:
        """What the function gives inside the trace. Raises MachineError."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of the model where it runs: its type there, and whether it can be asked for the last logits."""

    dtype: str
    few_logits: bool


class NnsightBackend:
    """A `Backend` on a transport. `model` has the anatomy; its network may be without weights."""

    def __init__(self, model: Model, transport: Transport, known: Known) -> None:
        self.model, self.transport, self.known = model, transport, known

    def keep_jobs(self, file: Path) -> None:
        """Notes jobs in this file, where the transport has any."""
        if isinstance(self.transport, Collecting):
            self.transport.keep_jobs(file)

    def describe(self, worlds: Sequence[World] = ()) -> Description:
        """What is offered. What worlds would cost is not known: the machine is another one, or nnsight's."""
        model, anatomy = self.model, self.model.anatomy
        return Description(
            engine=self.transport.name,
            components=(*anatomy.components, *anatomy.mediators),
            rules=model.rules,
            counts={name: anatomy.count(name) for name in anatomy.mediators},
            dtype=self.known.dtype,
            context=model.context,
            rounding=TWO_FORWARDS[self.known.dtype],
        )

    def record(self, runs: Sequence[Run], places: Collection[Place] = (), *, keep: int = 1) -> dict[Run, Recording]:
        """Each distinct run's activations at the places, and its logits at the last `keep` positions."""
        found: dict[Run, Recording] = {}
        last = [World(run, (), tuple(range(len(run.tokens) - keep, len(run.tokens)))) for run in dict.fromkeys(runs)]
        for numbers in _batches(last, None):
            worlds = [last[number] for number in numbers]
            several = [world.base for world in worlds]
            logits, kept = self._answer(worlds, dict.fromkeys(places, several))
            for row, run in enumerate(several):
                values = {
                    place: each[row][: len(run.tokens)] for place, each in zip(in_order({*places}), kept, strict=True)
                }
                found[run] = Recording(activations=values, logits=logits[row])
        return found

    def evaluate(
        self,
        worlds: Sequence[World],
        measure: Measure,
        *,
        prune: bool = True,
        rows: int | None = None,
        progress: Progress | None = None,
    ) -> Evaluation:
        """The numbers that `measure` makes of each world's logits: where they are, if it is `Portable`."""
        if not worlds:
            raise InvalidEdit("There is no world to evaluate: the list is empty.")
        # Nothing is said of experts: they are not offered through nnsight.
        planned = plan(worlds, self.model.rules, prune=prune)
        # Whole worlds: between its layers a trace tells nothing.
        told = Steps(progress, len(planned.worlds)) if progress else None
        values: dict[int, Tensor] = {}
        for numbers in _batches(planned.worlds, rows):
            batch = [planned.worlds[number] for number in numbers]
            if isinstance(measure, Portable):
                measured, _ = self._answer(batch, {}, measure.function, measure.data(batch))
            else:
                measured = measure(self._answer(batch, {})[0], batch)
            values.update(zip(numbers, measured.double(), strict=True))
            if told:
                told.reach(len(values))
        return Evaluation(
            values=torch.stack([values[number] for number in planned.index]).numpy(),
            structural_zero=np.array(planned.structural_zero),
            worlds_run=len(planned.worlds),
        )

    def gradients(
        self,
        runs: Sequence[Run],
        places: Collection[Place],
        measure: Differentiable,
        *,
        donors: Mapping[Run, Recording] | None = None,
        keep: int = 1,
    ) -> Iterator[Linearised]:
        """Raises ComponentNotOffered."""
        raise ComponentNotOffered(
            f"Gradients are not offered by the backend {self.transport.name!r}: estimates and attribution need the "
            "model in this process. Load it without remote=."
        )

    def _answer(
        self, worlds: Sequence[World], wanted: Mapping[Place, Sequence[Run]], function: Any = None, data: Any = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """The numbers of worlds of one batch (their logits, without a function), and the values that are wanted."""
        edits = [edit for run in levels_of(world.run for world in worlds) for edit in run.edits]
        check_layers(self.model, edits)
        # Of donors' edits too, which run in the same trace.
        for edit in edits:
            self.model.anatomy.require(edit.site.component)
        batch = batch_of(self.model, [world.run for world in worlds], wanted)
        length = batch.tokens.shape[1]
        readout = torch.tensor([world.readout for world in worlds]) - length  # from the end, where logits are few
        few = {"logits_to_keep": -int(readout.min())} if self.known.few_logits else {}
        rows = torch.tensor([batch.rows[world.run] for world in worlds])
        asked = (len(batch.tokens), batch.places, rows, readout, function, tuple(data))
        inputs = {"input_ids": batch.tokens, "use_cache": False, **few}
        return self.transport.answer(Asked(inputs=inputs, function=block.patched, arguments=asked))


def _batches(worlds: Sequence[World], rows: int | None) -> Iterator[list[int]]:
    """The worlds' numbers, in batches of no more tokens than may be asked at a time, donors among them."""
    for numbers in alike(worlds):
        batch: list[int] = []
        needed: set[Run] = set()
        for number in numbers:
            more = needed | levels_of([worlds[number].run]).keys()
            tokens = len(more) * max(len(run.tokens) for run in more)
            if batch and (tokens > TOKENS or len(batch) == rows):
                yield batch
                batch, more = [], {*levels_of([worlds[number].run])}
            batch.append(number)
            needed = more
        yield batch
