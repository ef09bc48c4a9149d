"""How much runs at once: sizes of batches, waves and calls that fit the memory."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import psutil
import torch
from jaxtyping import Int
from torch import Tensor

from causal_tracing.engine.call_size import call_tokens
from causal_tracing.engine.footprint import footprint
from causal_tracing.engine.random_prompts import short_length
from causal_tracing.interventions.edits import Run, World
from causal_tracing.models.memory import Found, in_parts
from causal_tracing.models.model import Model

# Above some hundred tokens a batch, larger matrix products are no faster on a CPU, and memory is better left free.
SHARE_OF_FREE_MEMORY = 1 / 8
LARGEST_DEFAULT = {"cpu": 256 * 2**20}
FEW = 8  # rows that share a forward without asking what they take; where they do not fit, halves of them are run
RECORDED = 16  # runs that are recorded at once: few are, and what they leave is kept, so that more would save little
HEAD_ROWS = 128  # more at once are slower on a CPU: their memory is fetched anew each time


def default_budget(model: Model) -> int:
    """Bytes that a batch may take unless said otherwise: a share of what is free, on that device which has least."""
    return min(_share(device) for device in model.devices)


def _share(device: torch.device) -> int:
    if device.type == "cuda":  # what torch holds and does not use is free too
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + kept
    else:
        free = psutil.virtual_memory().available
    return min(int(free * SHARE_OF_FREE_MEMORY), LARGEST_DEFAULT.get(device.type, 2**62))


def rows_that_fit(model: Model, length: int, keep: int, budget: int) -> int:
    """How many runs of `length` tokens fit the budget, by what one takes on the model; at least one."""
    return footprint(model, length, keep).rows(budget, keep * _measured_of_logits(model))


def _measured_of_logits(model: Model) -> int:
    """Bytes that the metrics of one position's logits take: six numbers in float32 a word, beside the logits."""
    return max(1, model.vocabulary or 1) * 6 * 4


def alike(worlds: Sequence[World]) -> Iterator[list[int]]:
    """The worlds' numbers, in groups that can share a forward: equally many tokens, equally many readouts.

    Repeats have groups of their own, so that they are of another size than what they repeat.
    """
    groups: dict[tuple[int, int, int], list[int]] = {}
    for number, world in enumerate(worlds):
        groups.setdefault((len(world.base.tokens), len(world.readout), world.again), []).append(number)
    yield from groups.values()


def in_batches(sizes: Iterable[int], most: int, count: int | None = None) -> Iterator[list[int]]:
    """Numbers of things of these sizes, in their order: together no more than `most`, and no more than `count` things.

    One that is larger by itself goes alone.
    """
    batch: list[int] = []
    taken = 0
    for number, size in enumerate(sizes):
        if batch and (taken + size > most or len(batch) == count):
            yield batch
            batch, taken = [], 0
        batch.append(number)
        taken += size
    if batch:
        yield batch


def by_length(model: Model, runs: Iterable[Run], work: Callable[[Sequence[Run]], Found]) -> Iterator[Found]:
    """What the work gives of runs, each once: of equally long ones some at a time, and fewer where memory runs out.

    Raises OutOfMemory where one alone does not fit.
    """
    found: dict[int, list[Run]] = {}
    for run in dict.fromkeys(runs):
        found.setdefault(len(run.tokens), []).append(run)
    for length, some in found.items():
        for start in range(0, len(some), RECORDED):
            yield from in_parts(some[start : start + RECORDED], work, too_large(model, length))


def from_the_end(worlds: Sequence[World]) -> tuple[int, Int[Tensor, "world readout"]]:
    """How many of the last positions some worlds need, and which of those each of them reads."""
    # As far as any of them reads, and no more: logits are most of the memory.
    keep = max(len(world.base.tokens) - min(world.readout) for world in worlds)
    return keep, torch.tensor([[p - len(world.base.tokens) + keep for p in world.readout] for world in worlds])


def too_large(model: Model, tokens: int) -> str:
    """What is said where one run alone does not fit."""
    return (
        f"A single run of {tokens} tokens does not fit into the memory of {model.device}. Use a shorter prompt, a "
        "smaller dtype, or another device."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What fits into memory: tokens in a wave, tokens in one call of a layer, rows of logits at once."""

    wave: int
    call: int
    head: int


def sizes(model: Model, budget: int, call: int | None = None) -> Sizes:
    """Three quarters of the budget for a layer's work and the logits (never held together), one for the wave's states.

    `call` is how many tokens a call takes at most; None: as many as are fast on the model's device.
    """
    size = torch.finfo(getattr(torch, model.dtype)).bits // 8
    short = short_length(model.network)
    token = footprint(model, short, 1).row // short
    logits = max(1, model.vocabulary or 1) * size + _measured_of_logits(model)
    return Sizes(
        wave=max(1, budget // 4 // (3 * model.width * size)),
        call=max(1, min(call or call_tokens(model), budget * 3 // 4 // max(1, token))),
        head=max(1, min(HEAD_ROWS, budget * 3 // 4 // logits)),
    )
