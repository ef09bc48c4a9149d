"""Run folders on the command line: begun, sharded, merged, interrupted, refused."""

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import causal_tracing as ct
from causal_tracing.cli.app import app
from causal_tracing.results.storage.run_folder import read_manifest, write_manifest
from tiny import tiny_folder


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    tiny_folder(tmp_path / "model")
    rows = [
        {"clean": f" Rome {noun} Mary", "corrupt": f" Rome John {last}", "answer": " the", "foil": " of"}
        for noun in (" Paris", " city", " is")
        for last in (" Mary", " drink", " to")
    ]
    rows.append({"clean": " Rome", "corrupt": " Rome John", "answer": " the", "id": "odd"})
    texts = [json.dumps({name: text.replace("  ", " ") for name, text in row.items()}) for row in rows]
    (tmp_path / "pairs.jsonl").write_text("\n".join(texts), encoding="utf-8")
    return ["trace", "--model", "model", "--pairs", "pairs.jsonl", "--out", "run"]


def test_the_command_line_begins_a_run_and_says_what_became_of_the_pairs(asked):
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 5  # one pair cannot be traced
    command = ct.open_trace("run").provenance["command"]
    assert command.startswith("causal-tracing trace --model")
    assert command.endswith("--keep all --out run")
    assert "--pairs pairs.jsonl" in command
    assert "9 of 10 pairs measured; 0 left out (keep=all), 1 failed, 0 not done" in done.stderr
    assert "pair odd failed:" in done.stderr
    assert "Mean over 9 of 10 pairs (1 failed)" in done.stdout
    assert Path("run/report.html").is_file()
    again = CliRunner().invoke(app, [*asked, "--json"])
    document = json.loads(again.stdout)
    assert len(document["pairs"]) == 9
    assert document["provenance"]["failed"].keys() == {"odd"}
    assert CliRunner().invoke(app, ["report", "run"]).exit_code == 0


def test_the_command_line_merges_and_shards(asked):
    for n in range(2):
        done = CliRunner().invoke(app, [*asked[:-1], f"shard-{n}", "--shard", f"{n}/2"])
        assert done.exit_code == 5
        assert (
            f"{(8, 1)[n]} of 10 pairs measured; 0 left out (keep=all), {n} failed, {(2, 8)[n]} not done" in done.stderr
        )
    done = CliRunner().invoke(app, ["merge", "all", "shard-0", "shard-1"])
    assert done.exit_code == 0, done.output
    merged, part = ct.open_trace("all"), ct.open_trace("shard-0")
    assert merged.effects.sizes["pair"] == 9
    assert merged.provenance["command"] == part.provenance["command"].replace("--shard 0/2 --out shard-0", "--out all")
    assert "--shard" not in Path("all/report.html").read_text()
    manifest = read_manifest("shard-0")
    write_manifest(Path("shard-0"), {name: each for name, each in manifest.items() if name != "whole_command"})
    done = CliRunner().invoke(app, ["merge", "half", "shard-0"])
    assert done.exit_code == 5
    assert ct.open_trace("half").provenance["command"] is None  # 0.1.0 did not keep it
    assert "made by: none: the shards that were merged do not say it" in Path("half/report.html").read_text()
    assert "1 chunks are in none of the shards: 1" in done.stderr


def test_an_interrupted_run_says_how_to_go_on(asked, monkeypatch):
    from causal_tracing.experiments import chunks

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(chunks, "measured", interrupted)
    monkeypatch.setattr(sys, "argv", ["causal-tracing", *asked])
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 128 + signal.SIGINT
    assert "What is done is kept in run; go on with:\ncausal-tracing trace --model model" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--overwrite"], "A run folder is gone on with, never overwritten"),
        (["--shard", "3/3"], "is no shard. Write such as 0/4"),
        (["--keep", "best"], "There is no keep 'best'"),
    ],
)
def test_what_a_run_cannot_be(asked, options, message):
    done = CliRunner().invoke(app, [*asked, *options])
    assert message in str(done.exception)
    single = ["trace", "--model", "model", "--clean", "a", "--corrupt", "b", "--answer", " c", "--shard", "0/2"]
    said = str(CliRunner().invoke(app, single).exception)
    assert "--shard: for many pairs in a folder. Give --pairs and --out too." in said
