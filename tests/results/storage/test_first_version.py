"""Files of version 0.1.0 still open, and say what they said: `v0.1.0/make.py` made them, with that version's code."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import causal_tracing as ct
from causal_tracing.experiments.attribution_result import Attribution
from causal_tracing.report.document import document

HERE = Path(__file__).parent / "v0.1.0"
SAID = json.loads((HERE / "said.json").read_text())
NAMES = ("heads-and-neurons", "noise-and-windows", "run")


@pytest.fixture(params=NAMES)
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, ct.Trace]:
    return request.param, ct.open_trace(shutil.copytree(HERE / request.param, tmp_path / request.param))


def test_every_number_is_what_it_was(opened):
    name, trace = opened
    maps: dict[str, Any] = {"effects": trace.effects, "heads": None, "neurons": None, "evidence": None}
    with np.load(HERE / f"{name}.npz") as expected:
        assert len(expected.files) > 12
        for key in expected.files:
            kind, variable = key.split(" ")
            if maps[kind] is None:
                maps[kind] = trace.evidence().cells if kind == "evidence" else getattr(trace, kind)
            found = maps[kind][variable]
            values = found.values.astype("U16") if found.dtype.kind in "OU" else found.values
            assert_array_equal(values, expected[key], err_msg=key)


def test_the_words_are_what_they_were(opened):
    name, trace = opened
    assert trace.summary() == SAID["words"][name]


def test_the_document_is_what_it_was(opened):
    name, trace = opened
    again = json.loads(json.dumps(document(trace.measurements, all_metrics=True), allow_nan=False))
    assert again == SAID["documents"][name]


def test_they_are_drawn_exported_and_saved_again(opened, tmp_path):
    name, trace = opened
    assert "<html" in trace.to_html()
    assert trace.plot().axes
    assert trace.export(tmp_path / "trace.csv").stat().st_size > 1000
    again = ct.open_trace(trace.save(tmp_path / "again"))
    assert again.effects.identical(trace.effects)
    assert again.summary() == SAID["words"][name]


def test_estimates_still_open():
    found = Attribution.open(HERE / "attribution.json")
    columns = ["component", "layer", "position"]
    table = found.verified.sort_values([*columns, "part"])
    assert len(table) == len(SAID["verified"]) == 14
    for (_, row), said in zip(table.iterrows(), SAID["verified"], strict=True):
        assert [row[name] for name in columns] == [said[name] for name in columns]
        assert (row.part is None or np.isnan(row.part)) == (said["unit"] is None)
        assert row.why == said["why"]
        assert row.estimate == pytest.approx(said["estimate"], abs=1e-9)
        assert row.exact == pytest.approx(said["exact"], abs=1e-9)
    assert {"mlp_out", "z"} == {*found.estimates}
    assert "Estimates are a screen, not effects." in found.summary()
    assert found.to_html().count("<circle") == 14
