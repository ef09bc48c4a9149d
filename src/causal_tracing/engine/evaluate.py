"""Worlds in, numbers out: on either engine.

1. Plan: drop what cannot matter, run equal worlds once.
2. The engine records what it needs, and runs batches that fit the memory; one that does not is halved, and so are the
   worlds where what is recorded for all of them does not fit.
3. Measure each batch's logits at once, so that they are never held together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from causal_tracing.engine.backend import Evaluation, Measure, Progress
from causal_tracing.engine.hooks.replay import Replay
from causal_tracing.engine.hooks.rewired import Rewirings
from causal_tracing.engine.hooks.wiring import rewired_in
from causal_tracing.engine.memory import default_budget, too_large
from causal_tracing.engine.packed.base_runs import Tapes
from causal_tracing.engine.packed.engine import Packed
from causal_tracing.engine.progress import Steps, never
from causal_tracing.engine.routed import silent_experts
from causal_tracing.errors import InvalidEdit, OutOfMemory
from causal_tracing.interventions.edits import Run, World, donors_of
from causal_tracing.interventions.known import Plan, plan
from causal_tracing.models.memory import is_out_of_memory
from causal_tracing.models.model import Model

Engine = Packed | Replay | Rewirings


def engine_of(
    name: str,
    model: Model,
    worlds: Sequence[World],
    budget: int,
    known: Tapes | None = None,
    call: int | None = None,
) -> Engine:
    """The engine "packed" or "replay" for these worlds; what is `known` of their base runs is not recorded again.

    `call` is how many tokens a call of the packed engine takes at most. Rewired worlds, which are alone, have one of
    their own; on replay their heads are never added up one by one, so that each way is a check of the other.
    """
    if rewired_in(worlds[0]):
        return Rewirings(model, worlds, budget, joint=name == "replay")
    return Packed(model, worlds, budget, known, call) if name == "packed" else Replay(model, worlds, budget)


def evaluate(
    model: Model,
    worlds: Sequence[World],
    measure: Measure,
    *,
    engine: str = "replay",
    prune: bool = True,
    budget: int | None = None,
    rows: int | None = None,
    progress: Progress | None = None,
    known: Tapes | None = None,
    call: int | None = None,
) -> Evaluation:
    """The numbers that `measure` makes of each world's logits at its readout, on the engine "packed" or "replay".

    `measure` may depend on a world through its base run, its readout and its `pair` only. A world that is dropped
    gets its base run's numbers, so that the difference is exactly zero. `budget` is in bytes, `rows` caps a batch.
    `known` has what was recorded before, `call` is how many tokens a call of the packed engine takes. `progress` is
    told between layers and batches how much is done of how much.
    Raises InvalidEdit, ComponentNotOffered, CannotPack, OutOfMemory.
    """
    if not worlds:
        raise InvalidEdit("There is no world to evaluate: the list is empty.")
    # Laws are tested with prune=False: then nothing is concluded, of experts neither.
    planned = plan(worlds, model.rules, prune=prune, silent=silent_experts(model, worlds) if prune else None)
    told = Steps(progress, len(planned.worlds) * model.num_layers) if progress else None
    budget = budget or default_budget(model)
    work = _Work(
        model=model, engine=engine, budget=budget, rows=rows, measure=measure, told=told, known=known, call=call
    )
    values = work.values(planned.worlds)
    return Evaluation(
        values=torch.stack([values[number] for number in planned.index]).numpy(),
        structural_zero=np.array(planned.structural_zero),
        worlds_run=len(planned.worlds),
        furthest=_numbered(work.furthest, planned),
    )


@dataclass(slots=True, kw_only=True, eq=False)
class _Work:
    """How worlds are evaluated, and how many are."""

    model: Model
    engine: str
    budget: int
    rows: int | None
    measure: Measure
    told: Steps | None
    known: Tapes | None
    call: int | None
    done: int = 0
    furthest: tuple[int, World] | None = None

    def values(self, worlds: Sequence[World]) -> list[Float[Tensor, " metric"]]:
        """The worlds' numbers, in order: in halves, by what they need recorded, where all of that does not fit."""
        before = self.done
        try:
            return self._at_once(worlds)
        except OutOfMemory as error:
            # Worlds that read the same runs would need all of it in either half.
            halves = _by_what_is_recorded(worlds)
            if len(halves) == 1 or self._stopped_by(error):
                raise
        # What was counted of the attempt that failed is done again.
        self.done, found = before, dict[int, Tensor]()
        for numbers in halves:
            found.update(zip(numbers, self.values([worlds[number] for number in numbers]), strict=True))
        return [found[number] for number in range(len(worlds))]

    def _at_once(self, worlds: Sequence[World]) -> list[Float[Tensor, " metric"]]:
        values: dict[int, Tensor] = {}
        for numbers in _alike(worlds):
            run = engine_of(self.engine, self.model, [worlds[n] for n in numbers], self.budget, self.known, self.call)
            for batch in run.batches(self.rows):
                values |= {numbers[n]: each for n, each in self._measured(run, batch).items()}
                self.done += len(batch)
                if self.told:
                    self.told.reach(self.done * self.model.num_layers)
            if run.furthest[0] > (self.furthest[0] if self.furthest else 0):
                self.furthest = run.furthest[0], run.worlds[run.furthest[1]]
        return [values[number] for number in range(len(worlds))]

    def _measured(self, run: Engine, batch: Sequence[int]) -> dict[int, Float[Tensor, " metric"]]:
        """A batch's numbers; what is left of it in halves where memory runs out."""
        done: dict[int, Tensor] = {}
        try:
            tick = self.told.layers(len(batch)) if self.told else never
            for numbers, measured in run.numbers(batch, self.measure, tick):
                # In float64, since effects are small differences of these numbers.
                done.update(zip(numbers, measured.double().cpu(), strict=True))
        except Exception as error:
            if not is_out_of_memory(error) or self._stopped_by(error):
                raise  # the halves are run outside this block: an exception keeps its frames' tensors alive
        left = [number for number in batch if number not in done]
        if left and len(batch) == 1:
            raise OutOfMemory(too_large(self.model, len(run.worlds[left[0]].base.tokens)))
        half = len(left) // 2
        for part in (left[:half], left[half:]):
            if part:
                done |= self._measured(run, part)
        return done

    def _stopped_by(self, error: BaseException) -> bool:
        # A listener may stop the work by any exception, a MemoryError too: that must not be answered with halves.
        return self.told is not None and error is self.told.stopped_by


def _alike(worlds: Sequence[World]) -> list[list[int]]:
    """The worlds' numbers, those of rewired ones apart."""
    rewired = [n for n, world in enumerate(worlds) if rewired_in(world)]
    others = [n for n, world in enumerate(worlds) if not rewired_in(world)]
    return [numbers for numbers in (others, rewired) if numbers]


def _numbered(furthest: tuple[int, World] | None, planned: Plan) -> tuple[int, int] | None:
    """The world by its number among those that were asked for."""
    if furthest is None:
        return None
    # By the first world that was asked for and became this one in the plan.
    tokens, world = furthest
    return tokens, planned.index.index(planned.worlds.index(world))


def _by_what_is_recorded(worlds: Sequence[World]) -> list[list[int]]:
    """The worlds' numbers in two parts that need other runs recorded; in one where all need the same."""
    groups: dict[frozenset[Run], list[int]] = {}
    for number, world in enumerate(worlds):
        donors = (donor.run for edit in world.run.edits for donor in donors_of(edit.source))
        groups.setdefault(frozenset([world.base, *donors]), []).append(number)
    half = len(groups) // 2
    parts = ([*groups.values()][:half], [*groups.values()][half:])
    return [[number for numbers in part for number in numbers] for part in parts if part]
