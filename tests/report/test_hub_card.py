"""A folder for a data hub: what is in it, what its card says, and that it appears whole or not at all."""

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

import causal_tracing as ct
from causal_tracing.cli import app as cli
from causal_tracing.errors import InvalidResults, MachineError
from causal_tracing.report import hub_card as module
from made import synthetic
from pages import with_units


def front_matter(card: str) -> dict[str, Any]:
    _, front, _ = card.split("---\n", 2)
    return yaml.safe_load(front)


def test_the_folder_has_all_that_was_measured_and_where_it_comes_from(tmp_path: Path):
    trace = ct.Trace(with_units())
    trace.measurements.provenance["command"] = "causal-tracing trace --model 'a``b' --clean=x"  # pyright: ignore[reportIndexIssue]
    folder = trace.to_hub(tmp_path / "made" / "hub")
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "effects.parquet", "heads.parquet", "neurons.parquet", "pairs.jsonl", "manifest.json",
        "report.html",
    }  # fmt: skip
    for kind, name in (("blocks", "effects"), ("heads", "heads"), ("neurons", "neurons")):
        assert len(pd.read_parquet(folder / f"{name}.parquet")) == len(trace.to_dataframe(kind))
    assert json.loads((folder / "manifest.json").read_text()) == trace.provenance
    assert (folder / "report.html").read_text() == trace.to_html()
    card = (folder / "README.md").read_text()
    assert front_matter(card)["configs"] == [
        {"config_name": "blocks", "data_files": "effects.parquet"},
        {"config_name": "heads", "data_files": "heads.parquet"},
        {"config_name": "neurons", "data_files": "neurons.parquet"},
    ]
    assert "````````\ncausal-tracing trace --model 'a``b' --clean=x\n````````" in card
    assert "| model | `toy` |" in card
    assert {path.name for path in folder.parent.iterdir()} == {"hub"}


def test_a_models_name_cannot_end_the_front_matter(tmp_path: Path):
    trace = synthetic(0, record={"model": 'x"\n---\n# ` y'})
    card = module.card(trace.measurements)
    assert front_matter(card)["pretty_name"] == 'Causal trace of x"\n---\n# ` y'
    assert '| model | `x" --- # y` |' in card
    trace.to_hub(tmp_path / "hub")
    assert [json.loads(line)["id"] for line in (tmp_path / "hub" / "pairs.jsonl").read_text().splitlines()] == [
        f"p{n}" for n in range(12)
    ]


def test_what_is_there_stays_and_what_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trace = synthetic(0)
    trace.to_hub(tmp_path / "hub")
    with pytest.raises(InvalidResults, match="hub exists already"):
        trace.to_hub(tmp_path / "hub")

    def full(*_: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(module, "_fill", full)
    with pytest.raises(MachineError, match="other could not be written: the disk is full"):
        trace.to_hub(tmp_path / "other")
    assert {path.name for path in tmp_path.iterdir()} == {"hub"}


def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    synthetic(0).save(tmp_path / "run")

    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["causal-tracing", "export", str(tmp_path / "run"), *words])
        try:
            cli.main()
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else 1
        return 0

    assert run(str(tmp_path / "hub"), "--hub-card") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'hub'}\n"
    assert front_matter((tmp_path / "hub" / "README.md").read_text())["tags"] == ["causal-tracing", "interpretability"]
    assert run(str(tmp_path / "two"), "--hub-card", "--of", "heads") == 2
    assert "--hub-card writes all that was measured; leave out --of" in capsys.readouterr().err
