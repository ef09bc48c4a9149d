"""Sweeps in an edited world: against bare hooks, by gates whose effects are known, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

import causal_tracing as ct
from bare_hooks import first, hooked, put
from causal_tracing.errors import InvalidOption, InvalidPair
from causal_tracing.models.model import Model
from causal_tracing.patching.named_sites import named_site
from joint import WORDS, tiny

CLEAN, CORRUPT = " w11 w12 w13 w14 w15 w16", " w11 w12 w43 w14 w25 w16"
PAIR = ct.Pair(clean=CLEAN, corrupt=CORRUPT, answer=" w7", foil=" w8", subject=" w12 w13", corrupt_subject=" w12 w43")
LAYERS, LENGTH, LAST = 4, 6, 5


@pytest.fixture(scope="module")
def network() -> Any:
    return tiny().network


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


class ByHand:
    """Forwards of one network with hooks on its own MLPs."""

    def __init__(self, network: Any) -> None:
        self.network = network
        self.mlps = [layer.mlp for layer in network.model.layers]

    def run(self, text: str, patches: list[tuple[Any, torch.Tensor, int]]) -> float:
        with hooked([(module, put(value, position)) for module, value, position in patches]), torch.no_grad():
            logits = self.network(torch.tensor([WORDS(text)["input_ids"]])).logits[0, -1]
        answer, foil = (WORDS(token)["input_ids"][0] for token in (" w7", " w8"))
        return (logits[answer] - logits[foil]).item()

    def output(self, text: str, layer: int) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        with hooked([(self.mlps[layer], lambda _, __, out: seen.append(first(out)[0].clone()))]), torch.no_grad():
            self.network(torch.tensor([WORDS(text)["input_ids"]]))
        return seen[0]

    def patched(self, text: str, donor: str, sites: list[tuple[int, int]]) -> float:
        """The metric with the donor's MLP outputs at these (layer, position)."""
        return self.run(text, [(self.mlps[layer], self.output(donor, layer), position) for layer, position in sites])


@pytest.mark.parametrize("engine", ["packed", "replay"])
def test_a_sweep_in_an_edited_world_is_what_hooks_give(network: Any, model: Model, engine: str) -> None:
    given = ["mlp_out 0 @ 2", "mlp_out 2 @ last"]
    trace = ct.trace(model, PAIR, components=["mlp_out"], given=given, engine=engine, progress=False)
    hand, already = ByHand(network), [(0, 2), (2, LAST)]
    found = trace.effects.sel(metric="logit_diff", pair="pair-0", component="mlp_out")
    clean, corrupt = hand.patched(CLEAN, CORRUPT, already), hand.patched(CORRUPT, CLEAN, already)
    assert_allclose([found.clean.item(), found.corrupt.item()], [clean, corrupt], atol=1e-5)
    assert abs(clean - hand.run(CLEAN, [])) > 1e-3
    for layer, position in ((1, 2), (0, 4), (3, LAST), (2, 3)):
        cell = found.sel(layer=layer, position=position)
        restored = hand.patched(CORRUPT, CLEAN, [*already, (layer, position)])
        disrupted = hand.patched(CLEAN, CORRUPT, [*already, (layer, position)])
        assert_allclose(cell.restoration.item(), restored - corrupt, atol=1e-5)
        assert_allclose(cell.disruption.item(), clean - disrupted, atol=1e-5)
    for layer, position in already:  # what is given has no effect of its own: undefined, and not zero
        cell = found.sel(layer=layer, position=position)
        assert cell.status.item() == "given"
        assert np.isnan(cell.restoration.item())


def test_nothing_given_is_the_ordinary_sweep_to_the_bit(model: Model) -> None:
    plain = ct.trace(model, PAIR, components=["mlp_out"], progress=False)
    empty = ct.trace(model, PAIR, components=["mlp_out"], given=[], progress=False)
    assert_array_equal(plain.effects.restoration.values, empty.effects.restoration.values)
    assert "given" not in plain.measurements.provenance["options"]


