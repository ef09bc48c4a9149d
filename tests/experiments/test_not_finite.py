"""Weights and activations that are no numbers, or nearly none: named with their place, or traced."""

import numpy as np
import pytest
import torch
from torch import nn

import causal_tracing as ct
from bare_hooks import first
from causal_tracing.errors import UnsupportedModel
from loaded import WORDS
from model_types.recipes import build
from tiny import tiny_tokenizer

CLEAN, CORRUPT = "w5 w17 w32 w11 w40 w33 w8", "w5 w23 w32 w11 w45 w33 w8"
PAIR = ct.Pair(clean=CLEAN, corrupt=CORRUPT, answer=" w9", foil=" w12")
pytestmark = pytest.mark.filterwarnings("ignore::causal_tracing.errors.Note")


def test_a_weight_that_is_no_number_is_named():
    network = build("llama")
    with torch.no_grad():
        network.model.layers[2].mlp.up_proj.weight[3, 2] = float("nan")
    with pytest.raises(UnsupportedModel, match=r"its weight model\.layers\.2\.mlp\.up_proj\.weight holds numbers that"):
        ct.load(network, tokenizer=WORDS)


def steep(times: float) -> nn.Module:
    """A model in float16 whose stream has one dimension that is far larger than all others, as trained ones have."""
    network = build("llama").half()
    with torch.no_grad():
        weight = network.model.layers[1].mlp.down_proj.weight
        weight[3] *= times
    return network


def test_what_overflows_in_float16_is_said_with_its_place():
    with pytest.raises(UnsupportedModel, match=r"in float16: .* what layer 1 of model\.layers gives is not finite\."):
        ct.load(steep(6e4), tokenizer=WORDS)


def test_a_head_that_overflows_is_said_too():
    network = build("llama").half()
    with torch.no_grad():
        network.lm_head.weight.fill_(6e4)
    with pytest.raises(UnsupportedModel, match="in float16: .* what its head gives is not finite"):
        ct.load(network, tokenizer=WORDS)


def test_a_stream_that_is_near_the_largest_half_float_is_no_reason_to_refuse():
    """Noise by which the parts are told, and large writes, would overflow; there is less of them then."""
    model = ct.load(steep(3e3), tokenizer=WORDS)
    assert model.anatomy.components == ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
    seen = []
    model.layers[1].register_forward_hook(lambda _, __, output: seen.append(first(output).abs().max().item()))
    trace = ct.trace(model, PAIR, progress=False)
    assert 1e4 < max(seen) < torch.finfo(torch.float16).max
    assert np.isfinite(trace.effects.restoration.sel(metric="logit_diff")).all()


def test_mixtures_of_experts_in_float64(tmp_path):
    build("mixtral").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model = ct.load(tmp_path, dtype="float64", progress=False)
    assert (model.dtype, len(model.anatomy.components)) == ("float64", 5)
    with pytest.raises(UnsupportedModel, match=r"in float64 as it is: .* Call set_experts_implementation\("):
        ct.load(build("mixtral").double(), tokenizer=WORDS)
    network = build("mixtral").double()
    network.set_experts_implementation("eager")
    assert ct.load(network, tokenizer=WORDS).dtype == "float64"
