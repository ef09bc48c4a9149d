"""Tiny models with two prompts, the logit difference, and the modules that a component is read at."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

import causal_tracing as ct
from causal_tracing.engine.checks.check import accept
from causal_tracing.models.model import Model
from families import FAMILIES, build
from tokenizers_for_tests import words

WORDS = words(*(f" w{n}" for n in range(96)))
CLEAN, CORRUPT = " w11 w12 w13 w14 w15 w16", " w11 w12 w43 w14 w15 w16"
PAIR = ct.Pair(clean=CLEAN, corrupt=CORRUPT, answer=" w7", foil=" w8")
LAYERS, LENGTH = 4, 6


@cache
def load(name: str, dtype: torch.dtype = torch.float32) -> Model:
    return accept(build(next(one for one in FAMILIES if one.name == name), dtype=dtype), WORDS, name=name)


def ids(text: str) -> tuple[int, ...]:
    return tuple(WORDS(text)["input_ids"])


ANSWER, FOIL = ids(" w7")[0], ids(" w8")[0]


def logit_diff(logits: torch.Tensor) -> torch.Tensor:
    return logits[..., ANSWER] - logits[..., FOIL]


WHERE: dict[str, tuple[Callable[[Any, int], Any], bool]] = {
    "resid_post": (lambda network, layer: network.model.layers[layer], False),
    "attn_out": (lambda network, layer: network.model.layers[layer].self_attn, False),
    "mlp_out": (lambda network, layer: network.model.layers[layer].mlp, False),
    "z": (lambda network, layer: network.model.layers[layer].self_attn.o_proj, True),
    "neurons": (lambda network, layer: network.model.layers[layer].mlp.down_proj, True),
    "v": (lambda network, layer: network.model.layers[layer].self_attn.v_proj, False),
}
