"""Worlds in, numbers out: on either engine.

1. Plan: drop what cannot matter, run equal worlds once.
2. The engine records what it needs, and runs batches that fit the memory; one that does not is halved.
3. Measure each batch's logits at once, so that they are never held together.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from causal_tracing.edits import World
from causal_tracing.engine.packed import Packed
from causal_tracing.engine.plan import default_budget, plan
from causal_tracing.engine.replay import Replay
from causal_tracing.errors import InvalidEdit, OutOfMemory
from causal_tracing.model import Model

Measure = Callable[[Float[Tensor, "world readout vocab"], Sequence[World]], Float[Tensor, "world metric"]]
Progress = Callable[[int, int], None]


@runtime_checkable
class Engine(Protocol):
    """How worlds become logits."""

    def batches(self, rows: int | None) -> Iterator[list[int]]:
        """The worlds' numbers, in batches that fit the memory; `rows` caps their size."""
        ...

    def logits(self, batch: Sequence[int]) -> Iterator[tuple[list[int], Float[Tensor, "world readout vocab"]]]:
        """The logits at the worlds' readouts, some worlds at a time."""
        ...


ENGINES: dict[str, Callable[[Model, Sequence[World], int], Engine]] = {"packed": Packed, "replay": Replay}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """Each world's numbers, whether it was known to equal its base run, and how many worlds were really run."""

    values: Float[np.ndarray, "world metric"]
    structural_zero: Bool[np.ndarray, " world"]
    worlds_run: int


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
) -> Evaluation:
    """The numbers that `measure` makes of each world's logits at its readout, on the engine "packed" or "replay".

    `measure` may depend on a world through its base run, its readout and its `pair` only. A world that is dropped
    gets its base run's numbers, so that the difference is exactly zero. `budget` is in bytes, `rows` caps a batch.
    Raises InvalidEdit, ComponentNotOffered, CannotPack, OutOfMemory.
    """
    if not worlds:
        raise InvalidEdit("There is no world to evaluate: the list is empty.")
    planned = plan(model, worlds, prune=prune)
    run = ENGINES[engine](model, planned.worlds, budget or default_budget(model))
    values: dict[int, Tensor] = {}
    for batch in run.batches(rows):
        values |= _measured(model, run, planned.worlds, batch, measure)
        if progress:
            progress(len(values), len(planned.worlds))
    return Evaluation(
        values=torch.stack([values[number] for number in planned.index]).numpy(),
        structural_zero=np.array(planned.structural_zero),
        worlds_run=len(planned.worlds),
    )


def _measured(
    model: Model, run: Engine, worlds: Sequence[World], batch: Sequence[int], measure: Measure
) -> dict[int, Float[Tensor, " metric"]]:
    """A batch's numbers; what is left of it in halves where memory runs out."""
    done: dict[int, Tensor] = {}
    try:
        for numbers, logits in run.logits(batch):
            done.update(zip(numbers, measure(logits, [worlds[n] for n in numbers]).double().cpu(), strict=True))
    except Exception as error:
        if not is_out_of_memory(error):
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
            done |= _measured(model, run, worlds, part, measure)
    return done


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out; CPU and GPU say it in different words."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
