"""Worlds in, numbers out: on either engine.

1. Plan: drop what cannot matter, run equal worlds once.
2. The engine records what it needs, and runs batches that fit the memory; one that does not is halved.
3. Measure each batch's logits at once, so that they are never held together.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from causal_tracing.engine.backend import Evaluation, Measure, Progress
from causal_tracing.engine.hooks.replay import Replay
from causal_tracing.engine.memory import default_budget, is_out_of_memory
from causal_tracing.engine.packed.base_runs import Tapes
from causal_tracing.engine.packed.engine import Packed
from causal_tracing.engine.progress import Steps, never
from causal_tracing.errors import InvalidEdit, OutOfMemory
from causal_tracing.interventions.edits import World
from causal_tracing.interventions.known import plan
from causal_tracing.models.model import Model

Engine = Packed | Replay
ENGINES: dict[str, type[Packed] | type[Replay]] = {"packed": Packed, "replay": Replay}


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
) -> Evaluation:
    """The numbers that `measure` makes of each world's logits at its readout, on the engine "packed" or "replay".

    `measure` may depend on a world through its base run, its readout and its `pair` only. A world that is dropped
    gets its base run's numbers, so that the difference is exactly zero. `budget` is in bytes, `rows` caps a batch.
    `known` has what was recorded before. `progress` is told between layers and batches how much is done of how much.
    Raises InvalidEdit, ComponentNotOffered, CannotPack, OutOfMemory.
    """
    if not worlds:
        raise InvalidEdit("There is no world to evaluate: the list is empty.")
    planned = plan(worlds, model.rules, prune=prune)
    budget = budget or default_budget(model)
    packed = engine == "packed"
    run = Packed(model, planned.worlds, budget, known) if packed else Replay(model, planned.worlds, budget)
    told = Steps(progress, len(planned.worlds) * model.num_layers) if progress else None
    values: dict[int, Tensor] = {}
    for batch in run.batches(rows):
        values |= _measured(model, run, planned.worlds, batch, measure, told)
        if told:
            told.reach(len(values) * model.num_layers)
    return Evaluation(
        values=torch.stack([values[number] for number in planned.index]).numpy(),
        structural_zero=np.array(planned.structural_zero),
        worlds_run=len(planned.worlds),
    )


def _measured(
    model: Model,
    run: Engine,
    worlds: Sequence[World],
    batch: Sequence[int],
    measure: Measure,
    told: Steps | None,
) -> dict[int, Float[Tensor, " metric"]]:
    """A batch's numbers; what is left of it in halves where memory runs out."""
    done: dict[int, Tensor] = {}
    try:
        for numbers, logits in run.logits(batch, told.layers(len(batch)) if told else never):
            done.update(zip(numbers, measure(logits, [worlds[n] for n in numbers]).double().cpu(), strict=True))
    except Exception as error:
        if not is_out_of_memory(error) or (told and error is told.stopped_by):
            raise  # the halves are run outside this block: an exception keeps its frames' tensors alive
    left = [number for number in batch if number not in done]
    if left and len(batch) == 1:
        raise OutOfMemory(
            f"A single run of {len(worlds[left[0]].base.tokens)} tokens does not fit into the memory of "
            f"{model.device}. Use a shorter prompt, a smaller dtype, or another device."
        )
    half = len(left) // 2
    for part in (left[:half], left[half:]):
        if part:
            done |= _measured(model, run, worlds, part, measure, told)
    return done
