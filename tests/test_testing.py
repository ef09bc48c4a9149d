"""The toys: what a trace says of them is what algebra says."""

from functools import cache

import numpy as np
import pytest
import torch
import xarray as xr

import causal_tracing as ct
from causal_tracing.errors import InvalidOption, InvalidPair
from causal_tracing.testing import Copy, Neuron, Neurons, ToyLayer, ToyNetwork, circuit, lookup, toy_model

LAST = 3  # "the switch is on": position of the token that tells the prompts apart

# Worked by hand: Y(1, 1) − Y(0, 0), Y(0, 1) − Y(0, 0), Y(1, 1) − Y(1, 0), Y(1, 0) − Y(0, 0), their difference;
# the first argument is b (the rest), the second a (the component).
TRUTH = {
    "and": {"total_effect": 1, "restoration": 0, "disruption": 1, "bypass": 0, "interaction": 1},
    "or": {"total_effect": 1, "restoration": 1, "disruption": 0, "bypass": 1, "interaction": -1},
    "sum": {"total_effect": 1, "restoration": 0.5, "disruption": 0.5, "bypass": 0.5, "interaction": 0},
    "erasure": {"total_effect": 0, "restoration": 1, "disruption": 1, "bypass": -1, "interaction": 0},
    "xor": {"total_effect": 0, "restoration": 1, "disruption": -1, "bypass": 1, "interaction": -2},
}
VALUES = {"and": (1, 0), "or": (1, 0), "sum": (1, 0), "erasure": (1, 1), "xor": (0, 0)}  # of (1, 1) and (0, 0)

pytestmark = pytest.mark.filterwarnings("ignore::causal_tracing.errors.EngineNote")  # toys attend by themselves


@cache
def effects_of(name: str) -> xr.Dataset:
    model, pair = lookup() if name == "lookup" else circuit(name)
    return ct.trace(model, pair).effects.sel(metric="logit_diff", pair=pair.id)


@pytest.mark.parametrize("name", TRUTH)
def test_a_circuit_has_the_effects_of_its_truth_table(name):
    effects = effects_of(name)
    a = effects.sel(component="mlp_out", layer=0).isel(position=LAST)
    assert {effect: a[effect].item() for effect in TRUTH[name]} == TRUTH[name]
    assert (effects.clean.item(), effects.corrupt.item()) == VALUES[name]
    assert a.status.item() == "ok"


@pytest.mark.parametrize("name", TRUTH)
def test_the_fraction_is_undefined_where_the_total_effect_is_zero(name):
    effects = effects_of(name)
    fraction = effects.restored_fraction.sel(component="mlp_out", layer=0).isel(position=LAST).item()
    total = TRUTH[name]["total_effect"]
    assert np.isnan(fraction) if total == 0 else fraction == TRUTH[name]["restoration"] / total


@pytest.mark.parametrize("name", ["and", "or", "sum", "xor"])
def test_b_has_the_effects_of_a_where_the_circuit_is_symmetric(name):
    effects = effects_of(name).sel(component="mlp_out")
    a, b = (effects.sel(layer=layer).isel(position=LAST) for layer in (0, 1))
    for effect in TRUTH[name]:
        assert a[effect].item() == b[effect].item()


@pytest.mark.parametrize("name", TRUTH)
def test_what_adds_nothing_has_no_effect_and_a_cut_has_the_total_effect(name):
    effects = effects_of(name)
    for effect in ("restoration", "disruption"):
        assert (effects[effect].isel(position=slice(LAST)) == 0).all()
        assert (effects[effect].sel(component="attn_out") == 0).all()
        assert (effects[effect].sel(component="resid_post").isel(position=LAST) == effects.total_effect).all()


# The whole picture of the lookup: a row a token (the, Eiffel, Tower, stands, in), a column a layer.
PICTURE = {
    "resid_post": [
        [0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0],  # until attention of layer 1 has copied it
        [0, 1, 1, 1, 0, 0],  # until attention of layer 4 has copied the attribute
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 1],
    ],
    "attn_out": [
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 0],
    ],
    "mlp_out": [
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ],
}


@pytest.mark.parametrize("fraction", ["restored_fraction", "lost_fraction"])
@pytest.mark.parametrize("component", PICTURE)
def test_the_lookup_gives_the_picture_of_rome(component, fraction):
    effects = effects_of("lookup")
    assert (effects.clean.item(), effects.corrupt.item(), effects.total_effect.item()) == (1, -1, 2)
    found = effects[fraction].sel(component=component).transpose("position", "layer")
    assert found.values.tolist() == PICTURE[component]


def test_the_lookup_knows_which_cells_are_zeros_and_cuts_by_construction():
    status = effects_of("lookup").status
    assert (status.isel(position=0) == "structural_zero").all()  # before the first difference
    last_layer = status.sel(component="resid_post", layer=5).values.tolist()
    assert last_layer == [*["structural_zero"] * 4, "cut"]
    assert status.sel(component="resid_post", layer=2).values.tolist() == ["structural_zero", "ok", "ok", "ok", "ok"]


def test_a_network_of_ones_own_can_be_traced():
    words = [f"w{n}" for n in range(12)]
    network = ToyNetwork(
        embedding=torch.eye(12),
        layers=[
            ToyLayer(Copy(12, {3: 5}, back=1), Neurons(12, [Neuron(reads={5: 2}, writes={0: 1})])),
            ToyLayer(Copy(12), Neurons(12)),
        ],
        head=torch.eye(12),
        bias=torch.zeros(12),
    )
    model = toy_model(network, words, "mine")
    pair = ct.Pair(clean="w1 w3 w4", corrupt="w1 w2 w4", answer=" w0", foil=" w9", id="mine")
    effects = ct.trace(model, pair).effects.sel(metric="logit_diff", pair="mine")
    assert effects.total_effect.item() == 2
    assert effects.restoration.sel(component="attn_out", layer=0).values.tolist() == [0, 0, 2]


def test_an_unknown_circuit_is_named_with_the_valid_ones():
    with pytest.raises(
        InvalidOption, match=r"no circuit 'nand'\. Did you mean 'and'\? Valid: and, or, sum, erasure, xor"
    ):
        circuit("nand")


def test_an_unknown_word_is_named():
    model, _ = circuit("and")
    with pytest.raises(InvalidPair, match=r"does not know the word 'of'\. Did you mean 'off'\?"):
        model.tokenizer("the switch is of")


def test_the_tokenizer_says_where_words_lie():
    model, pair = lookup()
    encoding = model.tokenizer(pair.clean)
    assert [pair.clean[start:end] for start, end in encoding["offset_mapping"]] == pair.clean.split()
    assert model.tokenizer.decode(encoding["input_ids"]) == pair.clean
    assert model.tokenizer.convert_ids_to_tokens(encoding["input_ids"][1]) == "Eiffel"
