"""The tiny models of `families.py`, accepted: once a process, whether tests leave them as they are or not."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

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
    return examine(build(BY_NAME[name], attention, dtype=dtype), WORDS, name=name)
