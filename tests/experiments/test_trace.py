"""The main job on tiny random models: laws of effects against bare hooks, options, several pairs, provenance."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

import causal_tracing as ct
from causal_tracing.engine.checks.check import accept
from causal_tracing.errors import ComponentNotOffered, EngineNote, InvalidOption, InvalidPair
from causal_tracing.models.model import Model
from causal_tracing.patching.arrays import Sums
from causal_tracing.results.units import METRICS
from families import FAMILIES, build
from forked_driver import executed
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


@pytest.fixture(scope="module")
def model() -> Model:
    return accept(build(LLAMA), WORDS, name="tiny", source={"kind": "folder"})


@pytest.fixture(scope="module")
def trace(model: Model) -> ct.Trace:
    return ct.trace(
        model, pair(subject="w14 w15"), components=["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]
    )


def ids(text: str) -> torch.Tensor:
    return torch.tensor([WORDS(text)["input_ids"]])


def logit_diff(logits: torch.Tensor) -> float:
    answer, foil = (ids(text)[0, 0] for text in (ANSWER, FOIL))
    return (logits[0, -1, answer] - logits[0, -1, foil]).item()


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


def test_a_role_is_the_mean_over_its_tokens(model: Model):
    subject = pair(clean=CLEAN, subject="w13 w14 w15 w16 w17")
    each = ct.trace(model, subject).effects
    roles = ct.trace(model, subject, positions=["subject_last", "subject_middle", "last", 3]).effects
    assert roles.position.values.tolist() == ["subject_last", "subject_middle", "last", 3]
    for name in ("restoration", "disruption"):
        for role, positions in (("subject_last", [6]), ("subject_middle", [3, 4, 5]), ("last", [8]), (3, [3])):
            np.testing.assert_allclose(
                roles[name].sel(position=role), each[name].sel(position=positions).mean("position"), atol=TOLERANCE
            )


def test_chosen_layers_positions_and_directions(model: Model, trace: ct.Trace):
    part = ct.trace(model, pair(), components=["mlp_out"], layers=[3, 1], positions=[-1, 3], directions=["disruption"])
    assert part.effects.layer.values.tolist() == [1, 3]
    assert part.effects.position.values.tolist() == [8, 3]
    assert "restoration" not in part.effects
    whole = trace.effects.disruption.sel(component=["mlp_out"], layer=[1, 3], position=[8, 3])
    np.testing.assert_allclose(part.effects.disruption, whole, atol=TOLERANCE)
    strongest = abs(whole.sel(metric="logit_diff")).max().item()
    assert abs(part.top(1).disruption[0]) == pytest.approx(strongest, abs=TOLERANCE)


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


def test_without_a_foil_log_prob_is_shown(model: Model):
    result = ct.trace(model, ct.Pair(clean=CLEAN, corrupt=CORRUPT, answer=ANSWER))
    assert result.measurements.metric == "log_prob"
    assert result.effects.reason.sel(metric="logit_diff").item() == "the pair has no foil"
    assert (result.effects.status.sel(metric="logit_diff").isin(["undefined", "structural_zero"])).all()
    with_foil = ct.trace(model, pair(), metric="prob")
    assert with_foil.measurements.metric == "prob"
    for metric in ("log_prob", "prob", "logit", "neg_kl", "neg_rank"):
        a, b = (found.effects.restoration.sel(metric=metric) for found in (result, with_foil))
        np.testing.assert_allclose(a, b, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("metric", "fields", "message"),
    [
        ("logit_diff", {"foil": None}, r"every pair \(a, b\): it needs a foil. Give foil=, or use metric='log_prob'"),
        ("logit", {"answer": " w7 w9"}, "several tokens has no single logit. Give an answer of one token, or use"),
        ("neg_rank", {"answer": " w7 w9"}, "several tokens has no single rank"),
    ],
)
def test_a_metric_that_no_pair_has_is_refused_before_the_work(model: Model, monkeypatch, metric, fields, message):
    monkeypatch.setattr("causal_tracing.patching.job.open_backend", None)  # nothing runs
    with pytest.raises(InvalidOption, match=message):
        ct.trace(model, [pair(id=name, **fields) for name in "ab"], metric=metric)


def test_a_pair_that_lacks_the_metric_is_undefined_beside_those_that_have_it(model: Model):
    found = ct.trace(model, [pair(id="with"), pair(id="without", foil=None)], metric="logit_diff", spot_checks=16)
    assert found.effects.total_effect.sel(metric="logit_diff").isnull().values.tolist() == [False, True]
    assert found.effects.reason.sel(metric="logit_diff").values.tolist() == ["", "the pair has no foil"]
    checked = found.provenance["spot_checks"]
    assert 0 < checked["cells"] < 16  # of the pair that has numbers
    assert checked["largest_difference"] < TOLERANCE


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


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"components": ["mlp_uot"]}, InvalidOption, "no component 'mlp_uot'. Did you mean 'mlp_out'"),
        ({"components": "mlp_out"}, InvalidOption, r"as a list, such as \['mlp_out'\]"),
        ({"components": []}, InvalidOption, "No component was asked for"),
        ({"layers": [4]}, InvalidOption, "no layer 4: tiny has layers 0 to 3"),
        ({"positions": [9]}, InvalidOption, "no position 9: the longest prompt has 9 tokens"),
        ({"positions": [-12]}, InvalidOption, "no position -12: the longest prompt has 9 tokens"),
        ({"positions": []}, InvalidOption, "positions= is empty"),
        (
            {"positions": ["subject_last"]},
            InvalidOption,
            "No pair has a token in the role 'subject_last'. Give the pairs",
        ),
        ({"positions": ["lats"]}, InvalidOption, "no position 'lats'. Did you mean 'last'"),
        ({"directions": ["both"]}, InvalidOption, "no direction 'both'"),
        ({"metric": "entropy"}, InvalidOption, "no metric 'entropy' to trace by"),
        ({"engine": "warp"}, InvalidOption, "no engine 'warp'"),
        ({"budget": 0}, InvalidOption, "must be a whole number of at least 1"),
        ({"spot_checks": -1}, InvalidOption, "at least 0"),
        ({"spot_checks": 10**13}, InvalidOption, r"spot_checks= \(cells\) must be 100,000 at most"),
    ],
)
def test_bad_options_get_one_clear_error(model: Model, options: dict[str, Any], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        ct.trace(model, pair(), **options)


def test_a_model_that_was_not_loaded_is_refused():
    """In a process of its own: here the tests' type checker would speak first."""
    calls = "(lambda: ct.trace('demo', []), lambda: ct.preview(None, []), lambda: ct.check('demo'))"
    code = f"""
import causal_tracing as ct
for call in {calls}:
    try:
        call()
    except ct.CausalTracingError as error:
        print(error)
"""
    done = executed(code)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert [line.split(".")[0].split()[-1] for line in said] == ["str", "NoneType", "str"]
    assert all("Load it first" in line for line in said)


