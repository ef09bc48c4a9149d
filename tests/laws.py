"""Two runs that differ at two tokens, and worlds of them: what laws of patching are stated with."""

from collections.abc import Sequence
from functools import cache
from itertools import product

import numpy as np
from numpy.testing import assert_array_equal

from causal_tracing.engine.backend import Evaluation
from causal_tracing.engine.evaluate import evaluate
from causal_tracing.interventions.edits import Edit, From, Run, World
from causal_tracing.interventions.sites import Site
from causal_tracing.models.model import Model

BASE = Run((5, 17, 42, 11, 60, 33, 8, 71, 90))
DONOR = Run((5, 17, 42, 13, 60, 29, 8, 71, 90))
LENGTH, DIFFERING, LAST = 9, (3, 5), 8
EVERYWHERE = tuple(range(LENGTH))
LAYERS = range(4)
# Before the first difference, between the two, at the second; the first, an inner, and the last layer.
SOME_POSITIONS, SOME_LAYERS = (1, 4, 5), (0, 2, 3)
MIXTURES = ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "qwen3_next")
TOLERANCE = 1e-5  # of the largest logit
LAST_BITS = 2e-6  # the same, for mixtures of experts where others are equal to the bit
REAL = 1e-3  # of the largest logit: what differs by more is no rounding


def edit(component: str, layer: int, position: int, *, donor: Run = DONOR, alpha: float = 1.0) -> Edit:
    return Edit(Site(component, layer, position), From(donor, position), alpha)


def edits(component: str, layer: int, positions: Sequence[int], donor: Run = DONOR) -> tuple[Edit, ...]:
    return tuple(edit(component, layer, position, donor=donor) for position in positions)


def run(model: Model, worlds: Sequence[World], *, prune: bool = False, rows: int | None = None) -> Evaluation:
    """All the logits at the readout, as metrics."""
    return evaluate(model, worlds, lambda logits, _: logits.flatten(1), prune=prune, rows=rows)


def logits(model: Model, *worlds: tuple[Edit, ...], base: Run = BASE, rows: int | None = None) -> np.ndarray:
    """[world, position, vocab] of the base run with each world's edits, every one of them run."""
    found = run(model, [World(base, world, EVERYWHERE) for world in worlds], rows=rows)
    return found.values.reshape(len(worlds), LENGTH, -1)


@cache
def unedited(model: Model) -> tuple[np.ndarray, np.ndarray]:
    """[position, vocab] of the base run and of the donor, each in a batch of one."""
    return logits(model, (), rows=1)[0], logits(model, (), base=DONOR, rows=1)[0]


def places(model: Model) -> list[tuple[str, int]]:
    return list(product(model.anatomy.components, LAYERS))


def assert_unchanged(model: Model, found: np.ndarray, before: np.ndarray) -> None:
    """Equal to the bit; for mixtures of experts to the last bits."""
    if model.anatomy.family in MIXTURES:
        assert np.abs(found - before).max(initial=0) <= LAST_BITS * np.abs(before).max(initial=1)
    else:
        assert_array_equal(found, before)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference, in shares of the largest logit."""
    return float(np.abs(one - other).max() / np.abs(other).max())
