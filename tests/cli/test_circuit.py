"""The command `circuit` on a tiny model: rankings of every kind, files, folders of pairs, dry runs, repeats."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import causal_tracing as ct
from loaded import shared
from tokenizers_for_tests import words

WORDS = words(*(f" w{n}" for n in range(96)))
CLEAN, CORRUPT = " w11 w12 w13 w14 w15", " w11 w12 w43 w14 w15"
PAIR = ["--clean", CLEAN, "--corrupt", CORRUPT, "--answer", " w7", "--foil", " w8"]
CIRCUIT = ["circuit", "--model", "tiny", *PAIR, "--spot-checks", "2"]
NAMES = "mlp_out 1; z 2.0; z 0.0-3"

pytestmark = pytest.mark.usefixtures("tiny")


def logit_diff(text: str) -> float:
    with torch.no_grad():
        logits = shared("llama").network(torch.tensor([WORDS(text)["input_ids"]])).logits[0, -1].double()
    answer, foil = (WORDS(token)["input_ids"][0] for token in (" w7", " w8"))
    return (logits[answer] - logits[foil]).item()


def pairs(count: int, *, odd: bool = False) -> Path:
    """A file of pairs with total effects of one sign; where it is odd, the last one has a token fewer in one prompt."""
    told = {"answer": " w7", "foil": " w8"}
    clean = logit_diff(CLEAN)
    others = [f" w11 w12 w{n} w14 w15" for n in range(20, 90)]
    chosen = [corrupt for corrupt in others if clean - logit_diff(corrupt) > 0.2][:count]
    assert len(chosen) == count
    rows = [{"clean": CLEAN, "corrupt": corrupt, "id": f"p{n}", **told} for n, corrupt in enumerate(chosen)]
    if odd:
        rows.append({"clean": CLEAN, "corrupt": " w12 w43 w14 w15", "id": "odd", **told})
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return Path("pairs.jsonl")


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    for document in (one, other):
        del document["seconds"], document["provenance"]["seconds"], document["provenance"]["started"]
    assert one == other


def test_names_in_words_and_as_a_document_that_its_command_makes_again(ask: Any) -> None:
    code, out, err = ask(*CIRCUIT, "--ranking", NAMES, "--sizes", "1,0.1,6", "--tested", "3")
    assert code == 0, err
    assert "circuits, kept: faithfulness f by the number of nodes, of 20" in out
    assert "A set of 6 nodes (of 20) keeps f = " in out
    assert "Completeness of the first 3 nodes" in out
    assert "strongest sites" not in out
    assert "2 cells run again" in err or "cells run again on whole forwards" in err
    found = json.loads(ask(*CIRCUIT, "--ranking", NAMES, "--sizes", "1,0.1,6", "--tested", "3", "--json")[1])
    assert found["sizes"] == [0, 1, 2, 6, 20]
    assert found["faithful"]["curve"][1]["added"] == "mlp_out 1"
    assert found["faithful"]["curve"][0]["faithfulness"] == 0
    assert found["faithful"]["cmd"]["reason"] == "the ranking does not name all there is"
    assert found["effects"]["faithfulness"]["nodes"][0][-1] == 1
    assert found["circuit_tests"]["removals"][:2] == ["nothing", "mlp_out 1"]
    command = shlex.split(found["provenance"]["command"])
    assert command[1:2] == ["trace"]
    same(json.loads(ask(*command[1:], "--json")[1]), found)


@pytest.mark.parametrize("ranking", ["exact", "estimates", "z 2.0 = -3; mlp_out 1 = 2.5"])
def test_a_folder_has_the_page_and_the_file_that_makes_it_again(ask: Any, ranking: str) -> None:
    code, _out, err = ask(*CIRCUIT, "--ranking", ranking, "--sizes", "1,2", "--by", "sign", "--out", "first")
    assert code == 0, err
    page = Path("first/report.html").read_text()
    assert page.count('<section id="circuits-section"') == 1
    assert "<polyline points=" in page
    code, _, err = ask("trace", "--config", "first/config.toml", "--out", "second")
    assert code == 0, err
    first, second = ct.open_trace("first"), ct.open_trace("second")
    assert first.of("circuits").identical(second.of("circuits"))
    assert first.provenance["options"] == second.provenance["options"]
    assert first.circuit().curve.equals(second.circuit().curve)
    code, _, _ = ask("export", "first", "table.csv", "--of", "circuits")
    assert code == 0
    assert "disruption_beyond_empty" in Path("table.csv").read_text()


def test_options_in_a_file(ask: Any) -> None:
    table = f'clean = "{CLEAN}"\ncorrupt = "{CORRUPT}"\nanswer = " w7"\nfoil = " w8"\nmodel = "tiny"\n'
    lines = 'ranking = ["mlp_out 1", "z 2.0"]\nsizes = [1, 0.1]\nhow = "restored"\nspot_checks = 0\n'
    Path("asked.toml").write_text(table + lines)
    found = json.loads(ask("circuit", "--config", "asked.toml", "--json")[1])
    assert (found["sizes"], found["faithful"]["how"]) == ([0, 1, 2, 20], "restored")
    code, _, err = ask("circuit", "--config", "asked.toml", "--how", "kept", "--json")
    assert code == 0, err
    Path("folder").mkdir()
    Path("folder/asked.toml").write_text(table + 'ranking = {file = "scores.json"}\n')
    assert ask(*CIRCUIT, "--ranking", "estimates", "--sizes", "1", "--scores", "folder/scores.json")[0] == 0
    code, out, err = ask("circuit", "--config", "folder/asked.toml", "--json")  # relative to the file
    assert code == 0, err
    assert "node scores of scores.json" in json.loads(out)["provenance"]["options"]["circuit_source"]


def test_scores_that_are_written_rank_the_same(ask: Any) -> None:
    asked = [*CIRCUIT, "--tested", "3", "--scores", "ours.json"]
    first = json.loads(ask(*asked, "--json")[1])
    content = json.loads(Path("ours.json").read_text())
    kept = [name for name, node in content["nodes"].items() if node["in_graph"] and name not in ("input", "logits")]
    assert len(kept) == 3
    assert content["cfg"] == {"n_layers": 4, "n_heads": 4, "parallel_attn_mlp": False, "d_model": 32}
    again = json.loads(ask(*CIRCUIT, "--tested", "3", "--ranking-from", "ours.json", "--json")[1])
    assert again["faithful"]["curve"] == first["faithful"]["curve"]
    code, _, err = ask(*CIRCUIT, "--ranking", NAMES, "--scores", "names.json")
    assert (code, "this ranking has names alone" in err) == (2, True)
    code, _, err = ask(*CIRCUIT, "--ranking", NAMES, "--ranking-from", "ours.json")
    assert (code, "both say what comes first" in err) == (2, True)


def test_many_pairs_in_a_folder_go_on_and_say_their_interval(ask: Any) -> None:
    file = pairs(9, odd=True)
    asked = ["circuit", "--model", "tiny", "--pairs", str(file), "--sizes", "2,5", "--spot-checks", "0"]
    code, out, err = ask(*asked, "--out", "run")
    assert code == 5  # one pair failed
    assert "pair odd failed" in err
    found = ct.open_trace("run")
    assert found.of("circuits").sizes["pair"] == 9
    row = found.circuit().curve.set_index("size").loc[5]
    assert row.low <= row.faithfulness <= row.high
    assert f"[{row.low:.2f}".replace("-", "−") in out
    direct = ct.trace(shared_tiny(), ct.read_pairs(file)[:9], components=[], circuit_sizes=[2, 5], spot_checks=0,
                      circuit=found.provenance["options"]["circuit"], progress=False)  # fmt: skip
    np.testing.assert_allclose(found.of("circuits").disruption, direct.of("circuits").disruption, atol=1e-5)
    code, _, err = ask(*asked, "--out", "run")  # nothing is left to do, and the same is said
    assert (code, "What comes first is as run was begun with." in err) == (5, True)


def test_many_pairs_with_edges_go_on_in_their_folder(ask: Any) -> None:
    asked = ["circuit", "--model", "tiny", "--pairs", str(pairs(9)), "--of", "edges", "--ranking", "eap"]
    asked += ["--sizes", "30,0.5", "--spot-checks", "1", "--out", "run"]
    code, out, err = ask(*asked)
    assert code == 0, err
    assert "mean over 9 pairs" in out
    found = ct.open_trace("run")
    row = found.circuit().curve.set_index("size").loc[172]
    assert row.low <= row.faithfulness <= row.high
    assert found.evidence("circuits").cells.component.values.tolist() == ["edges"]
    assert Path("run/report.html").read_text().count('id="circuits-section"') == 1
    assert ask("export", "run", "table.csv", "--of", "circuits")[0] == 0
    assert ",edges," in Path("table.csv").read_text()
    code, _, err = ask(*asked)  # nothing is left to do, and the ranking is that of the folder
    assert (code, "What comes first is as run was begun with." in err) == (0, True)
    assert ct.open_trace("run").of("circuits").identical(found.of("circuits"))


def shared_tiny() -> Any:
    return replace(shared("llama"), tokenizer=WORDS, name="tiny", source={"kind": "folder"})


def test_a_dry_run_counts_the_worlds(ask: Any) -> None:
    counted = json.loads(ask(*CIRCUIT, "--sizes", "1,5", "--dry-run", "--json")[1])
    assert counted["worlds"] == 4 + 2  # 0, 1, 5 and all; and the unedited runs
    _code, out, err = ask(*CIRCUIT, "--sizes", "1,5", "--tested", "4", "--subsets", "0", "--dry-run", "--json")
    assert json.loads(out)["worlds"] == 6 + 2 * (1 + 4)
    named = json.loads(ask(*CIRCUIT, "--ranking", NAMES, "--dry-run", "--json")[1])
    assert named["worlds"] == 6 + 2  # of MIB's sizes those that six nodes reach (1, 2, 4), six, none and all
    assert "The ranking (exact) comes first, and is not counted here: 20 nodes." in err


def test_edges_by_the_same_command(ask: Any) -> None:
    asked = [*CIRCUIT, "--of", "edges", "--sizes", "20,0.5"]
    code, out, err = ask(*asked, "--ranking", "reception", "--tested", "20", "--subsets", "0", "--scores", "edges.json",
                         "--out", "first")  # fmt: skip
    assert code == 0, err
    assert "circuits, kept: faithfulness f by the number of edges, of 343" in out
    assert " edges (of 343) keeps f = " in out
    assert "on a way through" in out
    content = json.loads(Path("edges.json").read_text())
    assert len({name for name, edge in content["edges"].items() if edge["in_graph"]}) >= 20
    code, _, err = ask("trace", "--config", "first/config.toml", "--out", "second")
    assert code == 0, err
    first, second = ct.open_trace("first"), ct.open_trace("second")
    assert first.of("circuits").identical(second.of("circuits"))
    assert first.summary() == second.summary()
    code, _, err = ask(*asked, "--ranking-from", "edges.json", "--out", "third")
    assert code == 0, err
    np.testing.assert_allclose(ct.open_trace("third").circuit().curve.metric, first.circuit().curve.metric, atol=1e-5)
    assert 'aria-label="Faithfulness of sets of 1 to 343 edges, kept"' in Path("first/report.html").read_text()


def test_a_dry_run_of_edges_counts_what_their_readers_read(ask: Any) -> None:
    few = json.loads(
        ask(*CIRCUIT, "--of", "edges", "--ranking", "z 0.0 -> q 1.0", "--sizes", "1", "--dry-run", "--json")[1]
    )
    assert few["worlds"] == 3 + 2
    nodes = json.loads(ask(*CIRCUIT, "--ranking", "z 0.0", "--sizes", "1", "--dry-run", "--json")[1])
    assert few["token_layers"] > nodes["token_layers"]
    _code, _out, err = ask(*CIRCUIT, "--of", "edges", "--dry-run")
    assert "The ranking (exact) comes first, and is not counted here: 343 edges." in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ranking", "z 9.0"], "which is no node of this model"),
        (["--ranking", "z 1.0 = x"], "the score 'x' is no number"),
        (["--ranking", "z 1.0 = 1; z 1.1"], "has a score for some nodes and not for others"),
        (["--sizes", "many"], "'many' is no size"),
        (["--how", "live"], "There is no world of a circuit 'live'"),
        (["--ranking-from", "none.json"], "cannot be read as a score file"),
        (["--subsets", "-1"], "circuit_subsets= must be a whole number of at least 0"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_said(ask: Any, options: list[str], message: str) -> None:
    code, out, err = ask(*CIRCUIT, *options)
    assert (code, out) == (2, "")
    assert message in err