def test_a_role_at_other_places_in_the_two_prompts_is_refused(model: Model):
    moved = pair(subject="w14 w15", corrupt_subject="w15 w46")
    with pytest.raises(InvalidPair, match="role 'subject_last' is at position 4 in the clean prompt and at position 5"):
        ct.trace(model, moved, positions=["subject_last"])


def test_a_prompt_longer_than_the_context_is_refused_where_positions_are_learned():
    long = " w1" * 65
    gpt2 = accept(build(next(family for family in FAMILIES if family.name == "gpt2")), WORDS, name="tiny")
    with pytest.raises(InvalidPair, match="has 65 tokens; tiny takes 64 at most"):
        ct.trace(gpt2, pair(clean=long, corrupt=long))


def test_a_component_that_the_model_lacks_is_refused_by_name():
    parallel = next(family for family in FAMILIES if family.name == "gpt_neox")
    neox = accept(build(parallel), WORDS, name="neox")
    with pytest.raises(ComponentNotOffered, match=r"resid_mid is not offered on this model \(gpt_neox\): .*parallel"):
        ct.trace(neox, pair(), components=["resid_mid"])


def test_spot_checks_would_notice_a_wrong_number(model: Model, monkeypatch: pytest.MonkeyPatch):
    right = ct.trace(model, pair(), spot_checks=20).provenance["spot_checks"]
    assert right["cells"] == 21
    assert right["largest_difference"] < TOLERANCE
    assert ct.trace(model, pair(), spot_checks=0).provenance["spot_checks"] == {"cells": 0, "largest_difference": None}

    add = Sums.add
    monkeypatch.setattr(Sums, "add", lambda self, cell, value, **known: add(self, cell, value + 1.0, **known))
    on_replay = pytest.warns(EngineNote, match=r"depends on what is run beside it \(replay\): of .. cells")
    with on_replay, pytest.warns(EngineNote, match="The packed engine is wrong here"):
        wrong = ct.trace(model, pair(), spot_checks=20)
    assert wrong.provenance["spot_checks"]["largest_difference"] > 0.9
    assert "run again on whole forwards differ" in wrong.summary()


