"""The plain engine: batches of whole forwards with hooks. Slow, obviously right, and works on every model.

1. Plan: drop what cannot matter, run equal worlds once.
2. Record the donors.
3. Run the worlds in batches of equal length; a batch that does not fit is halved.
4. Measure each batch's logits at once, so that they are never held together.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from causal_tracing.edits import Run, World
from causal_tracing.engine.forward import Recording, forward
from causal_tracing.engine.plan import alike, default_budget, plan, rows_that_fit
from causal_tracing.engine.record import donor_recordings
from causal_tracing.errors import InvalidEdit, OutOfMemory
from causal_tracing.model import Model

Measure = Callable[[Float[Tensor, "world readout vocab"], Sequence[World]], Float[Tensor, "world metric"]]
Progress = Callable[[int, int], None]


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
    prune: bool = True,
    budget: int | None = None,
    rows: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """The numbers that `measure` makes of each world's logits at its readout.

    `measure` may depend on a world through its base run, its readout and its `pair` only. A world that is dropped
    gets its base run's numbers, so that the difference is exactly zero. `budget` is in bytes, `rows` caps a batch.
    Raises InvalidEdit, ComponentNotOffered, OutOfMemory.
    """
    if not worlds:
        raise InvalidEdit("There is no world to evaluate: the list is empty.")
    planned = plan(model, worlds, prune=prune)
    donors = donor_recordings(model, (world.run for world in planned.worlds))
    budget = budget or default_budget(model)
    values: dict[int, Tensor] = {}
    for numbers in alike(planned.worlds):
        first = planned.worlds[numbers[0]]
        fit = rows_that_fit(model, len(first.base.tokens), len(first.readout), budget)
        size = min(fit, rows or fit)
        for start in range(0, len(numbers), size):
            batch = numbers[start : start + size]
            for number, row in zip(
                batch, _measured(model, [planned.worlds[n] for n in batch], donors, measure), strict=True
            ):
                values[number] = row
            if progress:
                progress(len(values), len(planned.worlds))
    return Evaluation(
        values=torch.stack([values[number] for number in planned.index]).numpy(),
        structural_zero=np.array(planned.structural_zero),
        worlds_run=len(planned.worlds),
    )


def _measured(
    model: Model, worlds: Sequence[World], donors: Mapping[Run, Recording], measure: Measure
) -> Iterator[Float[Tensor, " metric"]]:
    """A batch's numbers, world by world; in halves where memory runs out."""
    keep = max(len(world.base.tokens) - min(world.readout) for world in worlds)
    try:
        logits, _ = forward(model, [world.run for world in worlds], donors, keep=keep)
        wanted = torch.tensor([[p - len(world.base.tokens) + keep for p in world.readout] for world in worlds])
        read = logits[torch.arange(len(worlds))[:, None], wanted.to(logits.device)]
        numbers = measure(read, worlds).double().cpu()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        numbers = None  # the halves are run outside this block: an exception keeps its frames' tensors alive
    if numbers is not None:
        yield from numbers
        return
    if len(worlds) == 1:
        raise OutOfMemory(
            f"A single run of {len(worlds[0].base.tokens)} tokens does not fit into the memory of {model.device}. "
            "Use a shorter prompt, a smaller dtype, or another device."
        )
    half = len(worlds) // 2
    yield from _measured(model, worlds[:half], donors, measure)
    yield from _measured(model, worlds[half:], donors, measure)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out; CPU and GPU say it in different words."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


def spread(
    model: Model, worlds: Sequence[World], measure: Measure, *, sizes: Sequence[int] = (1, 2, 4, 8)
) -> np.ndarray:
    """The standard deviation of each world's numbers over repeats in batches of different sizes [world, metric].

    What remains when nothing changes but the shape of the computation: no effect can be told from less.
    """
    repeats = []
    for size in sizes:
        repeated = [world for world in worlds for _ in range(size)]
        values = evaluate(model, repeated, measure, prune=False, rows=size).values
        repeats.append(values.reshape(len(worlds), size, -1))
    return np.concatenate(repeats, axis=1).std(axis=1)
