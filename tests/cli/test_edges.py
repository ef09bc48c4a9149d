"""Edges by query from the command line: dry runs, JSON, what is kept, and a configuration file that says the same."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokenizers_for_tests import words

WORDS = words(*(f" w{n}" for n in range(96)))
CLEAN, CORRUPT = " w11 w12 w13 w14 w15", " w11 w12 w43 w14 w15"
PAIR = ["--clean", CLEAN, "--corrupt", CORRUPT, "--answer", " w7", "--foil", " w8"]
EDGES = ["--components", "none", "--edges", "v", "--edge-query", "1,last", "--edge-heads", "1.0,2.1-2"]
TRACE = ["trace", "--model", "tiny", *PAIR, "--spot-checks", "2", *EDGES]

pytestmark = pytest.mark.usefixtures("tiny")


def test_a_dry_run_says_the_cost(ask: Any) -> None:
    code, out, err = ask(*TRACE, "--dry-run")
    assert code == 0, err
    assert f"worlds        {2 + 2 * 3 * 2 * 5}, of which" in out


def test_the_document_has_queries_and_heads(ask: Any) -> None:
    code, out, err = ask(*TRACE, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["components"] == ["v_edge"]
    assert document["heads"] == ["1.0", "2.1", "2.2"]
    assert document["queries"] == [1, "last"]
    assert document["positions"] == [0, 1, 2, 3, 4]
    assert np.array(document["effects"]["restoration"]["v_edge"]).shape == (1, 3, 2, 5)
    assert document["status"]["v_edge"][0][0][0][3] == "structural_zero"


def test_what_is_kept_makes_it_again(ask: Any, tmp_path: Path) -> None:
    code, _, err = ask(*TRACE, "--out", "kept")
    assert code == 0, err
    config = (tmp_path / "kept" / "config.toml").read_text()
    assert 'edge_query = [1, "last"]' in config
    assert 'edge_heads = ["1.0", "2.1-2"]' in config
    code, first, _ = ask(*TRACE, "--json")
    code, again, err = ask("trace", "--config", "kept/config.toml", "--model", "tiny", "--json")
    assert code == 0, err
    first, again = json.loads(first), json.loads(again)
    assert first["effects"] == again["effects"]
    assert "--edge-query 1,last --edge-heads 1.0,2.1-2" in first["provenance"]["command"]


def test_a_file_of_pairs(ask: Any, tmp_path: Path) -> None:
    rows = [{"clean": CLEAN, "corrupt": f" w11 w12 w{n} w14 w15", "answer": " w7", "foil": " w8"} for n in (20, 21, 22)]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, out, err = ask("trace", "--model", "tiny", "--pairs", "pairs.jsonl", *EDGES, "--out", "run", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert np.array(document["effects"]["disruption"]["v_edge"]).shape == (3, 3, 2, 5)
    assert document["evidence"]["pairs"] == 3
    assert document["evidence"]["queries"] == [1, "last"]
    assert "Each head has a map of queries by keys." in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--edge-heads", "z1"], "edge_heads= names 'z1'"),
        (["--edge-query", "1,nobody"], "There is no position 'nobody'"),
        (["--edge-heads", "7"], "There is no layer 7"),
    ],
)
def test_what_is_wrong_is_one_error(ask: Any, flags: list[str], message: str) -> None:
    code, out, err = ask(*TRACE, *flags)
    assert code == 2
    assert out == ""
    assert message in err
    assert CORRUPT not in err