def test_the_provenance_says_how_to_make_it_again(model: Model, trace: ct.Trace):
    record = trace.provenance
    assert record["model"] == "tiny"
    assert record["attention"] == "sdpa"
    assert record["dtype"] == "float32"
    assert record["options"]["seed"] == 0
    assert record["worlds"] == 2 + 2 * 5 * 4 * 9
    assert 0 < record["worlds_skipped"] < record["worlds"]
    assert record["pairs"] == [
        {"clean": CLEAN, "answer": ANSWER, "corrupt": CORRUPT, "foil": FOIL, "subject": "w14 w15", "id": "pair-0"}
    ]
    assert f"'--clean={CLEAN}'" in record["command"]
    assert {"torch", "transformers", "python", "causal-tracing"} <= set(record["versions"])
    hub = accept(model.network, WORDS, name="org/name", source={"kind": "hub", "commit": "a1b2", "revision": "main"})
    assert "--model org/name --revision a1b2 " in ct.trace(hub, pair(), layers=[0]).provenance["command"]
    in_memory = accept(model.network, WORDS, name="mine")
    assert ct.trace(in_memory, pair(), layers=[0]).provenance["command"] is None


def test_curves_tables_and_words_come_from_the_effects(trace: ct.Trace):
    curve = trace.curve(3, "disruption")
    assert curve.dims == ("component", "layer")
    np.testing.assert_array_equal(curve, trace.effects.disruption.sel(metric="logit_diff", pair="pair-0", position=3))
    table = trace.top(5, by="interaction", component="mlp_out")
    sizes = abs(trace.effects.interaction.sel(metric="logit_diff", pair="pair-0", component="mlp_out"))
    assert len(table) == 5
    first = table.iloc[0]
    assert abs(first.disruption - first.restoration) == pytest.approx(sizes.max().item())
    assert repr(trace) == trace.summary()
    with pytest.raises(InvalidOption, match="no position 99 in this trace"):
        trace.curve(99)


def test_the_preview_shows_what_was_understood(model: Model):
    (shown,) = ct.preview(model, pair())
    with torch.no_grad():
        probs = model.network(ids(CLEAN)).logits[0, -1].softmax(-1)
    assert [choice.token for choice in shown.clean_top] == [WORDS.decode([n]) for n in probs.topk(5).indices.tolist()]
    assert shown.clean_top[0].prob == pytest.approx(probs.max().item(), abs=1e-5)
    assert "differ  at positions 3 ( w14/ w44), 5 ( w16/ w46)" in str(shown)
    assert any("first choice is" in warning for warning in shown.warnings)
    best = WORDS.decode([int(probs.argmax())])
    assert not any("first choice is" in warning for warning in ct.preview(model, pair(answer=best))[0].warnings)
    assert any("same tokens" in warning for warning in ct.preview(model, pair(corrupt=CLEAN))[0].warnings)


