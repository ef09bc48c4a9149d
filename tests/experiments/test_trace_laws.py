"""Laws of the effects of a trace, and its numbers against bare hooks."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

import causal_tracing as ct
from causal_tracing.engine.checks.check import accept
from causal_tracing.models.model import Model
from causal_tracing.results.units import METRICS
from families import build
from traced import ANSWER, CLEAN, CORRUPT, FOIL, LLAMA, TOLERANCE, WORDS, ids, logit_diff, pair, tiny, trace_of_all


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


@pytest.fixture(scope="module")
def trace(model: Model) -> ct.Trace:
    return trace_of_all(model)


def hooked(network: Any, text: str, module: Any, hook: Callable[..., Any]) -> float:
    """One forward with one bare hook."""
    handle = module.register_forward_hook(hook)
    try:
        with torch.no_grad():
            return logit_diff(network(ids(text)).logits)
    finally:
        handle.remove()


def output_of(network: Any, text: str, module: Any) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    hooked(network, text, module, lambda m, a, out: seen.append(out[0] if isinstance(out, tuple) else out))
    return seen[0]


def written(value: torch.Tensor, positions: Sequence[int]) -> Callable[..., Any]:
    def hook(module: Any, args: Any, out: Any) -> Any:
        new = (out[0] if isinstance(out, tuple) else out).clone()
        new[:, positions] = value[:, positions]
        return (new, *out[1:]) if isinstance(out, tuple) else new

    return hook


MODULES = {"attn_out": "self_attn", "mlp_out": "mlp", "resid_post": ""}


@pytest.mark.parametrize("component", MODULES)
def test_law_19_the_identities_hold_of_four_separately_hooked_runs(model: Model, trace: ct.Trace, component: str):
    network, found = model.network, trace.effects.sel(metric="logit_diff", pair="pair-0", component=component)
    with torch.no_grad():
        clean, corrupt = (logit_diff(network(ids(text)).logits) for text in (CLEAN, CORRUPT))
    for layer in range(model.num_layers):
        module = network.model.layers[layer].get_submodule(MODULES[component])
        values = {text: output_of(network, text, module) for text in (CLEAN, CORRUPT)}
        for position in (2, 3, 4, 8):
            restored = hooked(network, CORRUPT, module, written(values[CLEAN], [position]))
            disrupted = hooked(network, CLEAN, module, written(values[CORRUPT], [position]))
            cell = found.sel(layer=layer, position=position)
            expected = {
                "total_effect": clean - corrupt,
                "restoration": restored - corrupt,
                "disruption": clean - disrupted,
                "bypass": disrupted - corrupt,
                "bypass_given_restored": clean - restored,
                "interaction": (clean - disrupted) - (restored - corrupt),
            }
            for name, value in expected.items():
                assert cell[name].item() == pytest.approx(value, abs=TOLERANCE), (name, layer, position)
            total = cell.total_effect.item()
            assert total == pytest.approx(cell.bypass.item() + cell.disruption.item(), abs=1e-9)
            assert total == pytest.approx(cell.bypass_given_restored.item() + cell.restoration.item(), abs=1e-9)


def test_the_total_effect_is_large_enough_to_see_errors(trace: ct.Trace):
    assert abs(trace.effects.total_effect.sel(metric="logit_diff").item()) > 0.5
    assert (abs(trace.effects.restoration.sel(metric="logit_diff")) > 100 * TOLERANCE).sum() > 50


def test_law_20_without_a_difference_every_effect_is_zero(model: Model):
    same = ct.trace(model, pair(corrupt=CLEAN), positions="each").effects
    assert (same.status.sel(metric="logit_diff") == "structural_zero").all()
    ranked = [name for name in METRICS if name != "entropy"]
    for name in ("restoration", "disruption", "interaction"):
        assert (same[name].sel(metric=ranked) == 0).all()


def test_laws_17_and_21_exchanging_the_roles(model: Model):
    components = ["resid_pre", "attn_out", "mlp_out", "resid_post"]
    plain = ct.trace(model, pair(), components=components).effects
    prompts = ct.trace(model, pair(clean=CORRUPT, corrupt=CLEAN), components=components).effects
    everything = ct.trace(
        model, pair(clean=CORRUPT, corrupt=CLEAN, answer=FOIL, foil=ANSWER), components=components
    ).effects
    for metric in ("logit_diff", "log_prob", "logit", "prob"):  # clean and corrupt exchanged, answer and foil kept
        a, b = plain.sel(metric=metric), prompts.sel(metric=metric)
        np.testing.assert_allclose(a.total_effect, -b.total_effect, atol=TOLERANCE)
        np.testing.assert_allclose(a.restoration, -b.disruption, atol=TOLERANCE)
        np.testing.assert_allclose(a.disruption, -b.restoration, atol=TOLERANCE)
    a, c = (found.sel(metric="logit_diff") for found in (plain, everything))  # answer and foil exchanged too
    np.testing.assert_allclose(a.total_effect, c.total_effect, atol=TOLERANCE)
    np.testing.assert_allclose(a.restoration, c.disruption, atol=TOLERANCE)
    np.testing.assert_allclose(a.disruption, c.restoration, atol=TOLERANCE)


def test_law_22_a_dead_component_has_no_effect():
    network = build(LLAMA)
    torch.nn.init.zeros_(network.model.layers[2].self_attn.o_proj.weight)
    torch.nn.init.zeros_(network.model.layers[1].mlp.down_proj.weight)
    found = ct.trace(accept(network, WORDS, name="dead"), pair()).effects.sel(metric="logit_diff")
    for component, layer in (("attn_out", 2), ("mlp_out", 1)):
        dead = found.sel(component=component, layer=layer)
        assert abs(dead.restoration).max() < TOLERANCE
        assert abs(dead.disruption).max() < TOLERANCE
        assert abs(found.restoration.sel(component=component)).max() > 0.05


def test_law_22_a_cut_has_the_total_effect_and_is_marked(trace: ct.Trace):
    found = trace.effects.sel(metric="logit_diff", pair="pair-0")
    cuts = [
        (str(component), layer, position)
        for component in found.component.values
        for layer in found.layer.values
        for position in found.position.values
        if found.status.sel(component=component, layer=layer, position=position) == "cut"
    ]
    assert cuts == [("resid_mid", 3, 8), ("resid_post", 3, 8)]
    for component, layer, position in cuts:
        cell = found.sel(component=component, layer=layer, position=position)
        for name in ("restoration", "disruption"):
            assert cell[name].item() == pytest.approx(found.total_effect.item(), abs=TOLERANCE)


def test_where_one_token_differs_its_embedding_is_a_cut(model: Model):
    one = ct.trace(model, pair(corrupt=CLEAN.replace("w14", "w44")), components=["resid_pre", "resid_post"])
    found = one.effects.sel(metric="logit_diff", pair="pair-0")
    assert found.status.sel(component="resid_pre", layer=0, position=3) == "cut"
    assert found.status.sel(component="resid_pre", layer=0, position=4) == "structural_zero"
    assert found.status.sel(component="resid_post", layer=0, position=3) == "ok"


def test_a_difference_in_the_last_token_alone_makes_every_layer_a_cut_there(model: Model):
    last = ct.trace(model, pair(corrupt=CLEAN.replace("w19", "w49"))).effects.sel(metric="logit_diff", pair="pair-0")
    assert (last.status.sel(component="resid_post", position=8) == "cut").all()
    np.testing.assert_allclose(
        last.restoration.sel(component="resid_post", position=8), last.total_effect.item(), atol=TOLERANCE
    )
    assert (last.status.sel(component="mlp_out", position=8) == "ok").all()


def test_together_is_one_world_a_layer_against_bare_hooks(model: Model):
    network = model.network
    result = ct.trace(model, pair(), positions="together")
    found = result.effects.sel(metric="logit_diff", pair="pair-0")
    assert found.position.values.tolist() == ["together"]
    assert (found.status.sel(component="resid_post") == "cut").all()
    np.testing.assert_allclose(found.restoration.sel(component="resid_post"), found.total_effect.item(), atol=TOLERANCE)
    corrupt = found.corrupt.item()
    for component in ("attn_out", "mlp_out"):
        assert (found.status.sel(component=component) == "ok").all()
        for layer in range(model.num_layers):
            module = network.model.layers[layer].get_submodule(MODULES[component])
            whole = written(output_of(network, CLEAN, module), range(9))
            expected = hooked(network, CORRUPT, module, whole) - corrupt
            assert found.restoration.sel(component=component, layer=layer).item() == pytest.approx(
                expected, abs=TOLERANCE
            )
    words = result.summary()
    assert "every layer of resid_post is a complete cut" in words
    assert "Strongest mlp_out site" in words


def test_law_31_a_pair_does_not_depend_on_its_neighbours(model: Model):
    pairs = [
        pair(id="a"),
        pair(id="short", clean=" w1 w2 w3", corrupt=" w1 w5 w3"),
        pair(id="b", answer=" w20", foil=" w21"),
        *(pair(id=f"more-{n}", clean=CLEAN.replace("w12", f"w{60 + n}"), corrupt=CORRUPT) for n in range(8)),
    ]
    together = ct.trace(model, pairs)
    backwards = ct.trace(model, pairs[::-1], budget=200_000)
    for alone in (ct.trace(model, one) for one in pairs[:3]):
        name = alone.effects.pair.item()
        length = alone.effects.sizes["position"]
        for others in (together, backwards):
            for effect in ("restoration", "disruption", "total_effect"):
                here = others.effects[effect].sel(pair=name)
                if "position" in here.dims:
                    assert here.isel(position=slice(length, None)).isnull().all()
                    here = here.isel(position=slice(length))
                np.testing.assert_allclose(here, alone.effects[effect].sel(pair=name), atol=TOLERANCE)
    short = together.effects.sel(pair="short", metric="logit_diff")
    assert (short.status.isel(position=slice(3, None)) == "unpaired").all()
    assert "11 pairs" in together.summary()
    assert "short: total effect" in together.summary()
    assert "pair short" not in together.summary(pair="short")


def test_all_metrics_come_from_the_same_logits_as_bare_hooks_give(model: Model, trace: ct.Trace):
    network, module = model.network, model.network.model.layers[1].mlp
    value = output_of(network, CLEAN, module)
    handle = module.register_forward_hook(written(value, [3]))
    with torch.no_grad():
        patched = network(ids(CORRUPT)).logits[0, -1].double().log_softmax(-1)
        handle.remove()
        clean = network(ids(CLEAN)).logits[0, -1].double().log_softmax(-1)
    answer = ids(ANSWER)[0, 0]
    expected = {
        "log_prob": patched[answer].item(),
        "prob": patched[answer].exp().item(),
        "neg_kl": -(clean.exp() * (clean - patched)).sum().item(),
        "neg_rank": -int((patched > patched[answer]).sum()),
        "entropy": -(patched.exp() * patched).sum().item(),
    }
    cell = trace.measurements.numbers().restored.sel(pair="pair-0", component="mlp_out", layer=1, position=3)
    for metric, value in expected.items():
        assert cell.sel(metric=metric).item() == pytest.approx(value, abs=TOLERANCE), metric
