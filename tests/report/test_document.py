"""The document of `--json`: what several pairs say together, number by number; undefined is null."""

import json
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import causal_tracing as ct
from causal_tracing.report.document import document
from causal_tracing.report.terminal import maps
from joint import PAIR, others, tiny
from made import synthetic


def told(trace: ct.Trace) -> dict[str, Any]:
    """The document as another program reads it: no NaN, no Infinity."""
    text = json.dumps(document(trace.measurements), allow_nan=False)
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


RECORD: dict[str, Any] = {"clusters": {0: "x", 1: "x"}, "cut": [[0, 0, 0], [0, 0, 1]]}


def test_several_pairs_have_evidence():
    trace = synthetic(1, **RECORD)
    trace.measurements.pairs.clean[0, 11] = np.nan  # no logit_diff
    found, told_ = trace.evidence(), told(trace)["evidence"]
    assert {name: told_[name] for name in ("metric", "unit", "pairs", "clusters", "undefined", "smallest_p")} == {
        "metric": "logit_diff", "unit": "logits", "pairs": 11, "clusters": 10, "undefined": 1, "smallest_p": 2**-9,
    }  # fmt: skip
    assert told_["total"] == {end: float(getattr(found.total, end)) for end in ("estimate", "low", "high")}
    assert (told_["layers"], told_["positions"], told_["components"]) == ([0, 1], [0, 1, 2], ["resid_post"])
    assert told_["status"]["resid_post"] == [[None, None, None], [None, None, "cut"]]
    for effect in ("restoration", "disruption", "interaction"):
        assert told_["cells"][effect]["resid_post"].keys() == {"mean", "low", "high", "p", "p_adjusted", "q"}
        for part, numbers in told_["cells"][effect]["resid_post"].items():
            variable = effect if part == "mean" else f"{effect}_{part}"
            assert_array_equal(np.array(numbers, dtype=float), found.cells[variable].values[0])
        assert told_["cells"][effect]["resid_post"]["p"][1][2] is None  # a cut is in no test
        assert told_["cells"][effect]["resid_post"]["mean"][1][2] is not None
    for name in ("restored_fraction", "lost_fraction"):
        for part in ("mean", "low", "high"):
            numbers = np.array(told_["fractions"][name]["resid_post"][part], dtype=float)
            assert_array_equal(numbers, found.cells[name if part == "mean" else f"{name}_{part}"].values[0])
        assert told_["fractions"][name]["resid_post"]["reason"] == [[""] * 3] * 2
    half, stable = found.peaks["resid_post"]
    assert half.index is not None
    assert told_["peaks"]["resid_post"] == {
        "layer": half.index[0],
        "position": half.index[1],
        "held_out": half.held_out,
        "within_one_layer": stable.within_one_layer,
        "reason": "",
    }


def test_what_few_pairs_cannot_say_is_null():
    trace = synthetic(1, count=3, structural_zero=[[1, 1, 1], [1, 1, 1]], total=0.0)
    found = told(trace)["evidence"]
    assert found["cells"]["restoration"]["resid_post"]["low"] == [[None] * 3] * 2
    assert found["cells"]["restoration"]["resid_post"]["p"] == [[None] * 3] * 2
    assert found["total"]["low"] is None
    assert found["fractions"]["lost_fraction"]["resid_post"]["reason"] == [["fewer than 8 clusters"] * 3] * 2
    nowhere = {"layer": None, "position": None, "held_out": None, "within_one_layer": None}
    assert found["peaks"]["resid_post"] == {**nowhere, "reason": "no cell is eligible"}


def test_where_there_is_no_mean_there_is_a_reason():
    trace = synthetic(1, count=3)
    trace.measurements.pairs.clean_role.values[1, 1:] = "next"
    trace.measurements.pairs.clean_role.values[:, 0] = "before_subject"
    trace.measurements.pairs.clean_role.values[[0, 2], 1:] = "further"
    found = told(trace)["evidence"]
    assert found.keys() == {"reason"}
    assert found["reason"].startswith("These prompts have different lengths and no subjects")


def test_one_pair_has_no_evidence():
    assert "evidence" not in told(synthetic(1, count=1))


RESTORED: dict[str, Any] = {"directions": ["restoration"], "progress": False, "spot_checks": 0}


@pytest.mark.parametrize(
    "options",
    [
        {"components": ["mlp_out"], "knockout": True, "interactions": ["z 1.0 @ last", "z 1.1 @ last"]},
        {"components": [], "senders": ["each z 1 @ last"], "receivers": ["each q 2", "logits"], "knockout": True},
        {"components": [], "knockout": True, "edges": True, "edge_heads": ["1"]},  # the first map is that of the keys
    ],
)
@pytest.mark.parametrize("pairs", [PAIR, others(2)])
def test_maps_of_one_trace_may_be_of_other_directions(options: dict[str, Any], pairs: Any) -> None:
    """Hidden keys are a disruption, whatever else is restored beside them."""
    trace = ct.trace(tiny(), pairs, **options, **RESTORED)
    found = told(trace)
    of = {kind: found if n == 0 else found[kind] for n, kind in enumerate(trace.measurements.kinds)}
    for kind, each in of.items():
        direction = "disruption" if kind == "knockout" else "restoration"
        assert {name for name in each["effects"] if name in ("restoration", "disruption")} == {direction}
    assert trace.summary()
    assert [*maps(trace.measurements, colour=False, most_pairs=1)]
    assert "<svg" in trace._repr_html_()
    assert trace.to_html()
