"""Two prompts of equal length, and worlds in which one of them gets one activation of the other."""

from typing import Any

from torch import Tensor

from causal_tracing.interventions.edits import Edit, From, Run, World
from causal_tracing.interventions.sites import Site

CLEAN = (5, 17, 42, 11, 60, 33, 8, 71, 90)
CORRUPT = (5, 17, 42, 13, 60, 29, 8, 71, 90)
LENGTH, LAYERS = 9, range(4)
TOLERANCE = 2e-5  # of the largest logit


def single(base: tuple[int, ...], donor: tuple[int, ...], component: str, layer: int, position: int) -> World:
    edit = Edit(Site(component, layer, position), From(Run(donor), position))
    return World(Run(base), (edit,), tuple(range(LENGTH)))


def all_logits(logits: Tensor, _: Any) -> Tensor:
    return logits.flatten(1)
