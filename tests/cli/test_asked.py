"""Pairs as a command names them: other people's files, what needs the model's tokenizer, and what is said of them."""

import csv
import json
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

import causal_tracing
import causal_tracing as ct
from causal_tracing.errors import FormatNote
from causal_tracing.models.model import Model
from causal_tracing.prompts.files import read
from causal_tracing.prompts.pairs import tokenize
from causal_tracing.prompts.relations import corrupted
from command_line import run
from tiny import tiny_model
from tokenizers_for_tests import words_of

FILES = {path.stem: path for path in sorted((Path(__file__).parents[1] / "prompts" / "formats").iterdir())}
RELATION = ["--corrupt-by", "relation"]
MORE = {"known_1000": ["--noise", "3sigma"], "counterfact": RELATION, "counterfact-tracing": RELATION, "lre": RELATION}
FAST = ["--components", "mlp_out", "--layers", "0", "--directions", "restoration"]
NAMES = {5099: " Mary", 2322: " John", 16435: " Anna", 8581: " Tom", 7288: " Peter", 28468: " Kate"}  # the demo model's


@pytest.fixture(scope="module")
def small() -> Model:
    """A tiny model that knows every word of the fixtures, each as one token, and numbers digit by digit."""
    texts: list[str] = [*NAMES.values()]
    for path in FILES.values():
        for values in (row.values for row in read(path).rows):
            named = (values[name] for name in ("answer", "foil") if isinstance(values.get(name), list))
            texts += [text for text in values.values() if isinstance(text, str)] + list(chain(*named))
    tokenizer = words_of(*texts)
    return ct.load(tiny_model(vocab_size=len(tokenizer)), tokenizer=tokenizer, progress=False)


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch, small: Model) -> list[str]:
    """`load` gives the small model, and remembers that it was asked."""
    asked: list[str] = []

    def load(name: str, **options: Any) -> Model:
        asked.append(name)
        return small

    monkeypatch.setattr(causal_tracing, "load", load)
    return asked


def with_ids_of(model: Model, folder: Path) -> Path:
    """EAP-IG's fixture with the token ids of a model."""
    path = folder / "ids.csv"
    with FILES["eap-ig"].open(newline="") as file, path.open("w", newline="") as copy:
        rows = [*csv.DictReader(file)]
        table = csv.DictWriter(copy, rows[0].keys())
        table.writeheader()
        for row in rows:
            ids = {name: NAMES[int(row[name])] for name in ("correct_idx", "incorrect_idx")}
            table.writerow(row | {name: model.tokenizer.convert_tokens_to_ids(text) for name, text in ids.items()})
    return path


# Of which nothing is said.
UNCHANGED = ("eap-ig", "eap-ig-years", "eap-ig-years-idx", "causalgym", "counterfact-tracing")
# What cannot be traced of a fixture: a pair that has neither a corrupt prompt nor a subject.
FAILED = {"blimp": ("pair agreement_made-2 cannot be traced: pair 'agreement_made-2' has no corrupt prompt.", 1)}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_traced_as_it_is(name: str, monkeypatch, capsys, small: Model, tmp_path: Path):
    path = with_ids_of(small, tmp_path) if name == "eap-ig" else FILES[name]
    words = ["trace", "--model", "small", "--pairs", str(path), "--out", "run", "--dry-run", *MORE.get(name, [])]
    code, out, err = run(monkeypatch, capsys, *words, *FAST)
    message, failed = FAILED.get(name, ("", 0))
    assert code == 0, err
    assert f"{3 - failed} of 3 pairs: 0 left out, {failed} fail" in err
    assert message in err
    assert "worlds        " in out


def test_notes_are_said_once_and_are_no_warnings(monkeypatch, capsys):
    words = ["trace", "--model", "small", "--pairs", str(FILES["autocircuit"]), "--out", "run", "--dry-run", *FAST]
    _, _, err = run(monkeypatch, capsys, *words)
    assert err.count(f"note: {FILES['autocircuit']} (autocircuit): answers has 2 texts, and the first is taken") == 1
    assert "Warning" not in err


