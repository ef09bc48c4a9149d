"""The tiny models of `families.py`, accepted: once a run, whether tests leave them as they are or not."""

import os
import pickle
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from causal_tracing.engine.checks.check import Checkup, examine
from causal_tracing.models.model import Model
from causal_tracing.testing import ToyTokenizer
from families import FAMILIES, Family, build

BY_NAME = {family.name: family for family in FAMILIES}
CASES = [(family, attention) for family in FAMILIES for attention in family.attention]
# Every family with its default attention, three with each: for laws that look at attention from outside, after the
# model has been accepted with it (test_check.py does so with all). Plain and rotary; learned positions, fused
# projections and biases; windows in some layers, so that masks differ.
EACH = ("llama", "gpt2", "gemma3_text")
SOME = [(family, attention) for family, attention in CASES if family.name in EACH or attention == family.attention[0]]


def ids(cases: Sequence[tuple[Family, str]]) -> list[str]:
    return [f"{family.name}-{attention}" for family, attention in cases]


WORDS = ToyTokenizer([f"w{n}" for n in range(97)])


def fresh(name: str, attention: str | None = None, *, dtype: torch.dtype = torch.float32) -> Model:
    """A model to change: to hang hooks on, to train, to set another attention for.

    Its network is its own; what is known of it was found on another with the same weights.
    """
    attention = attention or BY_NAME[name].attention[0]
    return replace(examined(name, attention, dtype).model, network=build(BY_NAME[name], attention, dtype=dtype))


def shared(name: str, attention: str | None = None, dtype: torch.dtype = torch.float32) -> Model:
    """The same for all tests of a process: whoever changes it makes one of their own."""
    return examined(name, attention or BY_NAME[name].attention[0], dtype).model


def examined(name: str, attention: str, dtype: torch.dtype = torch.float32) -> Checkup:
    """The shared model, and what was found when it was accepted."""
    return _examined(name, attention, dtype)


@cache
def _examined(name: str, attention: str, dtype: torch.dtype) -> Checkup:
    network, kept = build(BY_NAME[name], attention, dtype=dtype), _kept(f"{name} {attention} {dtype}")
    if kept is None or not kept.exists():
        found = examine(network, WORDS, name=name)
        if kept is not None:
            _keep(found, kept)
        return found
    # What another process found on the same weights.
    found = pickle.loads(kept.read_bytes())
    return replace(found, model=replace(found.model, network=network, tokenizer=WORDS))


def _kept(case: str) -> Path | None:
    """Where the processes of one run keep what was found of a model; None where there is one process."""
    folder = os.environ.get("TESTS_SHARED")
    return None if folder is None else Path(folder) / f"{case}.pickle"


def _keep(found: Checkup, file: Path) -> None:
    whole = file.with_suffix(f".{os.getpid()}")
    whole.write_bytes(pickle.dumps(replace(found, model=replace(found.model, network=None, tokenizer=None))))  # pyright: ignore[reportArgumentType]
    whole.replace(file)