def test_an_answer_of_several_tokens_is_the_first_choice_by_its_first(model: Model):
    with torch.no_grad():
        best = WORDS.decode([int(model.network(ids(CLEAN)).logits[0, -1].argmax())])
    for answer, wrong in ((f"{best} w3", False), (" w3 w5", True)):
        found = ct.trace(model, pair(answer=answer, foil=" w9 w8"), components=["mlp_out"], layers=[1])
        assert ("first choice is" in found.summary()) == wrong
        data = found.measurements.pairs
        assert WORDS.decode([data.answer_id.item()]) == answer[: answer.index(" ", 1)]
        assert [WORDS.decode([n]) for n in data.corrupt_top_id.values[0]] == data.corrupt_top.values[0].tolist()


def test_both_engines_give_the_same_trace(model):
    pairs = [pair(), ct.Pair(clean=" w21 w22 w23", corrupt=" w21 w25 w23", answer=ANSWER, foil=FOIL)]
    packed, replayed = (ct.trace(model, pairs, engine=engine) for engine in ("packed", "replay"))
    assert packed.provenance["engine"] == "packed"
    assert replayed.provenance["engine"] == "replay"
    for name in ("restoration", "disruption"):
        np.testing.assert_allclose(packed.effects[name], replayed.effects[name], rtol=0, atol=1e-4)
    assert packed.provenance["worlds_skipped"] == replayed.provenance["worlds_skipped"]
    assert packed.provenance["spot_checks"]["largest_difference"] <= 1e-4


def test_python_is_told_why_the_packed_engine_is_not_used():
    bloom = accept(build(next(family for family in FAMILIES if family.name == "bloom")), WORDS, name="bloom")
    with pytest.warns(EngineNote, match="is not used on bloom: layer 0 does not attend"):
        found = ct.trace(bloom, pair(), components=["resid_post"], layers=[1])
    assert found.provenance["engine"] == "replay"
    assert "replaceable" in found.provenance["engine_note"]


def test_an_estimate_counts_what_the_trace_then_runs(model):
    found = ct.estimate(model, pair())
    trace = ct.trace(model, pair(), spot_checks=0)
    assert (found.worlds, found.worlds_skipped) == (trace.provenance["worlds"], trace.provenance["worlds_skipped"])
    assert found.engine == "packed"
    assert found.naive_token_layers == found.worlds * 9 * 4
    # Both unedited runs, whole, and by algebra: resid_post and the two components inside layers, both directions.
    stream = [0, 21, 42, 3 * 6]  # positions 3 to 8: 6 + 5 + 4 + 3 + 2 + 1 tokens a layer before; the last: one a world
    inside = [6, 21 + 6, 42 + 6, 3 * 6 + 1]
    assert found.token_layers == 2 * 9 * 4 + 2 * (sum(stream) + 2 * sum(inside))
    assert found.memory > 0
    assert found.seconds > 0


def test_a_total_effect_below_zero_is_carried_by_what_goes_its_way(model):
    """With answer and foil exchanged every number changes its sign, and the words name the same places."""
    one, other = (
        ct.trace(model, pair(answer=answer, foil=foil), spot_checks=0)
        for answer, foil in ((ANSWER, FOIL), (FOIL, ANSWER))
    )
    totals = [trace.effects.total_effect.sel(metric="logit_diff").item() for trace in (one, other)]
    assert min(totals) < 0 < max(totals)
    places = []
    for trace in (one, other):
        said = next(line for line in trace.summary().splitlines() if "the difference rides" in line)
        places.append(re.findall(r"on (?:token|the last token)[^,]*? in layers? [\d to]+", said))
    assert places[0] == places[1] != []
