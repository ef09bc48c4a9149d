"""Labels of pairs, whatever is in them: what is saved opens again, and its file of pairs is what was traced."""

import json
from pathlib import Path
from typing import Any

import pytest

import causal_tracing as ct
from causal_tracing.errors import InvalidPair
from joint import tiny
from made import pair

ASKED: dict[str, Any] = {"layers": [0], "components": ["mlp_out"], "progress": False}


@pytest.mark.parametrize(
    "labels",
    [{"deep": {9: 1, 10: 2}}, {"deep": {1: 1, "b": [None, True]}}, {"list": [{9: 1, 10: 2}]}, {"deep": {None: (1, 2)}}],
)
def test_numbers_as_names_are_texts_in_what_is_saved(labels: dict[str, Any], tmp_path: Path) -> None:
    asked, told = [pair(0, labels=labels), pair(1)], json.loads(json.dumps(labels))
    trace = ct.trace(tiny(), asked, **ASKED)
    trace.save(tmp_path / "trace")
    opened = ct.open_trace(tmp_path / "trace")
    assert opened.effects.identical(trace.effects)
    assert opened.provenance["pairs"] == trace.provenance["pairs"]
    assert ct.read_pairs(tmp_path / "trace" / "pairs.jsonl")[0].labels == told


def test_a_run_goes_on_with_the_pairs_of_its_own_file(tmp_path: Path) -> None:
    asked = [pair(0, labels={"deep": {9: "a", 10: "b"}}), pair(1)]
    trace = ct.run(tiny(), asked, tmp_path / "run", **ASKED)
    again = ct.run(tiny(), ct.read_pairs(tmp_path / "run" / "pairs.jsonl"), tmp_path / "run", **ASKED)
    assert again.effects.identical(trace.effects)


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], "half \ud800"])
def test_what_a_file_of_pairs_could_not_hold_is_refused_before_anything_is_traced(value: Any) -> None:
    with pytest.raises(InvalidPair, match="the label 'x' is a .*, which JSON cannot hold"):
        pair(0, labels={"x": value})
