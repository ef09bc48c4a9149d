"""The ledger of a patch: it adds up, its first line is the direct path, and each line is what hooks say."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import causal_tracing as ct
from causal_tracing.engine.checks.check import accept
from causal_tracing.errors import ComponentNotOffered, InvalidOption
from causal_tracing.models.model import Model
from families import FAMILIES, build
from tokenizers_for_tests import words

WORDS = words(*(f" w{n}" for n in range(96)))
CLEAN, CORRUPT = (12, 13, 14, 15, 16), (12, 13, 44, 15, 16)  # a word is one more than its number
PAIR = ct.Pair(clean=" w11 w12 w13 w14 w15", corrupt=" w11 w12 w43 w14 w15", answer=" w7", foil=" w8", id="p")
ANSWER, FOIL, LAST = 8, 9, 4
# Plain, LayerNorm with biases, parallel layers, norms behind the parts with soft-caps, scaled parts.
SUMS = ("llama", "gpt2", "gpt_neox", "gemma2", "granite")


@cache
def model_of(name: str) -> Model:
    return accept(build(next(family for family in FAMILIES if family.name == name)), WORDS, name=name)


@pytest.fixture(scope="module")
def llama() -> Model:
    return model_of("llama")


@pytest.mark.parametrize("direction", ["disruption", "restoration"])
@pytest.mark.parametrize("family", SUMS)
def test_it_adds_up_to_the_effect(family: str, direction: str):
    model, sites = model_of(family), ["mlp_out 0 @ 2", "z 1.0 @ last"]
    found = ct.ledger(model, PAIR, sites, direction=direction)
    trace = ct.trace(model, PAIR, components=[], sets={"both": sites}, directions=[direction], progress=False)
    effect = trace.of("sets")[direction].sel(metric="logit_diff").item()
    assert abs(effect) > 0.01
    assert_allclose(found.change.sum(), effect, rtol=0, atol=2e-5)
    rest = found[found.component == "rest"].change.item()
    assert abs(rest) < 1e-5 or family == "gemma2"
    assert abs(found[found.component == "written"].change.item()) < 1e-5


def test_the_line_of_what_is_patched_is_its_direct_path(llama: Model):
    found = ct.ledger(llama, PAIR, ["attn_out 2 @ last"])
    trace = ct.trace(
        llama, PAIR, components=["attn_out"], layers=[2], direct=["mlps_frozen"], direct_norm="frozen", progress=False
    )
    path = trace.effects.direct_path_disruption.sel(metric="logit_diff", position=LAST).item()
    assert abs(path) > 0.01
    line = found[(found.component == "attn_out") & (found.layer == 2)].change.item()
    assert_allclose(line, path, rtol=0, atol=1e-5)
    before = found[(found.layer < 2) | ((found.layer == 2) & (found.component == "embed"))]
    assert (before.change.abs() < 1e-6).all()


def test_each_line_is_what_hooks_say(llama: Model):
    """By hand: what each part writes in both runs, through the base run's scale, the norm's weights and two rows."""
    network, found = llama.network, ct.ledger(llama, PAIR, ["mlp_out 0 @ 2"])

    def run(replaced: torch.Tensor | None = None) -> dict[Any, torch.Tensor]:
        seen, hooks = {}, []

        def keep(place: Any, output: Any) -> Any:
            value = output[0] if isinstance(output, tuple) else output
            if place == ("mlp_out", 0) and replaced is not None:
                value = value.clone()
                value[0, 2] = replaced
            seen[place] = value[0].detach().double()
            return (value, *output[1:]) if isinstance(output, tuple) else value

        for n, layer in enumerate(network.model.layers):
            for name, part in (("attn_out", layer.self_attn), ("mlp_out", layer.mlp)):
                hooks.append(part.register_forward_hook(lambda _, __, out, at=(name, n): keep(at, out)))
        hooks.append(network.model.norm.register_forward_pre_hook(lambda _, args: seen.update(end=args[0][0].double())))
        tokens = CLEAN if replaced is not None or not donor else CORRUPT
        with torch.no_grad():
            network(torch.tensor([tokens]))
        for hook in hooks:
            hook.remove()
        return seen

    donor = True
    there = run()["mlp_out", 0][2].float()
    donor = False
    base, patched = run(), run(there)
    rows = network.lm_head.weight.detach().double()
    scale = (base["end"][LAST].square().mean() + network.model.norm.variance_epsilon).sqrt()
    towards = network.model.norm.weight.detach().double() * (rows[ANSWER] - rows[FOIL]) / scale
    for name, layer in [place for place in base if place != "end"]:
        by_hand = -float((patched[name, layer][LAST] - base[name, layer][LAST]) @ towards)
        line = found[(found.component == name) & (found.layer == layer)].change.item()
        assert_allclose(line, by_hand, rtol=0, atol=1e-5)
    assert found[found.component.isin(["attn_out", "mlp_out"])].change.abs().max() > 0.05


def test_what_is_written_into_the_stream_has_a_line(llama: Model):
    found = ct.ledger(llama, PAIR, ["resid_post 1 @ last"])
    assert abs(found[found.component == "written"].change.item()) > 0.05
    trace = ct.trace(llama, PAIR, components=["resid_post"], layers=[1], positions=["last"], progress=False)
    assert_allclose(found.change.sum(), trace.effects.disruption.sel(metric="logit_diff").item(), rtol=0, atol=2e-5)


def test_several_pairs(llama: Model):
    other = ct.Pair(clean=PAIR.clean + " w20", corrupt=f"{PAIR.corrupt} w20", answer=" w9", foil=" w3", id="q")
    both = ct.ledger(llama, [PAIR, other], ["z 1.0 @ last"])
    alone = ct.ledger(llama, PAIR, ["z 1.0 @ last"])
    assert both.pair.unique().tolist() == ["p", "q"]
    np.testing.assert_allclose(both[both.pair == "p"].change, alone.change, rtol=0, atol=1e-6)
    assert both.attrs["unit"] == "logits"


def test_what_cannot_be_split_is_refused(llama: Model):
    for answer, foil in ((" w7 w9", " w8"), ([" w7", " w9"], " w8"), (" w7", None)):
        pair = ct.Pair(clean=PAIR.clean, corrupt=PAIR.corrupt, answer=answer, foil=foil, id="odd")
        with pytest.raises(InvalidOption, match=r"pair 'odd' has not one answer and one foil"):
            ct.ledger(llama, pair, ["z 1.0 @ last"])
    with pytest.raises(InvalidOption, match="direction"):
        ct.ledger(llama, PAIR, ["z 1.0 @ last"], direction="both")
    with pytest.raises(InvalidOption, match="sites="):
        ct.ledger(llama, PAIR, "z 1.0 @ last")
    with pytest.raises(InvalidOption, match="sites= is empty"):
        ct.ledger(llama, PAIR, [])


def test_layers_that_do_more_than_add_are_refused():
    with pytest.raises(ComponentNotOffered, match="A ledger is not offered on this model"):
        ct.ledger(model_of("opt-350m"), PAIR, ["z 1.0 @ last"])
