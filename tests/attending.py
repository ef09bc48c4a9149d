"""Runs, edits that tell a query of theirs to attend otherwise, and how what comes of them is compared."""

from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from causal_tracing.engine.evaluate import evaluate
from causal_tracing.interventions.edits import Attending, Edit, From, Run, World
from causal_tracing.interventions.sites import ATTENTION, Site
from causal_tracing.models.model import Model
from families import Family
from loaded import shared

BASE = Run((5, 17, 42, 11, 60, 33, 8, 71, 90))
DONOR = Run((5, 17, 42, 13, 60, 29, 8, 71, 90))  # differs at 3 and 5
LONGER = Run((7, 44, 19, 17, 2, 13, 64, 29, 81, 71, 12))  # differs everywhere
LENGTH, LAST, LAYERS = 9, 8, range(4)
EVERYWHERE = tuple(range(LENGTH))
ENGINES = ("replay", "packed")
TOLERANCE = 1e-5  # of the largest logit
REAL = 1e-4  # of the largest logit: what differs by more is no rounding

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


def attending_model(family: Family, attention: str) -> Model:
    if not family.packed:  # its patterns are not offered, and so its attention is not
        pytest.skip("it does not attend by transformers' replaceable attention function")
    return shared(family.name, attention)


def asked_engine(request: pytest.FixtureRequest) -> str:
    """The engine that is asked for, where the test's model has it."""
    of_families = "model" in request.fixturenames
    if request.param == "packed" and of_families and request.getfixturevalue("model").name == "falcon_h1":
        pytest.skip("its state space mixes tokens too: it is not packed")
    return request.param


@cache
def unedited(model: Model) -> np.ndarray:
    """[position, vocab] of the base run, by the network alone."""
    with torch.no_grad():
        return model.network(input_ids=torch.tensor([BASE.tokens]), use_cache=False).logits[0].double().numpy()


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference, in shares of the largest logit."""
    return float(np.abs(one - other).max() / np.abs(other).max())


def assert_moved(model: Model, found: np.ndarray) -> None:
    """That most of the worlds are not the base run: a key may have little weight in one family or the other."""
    assert np.median([difference(each, unedited(model)) for each in found]) > REAL
