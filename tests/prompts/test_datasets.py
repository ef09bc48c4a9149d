"""The built-in sets: their sources, clusters that are facts, prompts that the demo tokenizer takes as they are."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import causal_tracing as ct
from causal_tracing.errors import InvalidPair
from causal_tracing.experiments import filter
from causal_tracing.models.model import Model
from causal_tracing.patching.options.trace import Options
from causal_tracing.prompts.datasets import NAMES, about, kinds, rows
from causal_tracing.prompts.pairs import named, tokenize_pairs

COMMAND = str(Path(sys.executable).parent / "causal-tracing")
TABLE = Path(__file__).parents[2] / "docs" / "datasets.md"


@pytest.mark.parametrize("name", NAMES)
def test_every_pair_is_aligned_and_scored(name: str, demo_tokenizer: Any):
    for pair in tokenize_pairs(ct.read_pairs(name), demo_tokenizer):
        assert not pair.remarks
        assert not pair.notes or name == "greater_than"  # whose answers end a number
        assert pair.longest == (2 if name == "greater_than" else 1)  # digits of years
        assert pair.clean.subject
        assert pair.clean.roles == pair.corrupt.roles


@pytest.mark.parametrize("name", NAMES)
def test_a_set_says_what_it_is_and_is_the_same_every_time(name: str):
    said, found = about(name), rows(name)
    assert found == rows(name)
    assert re.search(r"arXiv \d{4}\.\d{5}", said["source"])
    assert len({row["id"] for row in found}) == len(found)
    assert [row for kind in kinds(name) for row in rows(f"{name}:{kind}")] == sorted(
        found, key=lambda row: kinds(name).index(row["kind"])
    )


def test_a_fact_is_in_one_pair_only():
    found = rows("facts")
    assert len(found) >= 200
    subjects = [row[name] for row in found for name in ("subject", "corrupt_subject")]
    assert Counter(subjects).most_common(1)[0][1] == 1
    assert all(row["answer"] != row["foil"] for row in found)
    assert all(row["answer"].strip().lower() not in row["subject"].lower() for row in found)  # it cannot be copied


def test_ioi_names_the_right_people():
    for row in rows("ioi"):
        receiver, giver = row["answer"].strip(), row["foil"].strip()
        words = re.findall(r"\w+", row["clean"])
        assert (words.count(receiver), words.count(giver)) == (1, 2)
        other = re.findall(r"\w+", row["corrupt"])
        again = row["corrupt_subject"]
        assert other.count(again) == (2 if row["kind"] == "swap" else 1)
        assert (again == receiver) == (row["kind"] == "swap")
        if row["kind"] == "abc":
            assert not {receiver, giver} & {*other}


def test_induction_repeats_what_it_asks_for():
    for row in rows("induction"):
        words, other = row["clean"].split(), row["corrupt"].split()
        at = words.index(words[-1])
        assert (words[at + 1], other[at + 1]) == (row["answer"].strip(), row["foil"].strip())
        assert sum(a != b for a, b in zip(words, other, strict=True)) == 1


def test_the_documented_share_of_facts_is_what_the_demo_model_gets_right(demo: Model, monkeypatch: pytest.MonkeyPatch):
    pairs = named(ct.read_pairs("facts"))
    log_probs, known = filter.log_probs, dict[Any, list[Any]]()

    def once(backend: Any, runs: Any) -> list[Any]:  # both rules look at the same clean runs
        if tuple(runs) not in known:
            known[tuple(runs)] = log_probs(backend, runs)
        return known[tuple(runs)]

    monkeypatch.setattr(filter, "log_probs", once)
    right = filter.keep_pairs(demo, pairs, Options(), "first_choice")
    preferred = filter.keep_pairs(demo, pairs, Options(), "preferred")
    assert not right.failed
    shares = " | ".join(f"{n} ({100 * n / len(pairs):.0f} %)" for n in (len(right.pairs), len(preferred.pairs)))
    assert f"| `facts` | {len(pairs)} | {len(pairs)} | {shares} |" in TABLE.read_text(encoding="utf-8")


def test_a_set_that_is_not_there_is_an_error_that_names_those_that_are():
    for name in ("fact", "facts:river"):
        with pytest.raises(InvalidPair, match=f"{name} is not there.*facts, ioi, gender"):
            ct.read_pairs(name)


def test_a_file_comes_before_a_set_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "facts").write_text(json.dumps({"clean": "a", "answer": " b"}))
    assert [pair.clean for pair in ct.read_pairs("facts")] == ["a"]


@pytest.mark.parametrize("name", ["fact", "facts:cities", "pairs.jsonl", "../facts"])
def test_a_set_that_is_not_there_is_one_clear_error(name: str, tmp_path: Path):
    (tmp_path / "pairs.jsonl").write_text('{"clean": "a", "answer": " b"}\n')
    done = subprocess.run([COMMAND, "datasets", name], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"InvalidOption: There is no built-in set {name!r}. Valid: facts, ioi,")
    assert "facts:capital" in done.stderr
