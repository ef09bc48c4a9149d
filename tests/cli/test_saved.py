"""What is done with saved traces that have no map of blocks: export, compare; and what the helps say of options."""

import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from causal_tracing.cli.app import app
from causal_tracing.results.site_kinds import KINDS

PAIR = ["--clean", " w11 w12 w13 w14 w15", "--answer", " w7", "--foil", " w8"]
KNOCKOUT = ["knockout", "--model", "tiny", *PAIR, "--layers", "1,2", "--spot-checks", "0"]


def help_of(command: str) -> str:
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).stdout
    return re.sub(r"[\s│]+", " ", shown)


@pytest.mark.usefixtures("tiny")
def test_the_first_map_of_a_trace_is_exported_unless_another_is_named(ask: Any, tmp_path: Path) -> None:
    assert ask(*KNOCKOUT, "--out", "kept")[0] == 0
    code, _, err = ask("export", "kept", "cells.csv")
    assert code == 0, err
    assert "attention" in (tmp_path / "cells.csv").read_text()
    code, _, err = ask("export", "kept", "other.csv", "--of", "blocks")
    assert code == 2
    assert 'This trace has no blocks. Measure them with trace(..., components=["resid_post"]).' in err


@pytest.mark.usefixtures("tiny")
def test_the_first_maps_of_two_traces_are_compared_unless_another_is_named(ask: Any) -> None:
    rows = [f'{{"clean": " w11 w12 w{n} w14", "answer": " w7", "foil": " w8"}}' for n in (13, 14, 15)]
    Path("pairs.jsonl").write_text("\n".join(rows))
    asked = ["knockout", "--model", "tiny", "--pairs", "pairs.jsonl", "--layers", "1", "--spot-checks", "0"]
    for folder, by in (("one", "blocked"), ("two", "zeroed")):
        code, _, err = ask(*asked, "--by", by, "--out", folder)
        assert code == 0, err
    code, out, err = ask("compare", "one", "two")
    assert code == 0, err
    assert "attention" in out


@pytest.mark.parametrize("command", ["export", "compare"])
def test_the_help_names_every_map(command: str) -> None:
    shown = help_of(command)
    assert re.search(f"{', '.join(KINDS)}[; ]", shown)


@pytest.mark.parametrize("command", ["trace", "paths", "circuit", "attribute", "knockout"])
def test_the_help_tells_defaults_that_can_be_typed(command: str) -> None:
    shown = help_of(command)
    assert not re.search(r"Default: ?\.", shown)
    assert "circuit_sizes" not in shown
    assert "at the token at" not in shown


def test_the_help_tells_which_switches_are_on() -> None:
    assert re.search(r"keeps the embedding\. It is never a part of the count\. Default: on\.", help_of("circuit"))
    assert "Default: off" not in help_of("trace")
