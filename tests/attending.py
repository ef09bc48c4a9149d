"""Runs, and edits that tell a query of theirs to attend otherwise."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from causal_tracing.engine.evaluate import evaluate
from causal_tracing.interventions.edits import Attending, Edit, From, Run, World
from causal_tracing.interventions.sites import ATTENTION, Site
from causal_tracing.models.model import Model

BASE = Run((5, 17, 42, 11, 60, 33, 8, 71, 90))
DONOR = Run((5, 17, 42, 13, 60, 29, 8, 71, 90))  # differs at 3 and 5
LONGER = Run((7, 44, 19, 17, 2, 13, 64, 29, 81, 71, 12))  # differs everywhere
LENGTH, LAST, LAYERS = 9, 8, range(4)
ENGINES = ("replay", "packed")

# Layers whose queries see four keys, themselves the last of them.
WINDOWS = {"mistral": (0, 1, 2, 3), "gemma2": (0, 2), "gemma3_text": (0, 1, 3), "gemma3": (0, 1, 3), "gpt_oss": (0, 2)}


def told(layer: int, query: int, head: int | None = None, **how: Any) -> Edit:
    return Edit(Site(ATTENTION, layer, query, head), Attending(**how))


def given(keys: Iterable[int], donor: Run = LONGER) -> tuple[tuple[int, From], ...]:
    """The donor's keys or values, each at its own place."""
    return tuple((key, From(donor, key)) for key in keys)


def asked_by(query: int, keys: Iterable[int], donor: Run = LONGER) -> tuple[tuple[int, From], ...]:
    """The scores of these keys by the donor's query."""
    return tuple((key, From(donor, query)) for key in keys)


def logits(model: Model, engine: str, *worlds: tuple[Edit, ...], base: Run = BASE, alone: bool = False) -> np.ndarray:
    """[world, position, vocab] of the base run with each world's edits, every one run.

    Where it should be `alone`, each has a whole forward of its own; the packed engine has none.
    """
    planned = [World(base, world, tuple(range(len(base.tokens)))) for world in worlds]
    rows = 1 if alone and engine == "replay" else None
    found = evaluate(model, planned, lambda each, _: each.flatten(1), engine=engine, prune=False, rows=rows)
    return found.values.reshape(len(worlds), len(base.tokens), -1)
