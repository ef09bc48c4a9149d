"""The plain engine: batches of whole forwards with hooks. Slow, obviously right, and works on every model."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from causal_tracing.engine.backend import Measure, Recording, whole
from causal_tracing.engine.hooks.forward import forward, in_the_batch
from causal_tracing.engine.hooks.modules import layers_told
from causal_tracing.engine.hooks.record import donor_recordings
from causal_tracing.engine.memory import FEW, alike, from_the_end, rows_that_fit
from causal_tracing.engine.progress import Tick, never
from causal_tracing.interventions.donors import read_by
from causal_tracing.interventions.edits import From, Run, World
from causal_tracing.models.model import Model

ONE_BATCH = 32  # worlds at most that most likely share a forward


class Replay:
    """Worlds on whole forwards: batches of equal length, each in one forward."""

    def __init__(self, model: Model, worlds: Sequence[World], budget: int) -> None:
        self.model = model
        self.worlds = worlds
        self.budget = budget
        # By whole forwards too, so that nothing of the faster engine is in what it is held against.
        self.beside = frozenset() if model.anatomy.alone else _beside(worlds)
        self.donors = donor_recordings(model, (world.run for world in worlds), without=self.beside)
        self.furthest = (0, -1)  # the tokens of the largest batch of several rows, and the world that is its last

    def batches(self, rows: int | None = None) -> Iterator[list[int]]:
        """The worlds' numbers, in batches that fit the memory; `rows` caps their size."""
        for numbers in alike(self.worlds):
            first = self.worlds[numbers[0]]
            size = min(rows or len(numbers), len(numbers))
            if size > FEW:
                keep = len(first.base.tokens) - min(first.readout)
                size = min(size, rows_that_fit(self.model, len(first.base.tokens), keep, self.budget))
            for start in range(0, len(numbers), size):
                batch = numbers[start : start + size]
                tokens = len(batch) * len(first.base.tokens)
                if len(batch) > 1 and tokens > self.furthest[0] and not self.model.anatomy.alone:
                    self.furthest = tokens, batch[-1]
                yield batch

    def logits(self, batch: Sequence[int]) -> Iterator[tuple[list[int], Float[Tensor, "world readout vocab"]]]:
        """The worlds' logits at their readouts, all at once."""
        yield from self.numbers(batch, whole)

    def numbers(
        self, batch: Sequence[int], measure: Measure, tick: Tick = never
    ) -> Iterator[tuple[list[int], Float[Tensor, "world *metric"]]]:
        """What a measure makes of the worlds' logits, all at once; `tick` is told of every layer."""
        worlds = [self.worlds[number] for number in batch]
        first, donors = self._donors_of(worlds)
        keep, wanted = from_the_end(worlds)
        with self.model.at_rest(), layers_told(self.model, tick):
            runs = [*first, *(world.run for world in worlds)]
            logits, _ = forward(self.model, runs, donors, keep=keep, beside=len(first))
        rows = len(first) + torch.arange(len(worlds))[:, None]
        yield list(batch), measure(logits[rows, wanted.to(logits.device)], worlds)

    def _donors_of(self, worlds: Sequence[World]) -> tuple[list[Run], Mapping[Run, Recording]]:
        """The donors that are rows beside these worlds, and recordings of the others."""
        first = list(dict.fromkeys(donor.run for _, donor in _reads(worlds) if donor.run in self.beside))
        if len(worlds) > 1 or not first:
            return first, self.donors
        # Where memory runs out a world is run alone, which must not need two rows.
        return [], donor_recordings(self.model, [worlds[0].run])


def _reads(worlds: Sequence[World]) -> Iterator[tuple[Run, From]]:
    """Which donor is read by which of these worlds' runs."""
    return ((world.run, donor) for world in worlds for edit in world.run.edits for _, donor in edit.reads)


def _beside(worlds: Sequence[World]) -> frozenset[Run]:
    """Donors that are rows beside the worlds that read them: unedited, as long, and read by these worlds alone.

    Such a row costs less than a forward of its own, most of which is reading the weights. Many donors are recorded
    apart, since batches are halved by their worlds, and so are those of many worlds, which make several batches.
    """
    read = read_by(world.run for world in worlds)
    elsewhere = {donor.run for run in read for edit in run.edits for _, donor in edit.reads}
    elsewhere |= {donor.run for run, donor in _reads(worlds) if len(donor.run.tokens) != len(run.tokens)}
    plain = {run for run, kept in read.items() if not run.edits and all(in_the_batch(each[0]) for each in kept)}
    found = frozenset(plain - elsewhere)
    return found if len(worlds) <= ONE_BATCH and len(found) <= FEW else frozenset()
