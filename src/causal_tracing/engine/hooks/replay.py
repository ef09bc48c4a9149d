"""The plain engine: batches of whole forwards with hooks. Slow, obviously right, and works on every model."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from causal_tracing.engine.backend import Measure, whole
from causal_tracing.engine.hooks.forward import forward
from causal_tracing.engine.hooks.modules import layers_told
from causal_tracing.engine.hooks.record import donor_recordings
from causal_tracing.engine.memory import FEW, alike, rows_that_fit
from causal_tracing.engine.progress import Tick, never
from causal_tracing.interventions.edits import World
from causal_tracing.models.model import Model


class Replay:
    """Worlds on whole forwards: batches of equal length, each in one forward."""

    def __init__(self, model: Model, worlds: Sequence[World], budget: int) -> None:
        self.model = model
        self.worlds = worlds
        self.budget = budget
        # By whole forwards too, so that nothing of the faster engine is in what it is held against.
        self.donors = donor_recordings(model, (world.run for world in worlds))
        self.furthest = (0, -1)  # every row has its own place

    def batches(self, rows: int | None = None) -> Iterator[list[int]]:
        """The worlds' numbers, in batches that fit the memory; `rows` caps their size."""
        for numbers in alike(self.worlds):
            first = self.worlds[numbers[0]]
            size = min(rows or len(numbers), len(numbers))
            if size > FEW:
                keep = len(first.base.tokens) - min(first.readout)
                size = min(size, rows_that_fit(self.model, len(first.base.tokens), keep, self.budget))
            for start in range(0, len(numbers), size):
                yield numbers[start : start + size]

    def logits(self, batch: Sequence[int]) -> Iterator[tuple[list[int], Float[Tensor, "world readout vocab"]]]:
        """The worlds' logits at their readouts, all at once."""
        yield from self.numbers(batch, whole)

    def numbers(
        self, batch: Sequence[int], measure: Measure, tick: Tick = never
    ) -> Iterator[tuple[list[int], Float[Tensor, "world *metric"]]]:
        """What a measure makes of the worlds' logits, all at once; `tick` is told of every layer."""
        worlds = [self.worlds[number] for number in batch]
        # From the end on as far as any world reads, and no more: logits are most of the memory.
        keep = max(len(world.base.tokens) - min(world.readout) for world in worlds)
        with self.model.at_rest(), layers_told(self.model, tick):
            logits, _ = forward(self.model, [world.run for world in worlds], self.donors, keep=keep)
        wanted = torch.tensor([[p - len(world.base.tokens) + keep for p in world.readout] for world in worlds])
        yield list(batch), measure(logits[torch.arange(len(worlds))[:, None], wanted.to(logits.device)], worlds)
