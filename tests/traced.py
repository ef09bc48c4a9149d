"""A tiny llama with a pair of nine tokens that differ at two of them."""

from typing import Any

import torch

import causal_tracing as ct
from causal_tracing.engine.checks.check import accept
from causal_tracing.models.model import Model
from families import FAMILIES, build
from tokenizers_for_tests import words

WORDS = words(*(f" w{n}" for n in range(96)))
LLAMA = next(family for family in FAMILIES if family.name == "llama")
CLEAN = " w11 w12 w13 w14 w15 w16 w17 w18 w19"
CORRUPT = " w11 w12 w13 w44 w15 w46 w17 w18 w19"
ANSWER, FOIL = " w7", " w8"
TOLERANCE = 1e-5


def pair(**fields: Any) -> ct.Pair:
    common: dict[str, Any] = {"clean": CLEAN, "corrupt": CORRUPT, "answer": ANSWER, "foil": FOIL}
    return ct.Pair(**(common | fields))


def tiny() -> Model:
    return accept(build(LLAMA), WORDS, name="tiny", source={"kind": "folder"})


def trace_of_all(model: Model) -> ct.Trace:
    """Every component of the blocks, by every metric."""
    return ct.trace(
        model, pair(subject="w14 w15"), components=["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]
    )


def ids(text: str) -> torch.Tensor:
    return torch.tensor([WORDS(text)["input_ids"]])


def logit_diff(logits: torch.Tensor) -> float:
    answer, foil = (ids(text)[0, 0] for text in (ANSWER, FOIL))
    return (logits[0, -1, answer] - logits[0, -1, foil]).item()