def test_heads_of_a_whole_attention_that_is_given_are_undefined(model: Model) -> None:
    trace = ct.trace(
        model, PAIR, components=[], heads=["z"], given=["z 1.2 @ last", "z 2-3.0 @ subject"], progress=False
    )
    numbers = trace.measurements.numbers("heads").sel(pair="pair-0", component="z")
    named = {(1, 2, LAST), (2, 0, 1), (2, 0, 2), (3, 0, 1), (3, 0, 2)}
    here = {
        tuple(int(n) for n in at) for at in np.argwhere(numbers.given.transpose("layer", "head", "position").values)
    }
    assert here == named
    assert "z 1.2 @ last" in trace.summary()


def test_telescoping(network: Any, model: Model) -> None:
    """Law S7: what each of three sites adds, given those before it, is what all three do."""
    sites, hand = ["mlp_out 0 @ 2", "mlp_out 1 @ 4", "mlp_out 3 @ last"], ByHand(network)
    added = 0.0
    for number, site in enumerate(sites):
        named = named_site(site)
        assert named.layers is not None
        trace = ct.trace(
            model,
            PAIR,
            components=["mlp_out"],
            layers=[named.layers[0]],
            given=sites[:number],
            spot_checks=0,
            progress=False,
        )
        position = LAST if named.tokens == "last" else named.tokens
        cell = trace.effects.sel(metric="logit_diff", pair="pair-0", component="mlp_out", layer=named.layers[0])
        added += cell.restoration.sel(position=position).item()
    all_three = hand.patched(CORRUPT, CLEAN, [(0, 2), (1, 4), (3, LAST)]) - hand.run(CORRUPT, [])
    assert_allclose(added, all_three, atol=1e-5)


def test_gain_is_a_comparison(model: Model) -> None:
    """gain(u | S) is the disruption of u where S is out, minus its disruption where it is not."""
    pairs = [
        ct.Pair(clean=CLEAN, corrupt=f" w11 w12 w{n} w14 w25 w16", answer=" w7", foil=" w8") for n in range(20, 26)
    ]
    alone, behind = (
        ct.trace(model, pairs, components=["mlp_out"], positions=["last"], given=given, progress=False)
        for given in ([], ["mlp_out 1 @ last"])
    )
    gain = ct.compare(behind, alone)
    found = gain.cells.disruption.sel(component="mlp_out", layer=3, position="last").item()
    each = [
        trace.effects.disruption.sel(metric="logit_diff", component="mlp_out", layer=3, position="last").values
        for trace in (behind, alone)
    ]
    assert_allclose(found, (each[0] - each[1]).mean(), atol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("z 1.2 @ last", "is a list of sites"),
        (["z1.2@last"], "is no site"),
        (["mlp 1 @ last"], "there is no component 'mlp'"),
        (["mlp_out 1.2 @ last"], "mlp_out has no heads, neurons or experts"),
        (["mlp_out 3-1 @ last"], "run backwards"),
        (["mlp_out 1 @ last", "mlp_out 1 @ last"], "asked for twice"),
        (["mlp_out 9 @ last"], "There is no layer 9"),
        (["z 1.9 @ last"], "There is no part 9"),
        (["mlp_out 1 @ nowhere"], "has no paired token 'nowhere'"),
    ],
)
def test_sites_that_are_none(model: Model, given: Any, message: str) -> None:
    with pytest.raises((InvalidOption, InvalidPair), match=message):
        ct.trace(model, PAIR, given=given, progress=False)


def test_given_goes_with_two_prompts_alone(model: Model) -> None:
    with pytest.raises(InvalidOption, match="leave noise=, preset= and write= out"):
        ct.trace(model, PAIR, given=["mlp_out 1 @ last"], noise=ct.Noise(), progress=False)