WRONG = {
    "a way": (["--corrupt-by", "relations"], "There is no way to corrupt 'relations'. Did you mean 'relation'"),
    "a format": (["--format", "counterfacts"], "There is no format 'counterfacts'. Did you mean 'counterfact'"),
    "another format": (["--format", "mib-ioi"], "row 0, read as mib-ioi: "),
    "noise too": (["--corrupt-by", "relation", "--noise", "3sigma"], "--corrupt-by makes corrupt prompts, and noise"),
    "a preset too": (["--corrupt-by", "relation", "--preset", "rome"], "--corrupt-by makes corrupt prompts, and noise"),
    "neither": ([], "has no corrupt prompt"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_before_the_model_is_loaded(name: str, monkeypatch, capsys, loaded: list[str]):
    words, message = WRONG[name]
    code, out, err = run(
        monkeypatch, capsys, "trace", "--model", "small", "--pairs", str(FILES["known_1000"]), *words, *FAST
    )
    assert (code, out, loaded) == (2, "", [])
    assert message in err


@pytest.mark.parametrize("flag", ["--format", "--corrupt-by"])
def test_what_is_of_files_is_refused_of_a_single_pair(flag: str, monkeypatch, capsys):
    words = ["trace", "--model", "small", "--clean", "a", "--answer", " b", flag, "relation"]
    code, _, err = run(monkeypatch, capsys, *words)
    assert code == 2
    assert f"{flag} says something of a file of pairs. Give --pairs FILE too." in err


def test_token_ids_of_another_model_are_said_after_it_is_loaded(monkeypatch, capsys, small: Model, tmp_path: Path):
    words = ["trace", "--model", "small", "--dry-run", *FAST, "--pairs"]
    code, _, err = run(monkeypatch, capsys, *words, str(FILES["eap-ig"]))
    assert code == 2
    assert "eap-ig.csv, line 2: answer is the token 5099, and this tokenizer has" in err
    code, _, err = run(monkeypatch, capsys, *words, str(with_ids_of(small, tmp_path)), "--positions", "Giver")
    assert code == 2
    assert "Giver" in err  # columns are held against the pairs as soon as these are known


def test_attribute_takes_them_too(monkeypatch, capsys):
    words = ["attribute", "--model", "small", "--pairs", str(FILES["lre"]), "--corrupt-by", "relation", "--json"]
    code, out, err = run(monkeypatch, capsys, *words, "--components", "mlp_out", "--verify", "1", "--sample", "1")
    assert code == 0, err
    assert len(json.loads(out)["provenance"]["pairs"]) == 3


def test_the_table_of_formats_is_printed(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "datasets", "--formats")
    assert code == 0
    assert [line.partition(":")[0] for line in out.splitlines() if line and line[0] != " "][1:] == [
        "known_1000", "counterfact", "counterfact-tracing", "lre", "mib-ioi", "mib-mcqa", "mib-arc", "mib-arithmetic",
        "mib-ravel", "eap-ig", "eap-ig-years", "eap-ig-years-idx", "autocircuit", "causalgym", "syntaxgym", "blimp",
    ]  # fmt: skip
    assert "  source  CausalGym, Arora et al. 2024 (arXiv 2402.12560)" in out
    code, _, err = run(monkeypatch, capsys, "datasets", "facts", "--formats")
    assert code == 2
    assert "--formats lists the formats of files; leave out 'facts'" in err


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_the_demo_model_takes_every_file(name: str, demo_tokenizer: Any):
    """The same for a tokenizer that people use, whose ids the fixture of EAP-IG has."""
    with nullcontext() if name in UNCHANGED else pytest.warns(FormatNote):
        pairs = ct.read_pairs(FILES[name], tokenizer=demo_tokenizer)
    if "--corrupt-by" in MORE.get(name, []):
        pairs = corrupted(pairs, "relation", demo_tokenizer)
    for pair in pairs:
        if pair.corrupt is not None or name == "known_1000":
            assert len(tokenize(pair, demo_tokenizer, noise=name == "known_1000").answers[0]) <= 3
