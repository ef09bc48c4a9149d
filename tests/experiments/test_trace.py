"""The main job on tiny random models: options, several pairs, words, provenance, and what is refused."""

import re
from typing import Any

import numpy as np
import pytest
import torch

import causal_tracing as ct
from causal_tracing.engine.checks.check import accept
from causal_tracing.errors import ComponentNotOffered, EngineNote, InvalidOption, InvalidPair
from causal_tracing.models.model import Model
from causal_tracing.patching.arrays import Sums
from families import FAMILIES, build
from forked_driver import executed
from traced import ANSWER, CLEAN, CORRUPT, FOIL, TOLERANCE, WORDS, ids, pair, tiny, trace_of_all


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


@pytest.fixture(scope="module")
def trace(model: Model) -> ct.Trace:
    return trace_of_all(model)


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
