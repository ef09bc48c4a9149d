"""The seam: what an engine is asked, and what it answers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from causal_tracing.interventions.edits import World

Measure = Callable[[Float[Tensor, "world readout vocab"], Sequence[World]], Float[Tensor, "world metric"]]
Progress = Callable[[int, int], None]
Tick = Callable[[int], None]  # which layer a batch has reached; what it raises stops the work


def never(layer: int) -> None:
    """Nobody listens."""


@runtime_checkable
class Engine(Protocol):
    """How worlds become logits."""

    def batches(self, rows: int | None) -> Iterator[list[int]]:
        """The worlds' numbers, in batches that fit the memory; `rows` caps their size."""
        ...

    def logits(
        self, batch: Sequence[int], tick: Tick = never
    ) -> Iterator[tuple[list[int], Float[Tensor, "world readout vocab"]]]:
        """The logits at the worlds' readouts, some worlds at a time; `tick` is told of every layer."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """Each world's numbers, whether it was known to equal its base run, and how many worlds were really run."""

    values: Float[np.ndarray, "world metric"]
    structural_zero: Bool[np.ndarray, " world"]
    worlds_run: int
