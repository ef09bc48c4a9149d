"""Which metrics are measured: of kinds with many cells those that are shown, unless more are asked for."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

import causal_tracing as ct
from causal_tracing.errors import InvalidOption
from causal_tracing.models.model import Model
from causal_tracing.report.document import document
from causal_tracing.results.units import METRICS
from joint import tiny

PAIRS = [
    ct.Pair(
        clean=f" w11 w{12 + n} w13 w14 w15 w16",
        corrupt=f" w11 w{12 + n} w43 w14 w15 w16",
        answer=" w7",
        foil=[" w8", " w2"] if n else " w8",
        id=f"p{n}",
    )
    for n in range(3)
]
ASKED = {"heads": True, "head_positions": ["last"], "neurons": {1: [3, 4]}, "progress": False}


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


@pytest.fixture(scope="module")
def few(model: Model) -> ct.Trace:
    return ct.trace(model, PAIRS, **ASKED)


def test_by_the_one_that_is_shown_or_by_all(model: Model, few: ct.Trace):
    whole = ct.trace(model, PAIRS, metrics="all", **ASKED)
    for kind, names in (("blocks", METRICS), ("heads", ("logit_diff",)), ("neurons", ("logit_diff",))):
        assert tuple(few.of(kind).metric.values) == names
        assert tuple(whole.of(kind).metric.values) == METRICS
        for name in ("restoration", "disruption"):
            both = [trace.of(kind)[name].sel(metric="logit_diff").values for trace in (few, whole)]
            assert_allclose(*both, rtol=0, atol=1e-5)
            assert np.nanmax(abs(both[0])) > 1e-3
    assert_allclose(few.effects.clean, whole.effects.clean, rtol=0, atol=1e-6)
    assert few.provenance["spot_checks"]["largest_difference"] < 1e-5


def test_by_those_that_are_named(model: Model):
    trace = ct.trace(model, PAIRS[0], metric="prob", metrics=["neg_kl"], **ASKED)
    for kind in trace.measurements.kinds:
        assert tuple(trace.of(kind).metric.values) == ("prob", "neg_kl")
    alone = ct.trace(model, PAIRS[0], metrics=[], **ASKED)
    assert tuple(alone.effects.metric.values) == ("logit_diff",)


def test_a_metric_that_was_not_measured_is_refused_by_name(few: ct.Trace):
    with pytest.raises(InvalidOption, match=r"heads .* were measured by logit_diff alone. .*metrics=\['prob'\]"):
        few.top(of="heads", metric="prob")
    said = few.summary(pair="p0", metric="prob")
    assert "resid_post" in said
    assert "head " not in said
    assert "There is no mean of heads over these pairs: they were not measured by prob." in few.summary(metric="prob")


def test_all_that_is_made_of_it(model: Model, few: ct.Trace, tmp_path: Path):
    found = json.loads(json.dumps(document(few.measurements, all_metrics=True), allow_nan=False))
    assert {*found["all_metrics"]} == {*METRICS} - {"entropy"}
    assert "prob" not in few.to_dataframe("heads")
    assert "prob" in few.to_dataframe()
    assert "heads-section" in few.to_html()
    few.save(tmp_path / "saved")
    assert ct.open_trace(tmp_path / "saved").summary() == few.summary()
    ran = ct.run(model, PAIRS, tmp_path / "run", **ASKED)
    assert tuple(ran.heads.metric.values) == ("logit_diff",)
    assert_allclose(ran.heads.restoration, few.heads.restoration, rtol=0, atol=1e-5)


def test_it_is_recorded(few: ct.Trace, model: Model):
    assert few.provenance["options"]["metrics"] is None
    trace = ct.trace(model, PAIRS[0], metrics=["prob"], components=["attn_out"], progress=False)
    assert trace.provenance["options"]["metrics"] == ["prob"]


@pytest.mark.parametrize("wrong", ["most", ["prob", "most"], ["prob", "prob"]])
def test_what_is_no_metric_is_refused(model: Model, wrong: object):
    with pytest.raises(InvalidOption):
        ct.trace(model, PAIRS[0], metrics=wrong, progress=False)  # pyright: ignore[reportArgumentType]


def test_several_tokens_need_every_word(model: Model):
    pair = ct.Pair(clean=PAIRS[0].clean, corrupt=PAIRS[0].corrupt, answer=" w7 w9", foil=" w8", id="long")
    few, whole = (ct.trace(model, pair, metrics=metrics, **ASKED) for metrics in (None, "all"))
    both = [trace.heads.restoration.sel(metric="logit_diff").values for trace in (few, whole)]
    assert_allclose(*both, rtol=0, atol=1e-5)
