"""A metric of the user's own: equal to the built-in one of its formula, recorded by source, refused where wrong."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import causal_tracing as ct
from causal_tracing.errors import InvalidOption, InvalidResults
from causal_tracing.models.model import Model
from causal_tracing.report.document import document
from causal_tracing.results.storage.run_folder import read_manifest
from joint import tiny

PAIR = ct.Pair(
    clean=" w11 w12 w13 w14 w15 w16", corrupt=" w11 w12 w43 w14 w15 w16", answer=" w7", foil=[" w8", " w2"], id="p"
)
LONG = ct.Pair(clean=PAIR.clean, corrupt=PAIR.corrupt, answer=" w7 w9", foil=" w8", id="long")


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


def margin(logits: Any, clean: Any, answers: Any, foils: Any) -> Any:
    return logits.gather(-1, answers)[:, 0] - logits.gather(-1, foils).logsumexp(-1)


def kl(log_probs: Any, clean: Any, answers: Any, foils: Any) -> Any:
    return (clean.exp() * (log_probs - clean)).sum(-1)


MARGIN = ct.Metric("margin", "logits", margin, needs_foil=True, of_texts=lambda answers, foils: answers - foils)
KL = ct.Metric("kl", "nats", kl, takes="log_probs", reads_texts=False)
BARE = ct.Metric("bare", "logits", margin)


@pytest.mark.parametrize("engine", ["packed", "replay"])
def test_one_of_the_same_formula_is_the_built_in_one(model: Model, engine: str):
    trace = ct.trace(model, [PAIR, LONG], metric=[MARGIN, KL, "prob"], metrics="all", heads=True, engine=engine)
    assert trace.effects.metric.values.tolist()[:4] == ["margin", "kl", "prob", "logit_diff"]
    assert trace.effects.unit.sel(metric="margin").item() == "logits"
    for table in (trace.effects, trace.heads):
        for mine, built_in in (("margin", "logit_diff"), ("kl", "neg_kl")):
            for name in ("restoration", "disruption"):
                ours, theirs = (table[name].sel(metric=metric).values for metric in (mine, built_in))
                np.testing.assert_allclose(ours, theirs, atol=1e-5)
                assert np.nanmax(abs(ours)) > 0.1
    assert (trace.effects.reason.sel(metric=["margin", "kl"]) == "").all()


def test_it_is_the_metric_of_all_that_a_trace_says_and_is_written_to(model: Model, tmp_path: Path):
    trace = ct.trace(model, PAIR, metric=MARGIN, components=["resid_post"])
    said = document(trace.measurements)
    assert (said["metric"], said["unit"]) == ("margin", "logits")
    kept = said["provenance"]["options"]["metric"]
    assert kept == MARGIN.record()
    assert {*kept} == {"name", "unit", "source_sha256"}
    assert said["provenance"]["command"] is None
    assert "a metric is a function, which no command line can name" in trace.to_html()
    assert "margin" in trace.to_dataframe().columns
    again = ct.open_trace(trace.save(tmp_path / "saved"))
    assert again.summary() == trace.summary()
    assert again.effects.equals(trace.effects)
    assert trace.provenance["spot_checks"]["largest_difference"] < 1e-4


def test_a_run_folder_goes_on_with_the_same_function_alone(model: Model, tmp_path: Path):
    options: dict[str, Any] = {"components": ["mlp_out"]}
    folder = tmp_path / "run"
    first = ct.run(model, [PAIR], folder, metric=MARGIN, **options)
    again = ct.Metric("margin", "logits", margin, needs_foil=True, of_texts=lambda answers, foils: answers - foils)
    assert ct.run(model, [PAIR], folder, metric=MARGIN, **options).effects.equals(first.effects)
    assert again.record()["name"] == "margin"
    other = ct.Metric("margin", "logits", kl, needs_foil=True)
    with pytest.raises(InvalidResults, match=r"was begun with something else: .*metric"):
        ct.run(model, [PAIR], folder, metric=other, **options)
    with pytest.raises(InvalidResults, match=r"was begun with something else: .*metric"):
        ct.run(model, [PAIR], folder, metric="logit_diff", **options)
    assert read_manifest(folder)["spec"]["options"]["metric"] == MARGIN.record()


def scaled(scale: Any) -> ct.Metric:
    return ct.Metric("scaled", "logits", lambda logits, clean, answers, foils: logits[:, 0] * scale)


def test_what_a_function_closes_over_is_a_part_of_its_record():
    assert scaled(2.0).record() == scaled(2.0).record()
    assert scaled(2.0).record() != scaled(3.0).record()
    assert scaled(torch.tensor([1.0, 2.0])).record() != scaled(torch.tensor([1.0, 3.0])).record()
    assert MARGIN.record() != BARE.record() | {"name": "margin"}
    with pytest.raises(InvalidOption, match="metric scaled: its function uses object '<object .* from outside"):
        scaled(object()).record()


def test_without_a_formula_for_texts_of_several_tokens_it_is_undefined_for_them_with_the_reason(model: Model):
    found = ct.trace(model, [PAIR, LONG], metric=[BARE], components=["mlp_out"]).effects.sel(metric="bare")
    assert found.reason.values.tolist() == ["", "an answer of several tokens has no single bare"]
    assert found.total_effect.isnull().values.tolist() == [False, True]
    needing = ct.Metric("bare", "logits", margin, needs_foil=True)  # a foil is there: another one would be no remedy
    for metric in (BARE, needing):
        with pytest.raises(InvalidOption, match=r"metric='bare' is undefined for every pair .* Give an answer of one"):
            ct.trace(model, LONG, metric=metric)
    with pytest.raises(InvalidOption, match=r"undefined for every pair \(p\): it needs a foil. Give foil=, or"):
        ct.trace(model, replace(PAIR, foil=None), metric=needing)


def test_a_unit_is_text_on_every_page(model: Model):
    """A unit may be any text, and so may that of a trace which somebody else has saved."""
    metric = ct.Metric("slanted", "<i>logits</i>", margin, needs_foil=True)
    asked: dict[str, Any] = {"metric": metric, "components": ["mlp_out"], "progress": False}
    for page in (ct.trace(model, PAIR, **asked).to_html(), ct.attribute(model, PAIR, **asked).to_html()):
        assert "<i>" not in page
        assert "(&lt;i&gt;logits&lt;/i&gt;)" in page


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "two words"}, "A metric's name must be a Python name, and none of pair, cluster"),
        ({"name": "status"}, "it is 'status'"),
        ({"unit": ""}, "metric m: the unit must be a text, such as 'logits'; it is ''"),
        ({"takes": "probs"}, "metric m: takes must be 'logits' or 'log_probs'; it is 'probs'"),
        ({"needs_foil": 1}, "metric m: needs_foil must be True or False; it is 1"),
        ({"measure": torch.nn.Identity()}, "metric m: measure must be a function (def or lambda), so that it can be"),
        ({"few": 1}, "metric m: few must be True or False; it is 1"),
        ({"few": True, "takes": "log_probs"}, "metric m: log-probabilities need all logits"),
        ({"of_texts": 3}, "metric m: of_texts must be a function (def or lambda)"),
    ],
)
def test_a_metric_that_cannot_be_meant_is_one_clear_error(given: dict[str, Any], said: str):
    unchecked = ct.Metric.__new__(ct.Metric)  # the tests' own type checker would speak first
    fields = {"name": "m", "unit": "logits", "measure": margin, "takes": "logits", "needs_foil": False}
    for name, value in (fields | {"reads_texts": True, "of_texts": None, "few": False} | given).items():
        object.__setattr__(unchecked, name, value)
    with pytest.raises(InvalidOption) as error:
        unchecked.__post_init__()
    assert said in str(error.value)


def lone(measure: Any) -> ct.Metric:
    return ct.Metric("lone", "logits", measure)


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (lone(lambda logits, clean, answers, foils: logits), r"must give one number a world, a tensor \[3\]"),
        (lone(lambda logits, clean, answers, foils: 3.0), r"it gave 3.0"),
        (lone(lambda logits, clean, answers, foils: logits.softmax(0)[:, 0]), "depends on the worlds beside it"),
        (lone(lambda logits, clean: logits[:, 0]), r"its function fails on logits \[3, 97\].*TypeError"),
        (ct.Metric("prob", "nats", margin), "There is a metric 'prob' already: give yours another name"),
        ([MARGIN, MARGIN], "The metric 'margin' is asked for twice"),
        (["prob", "probs"], "There is no metric 'probs' to trace by"),
        ([], "No metric was asked for"),
        (["entropy"], "There is no metric 'entropy' to trace by"),
    ],
)
def test_a_function_that_makes_no_number_a_world_is_refused_before_the_work(model: Model, metric: Any, said: str):
    with pytest.raises(InvalidOption, match=said):
        ct.trace(model, PAIR, metric=metric)
