"""Pairs from files and rows: what each format may hold, and that everything else is one clear error."""

import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import causal_tracing as ct
from causal_tracing.errors import InvalidPair, MachineError
from causal_tracing.prompts.files import LONGEST
from causal_tracing.prompts.pairs import as_pairs, tokenize
from forked_driver import executed
from tiny import tiny_model, tiny_tokenizer

ROWS: list[dict[str, Any]] = [
    {"clean": "in Rome, Italy", "answer": " Mary", "corrupt": "in Paris", "foil": " John", "id": "a", "subject": "Rome",
     "corrupt_subject": "Paris", "occurrence": 0, "spans": {"S1": "Italy"}, "cluster": "one", "year": "1903"},
    {"clean": 'says "the\ncity"', "answer": " of", "id": "b", "chat": True, "occurrence": -1, "subject": "city"},
]  # fmt: skip
EXPECTED = [
    ct.Pair(clean="in Rome, Italy", answer=" Mary", corrupt="in Paris", foil=" John", id="a", subject="Rome",
            corrupt_subject="Paris", spans={"S1": "Italy"}, cluster="one", labels={"year": "1903"}),
    ct.Pair(clean='says "the\ncity"', answer=" of", id="b", chat=True, occurrence=-1, subject="city"),
]  # fmt: skip


NAMES = dict.fromkeys(name for row in ROWS for name in row)
FULL = [{name: row.get(name) for name in NAMES} for row in ROWS]  # tables have every column in every row


def json_lines(path: Path) -> None:
    path.write_text("\ufeff" + "\n\n".join(json.dumps(row) for row in ROWS))


def comma_separated(path: Path) -> None:
    flat = [{**row, "spans.S1": row.get("spans", {}).get("S1")} for row in ROWS]
    names = dict.fromkeys(name for row in flat for name in row if name != "spans")
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(names), extrasaction="ignore", lineterminator="\r\n")
        table.writeheader()
        table.writerows(flat)


def parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(FULL), path)


@pytest.mark.parametrize(
    ("name", "write"), [("p.jsonl", json_lines), ("p.csv", comma_separated), ("p.parquet", parquet)]
)
def test_every_format_holds_the_same_pairs(name: str, write: Callable[[Path], None], tmp_path: Path):
    write(tmp_path / name)
    assert ct.read_pairs(tmp_path / name) == EXPECTED
    assert [pair.chat for pair in ct.read_pairs(tmp_path / name, chat=True)] == [True, True]


def test_a_dataset_a_list_and_pairs_are_rows_too():
    assert ct.read_pairs(datasets.Dataset.from_list(FULL)) == EXPECTED
    assert ct.read_pairs(ROWS) == EXPECTED
    assert ct.read_pairs([ROWS[0], EXPECTED[1]]) == EXPECTED
    with pytest.raises(InvalidPair, match="Of a DatasetDict name the split"):
        ct.read_pairs(datasets.DatasetDict({"train": datasets.Dataset.from_list(FULL)}))
    with pytest.raises(InvalidPair, match="row 1: clean missing"):
        ct.read_pairs([ROWS[0], {"answer": " b"}])


SAME = [ct.Pair(clean="a, b", answer=" c", spans={"S": "a"}), ct.Pair(clean="d", answer=" e", corrupt="f")]
JSON = [{"clean": "a, b", "answer": " c", "spans": {"S": "a"}}, {"clean": "d", "answer": " e", "corrupt": "f"}]
OTHER_FORMS = {
    "list.json": json.dumps(JSON),
    "indented.json": "\ufeff" + json.dumps(JSON, indent=2),
    "semicolons.csv": "clean;answer;spans.S;corrupt\na, b; c;a;\nd; e;;f\n",
    "tabs.csv": "clean\tanswer\tspans.S\tcorrupt\na, b\t c\ta\t\nd\t e\t\tf\n",
    "tabs.tsv": "clean\tanswer\tspans.S\tcorrupt\na, b\t c\ta\t\nd\t e\t\tf\n",
    "capitals.csv": '\ufeffClean, ANSWER ,Spans.S,Corrupt\r\n"a, b", c,a,\r\nd, e,,f\r\n',
    "capitals.jsonl": '{"Clean": "a, b", "ANSWER": " c", "Spans": {"S": "a"}}\n'
    '{"CLEAN": "d", "answer": " e", "corrupt": "f"}',
}


@pytest.mark.parametrize("name", OTHER_FORMS)
def test_other_ways_to_write_a_file(name: str, tmp_path: Path):
    (tmp_path / name).write_text(OTHER_FORMS[name], encoding="utf-8")
    assert ct.read_pairs(tmp_path / name) == SAME


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_lines_that_end_within_a_cell_stay_as_they_are(ends: str, tmp_path: Path):
    rows = [["clean", "answer"], [f"a{ends}b", " c"]]
    text = ends.join(",".join(f'"{cell}"' for cell in row) for row in rows)
    (tmp_path / "p.csv").write_bytes(text.encode())
    assert ct.read_pairs(tmp_path / "p.csv") == [ct.Pair(clean=f"a{ends}b", answer=" c")]


def test_a_list_as_pandas_writes_it_is_no_text(tmp_path: Path):
    pd.DataFrame([{"clean": "a", "answer": [" he", " his"]}]).to_csv(tmp_path / "p.csv", index=False)
    with pytest.raises(InvalidPair, match="line 2: answer begins and ends as a list of texts"):
        ct.read_pairs(tmp_path / "p.csv")
    (tmp_path / "one.csv").write_text('clean,answer\na,"[""[\'he\']""]"\n')  # a text of just these letters
    assert ct.read_pairs(tmp_path / "one.csv") == [ct.Pair(clean="a", answer="['he']")]


def test_columns_name_spans_of_either_prompt(tmp_path: Path):
    (tmp_path / "p.csv").write_text("clean,answer,corrupt,spans.S,Corrupt_Spans.S\na b, c,a x,b,x\nd, e,f,,\n")
    first, second = ct.read_pairs(tmp_path / "p.csv")
    assert (first.spans, first.corrupt_spans, second.spans) == ({"S": "b"}, {"S": "x"}, {})
    with pytest.raises(InvalidPair, match="row 0: corrupt_spans must be an object of names and texts, and is 'x'"):
        ct.read_pairs([{"clean": "a", "answer": " b", "corrupt_spans": "x"}])
    with pytest.raises(InvalidPair, match=r"row 0: corrupt_spans\.S has a LEFT-TO-RIGHT ISOLATE"):
        ct.read_pairs([{"clean": "a", "answer": " b", "spans": {"S": "a"}, "corrupt_spans": {"S": "\u2066"}}])


def test_one_object_over_several_lines_is_a_pair(tmp_path: Path):
    (tmp_path / "one.json").write_text(json.dumps(JSON[0], indent=1))
    assert ct.read_pairs(tmp_path / "one.json") == SAME[:1]
    (tmp_path / "broken.json").write_text(json.dumps(JSON, indent=1)[:-3])
    with pytest.raises(InvalidPair, match=r"broken.json: not JSON \(.*line 13"):
        ct.read_pairs(tmp_path / "broken.json")


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl"])
def test_other_headers_are_refused_with_what_was_found(name: str, tmp_path: Path):
    (tmp_path / name).write_text({"p.csv": "question;reply\na;b\n", "p.jsonl": '{"question": 1, "reply": 2}'}[name])
    with pytest.raises(InvalidPair, match=r"clean and answer missing\. .*; here is 'question', 'reply'\."):
        ct.read_pairs(tmp_path / name)
    (tmp_path / "twice.csv").write_text("clean,Clean,answer\na,b,c\n")
    with pytest.raises(InvalidPair, match=r"line 2: 'clean' is there twice .*: clean, Clean, answer"):
        ct.read_pairs(tmp_path / "twice.csv")


def test_tables_in_memory_are_rows_and_their_gaps_are_missing():
    frame = pd.DataFrame(
        {"Clean": ["a", "b"], "answer": [" c", " d"], "corrupt": ["x", np.nan], "occurrence": [1, np.nan],
         "k": [1, pd.NA], "when": [pd.NaT, pd.NaT], "spans.S": [None, "b"]}
    )  # fmt: skip
    expected = [
        ct.Pair(clean="a", answer=" c", corrupt="x", occurrence=1, labels={"k": 1}),
        ct.Pair(clean="b", answer=" d", spans={"S": "b"}),
    ]
    assert ct.read_pairs(frame) == ct.read_pairs(frame.to_dict("records")) == expected
    assert ct.read_pairs(pa.Table.from_pylist(FULL)) == EXPECTED
    with pytest.raises(InvalidPair, match=r"row 0: clean and answer missing.*here is 'q'"):
        ct.read_pairs(pd.DataFrame({"q": ["a"]}))
    with pytest.raises(InvalidPair, match=r"read_pairs\(\.\.\.\) makes pairs"):
        as_pairs(frame)


COMMAND = str(Path(sys.executable).parent / "causal-tracing")
TOKENIZER = tiny_tokenizer()
GOOD = '{"clean": "a", "answer": " b"}'
BAD_LINES = {
    "not json": ("{clean", "not JSON"),
    "a list": ("[1, 2]", "a JSON object is needed"),
    "a number": ("17", "a JSON object is needed"),
    "null": ("null", "a JSON object is needed"),
    "no answer": ('{"clean": "a"}', "answer missing"),
    "null answer": ('{"clean": "a", "answer": null}', "answer missing"),
    "empty text": ('{"clean": "", "answer": " b"}', "clean is empty"),
    "empty id": ('{"clean": "a", "answer": " b", "id": ""}', "id is empty"),
    "NaN": ('{"clean": "a", "answer": " b", "year": NaN}', "NaN is no JSON number"),
    "infinity": ('{"clean": "a", "answer": " b", "year": -Infinity}', "-Infinity is no JSON number"),
    "a key twice": ('{"clean": "a", "clean": "c", "answer": " b"}', "'clean' is there twice"),
    "a NUL": ('{"clean": "a\\u0000b", "answer": " b"}', r"clean has a NUL \(U\+0000\) at 1"),
    "half a letter": ('{"clean": "a\\ud800", "answer": " b"}', r"clean has half a letter \(U\+D800\) at 1"),
    "an override": ('{"clean": "a\u202eb", "answer": " b"}', r"RIGHT-TO-LEFT OVERRIDE \(U\+202E\) at 1"),
    "an isolate in a span": ('{"clean": "a\u2066", "answer": " b", "spans": {"S": "\u2066"}}', "LEFT-TO-RIGHT ISOLATE"),
    "a way out": ('{"clean": "a", "answer": " b", "id": "../../x"}', "id '../../x' has a slash"),
    "a backslash": ('{"clean": "a", "answer": " b", "cluster": "..\\\\x"}', "cluster .* has a slash"),
    "a line break in an id": ('{"clean": "a", "answer": " b", "id": "x\\ny"}', "id .* has a slash or a control"),
    "wrong spans": ('{"clean": "a", "answer": " b", "spans": ["S"]}', "spans must be an object"),
    "wrong labels": ('{"clean": "a", "answer": " b", "labels": "S"}', "labels must be an object"),
    "a million letters": ('{"clean": "' + 10**6 * "a" + '", "answer": " b"}', "clean has 1,000,000 letters"),
    "deep": ('{"clean": ' + 10**5 * "[" + 10**5 * "]" + ', "answer": " b"}', "not JSON|a text"),
    "a long number": ('{"clean": ' + 5000 * "9" + ', "answer": " b"}', "not JSON"),
}


# The tests' own type checker would say these first: they are tried in a process without it.
BADLY_TYPED = {
    "a number as text": ('{"clean": 3, "answer": " b"}', "clean must be a text, and is 3"),
    "a wrong occurrence": ('{"clean": "a", "answer": " b", "occurrence": "2"}', "occurrence must be a whole number"),
    "a wrong chat": ('{"clean": "a", "answer": " b", "chat": 1}', "chat must be true or false"),
    "a wrong span": ('{"clean": "a", "answer": " b", "spans": {"S": 3}}', "spans must map names to texts"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_an_error_that_names_it(name: str, tmp_path: Path):
    line, message = BAD_LINES[name]
    path = tmp_path / "pairs.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n", encoding="utf-8")
    with pytest.raises(InvalidPair, match=f"pairs.jsonl, line 3: .*({message})"):
        ct.read_pairs(path)


BAD_CSV = {
    "empty": ("", "line 1: a header is needed"),
    "a column twice": ("clean,clean,answer\na,b,c\n", "line 1: a header is needed, with every column named once"),
    "no rows": ("clean,answer\n", "has no pairs"),
    "no answer": ("clean,foil\na,b\n", "line 2: answer missing"),
    "an empty answer": ("clean,answer\na,\n", "line 2: answer missing"),
    "a comma too many": ("clean,answer\n\na, b,c\n", "line 3: 3 cells, and 2 columns"),
    "an open quote": ('clean,answer\n"a, b\n', "not CSV"),
    "an occurrence": ("clean,answer,occurrence\na, b,1.5\n", "line 2: occurrence must be a whole number, and is '1.5'"),
    "a chat": ("clean,answer,chat\na, b,yes\n", "line 2: chat must be true or false, and is 'yes'"),
    "a NUL": ("clean,answer\na\0, b\n", "NUL"),
    "a long line": (f"clean,answer\n{'a' * 10**6}, b\n", "field larger than field limit|1,000,000 letters"),
}


@pytest.mark.parametrize("name", BAD_CSV)
def test_a_bad_csv_file_is_an_error_that_names_the_line(name: str, tmp_path: Path):
    text, message = BAD_CSV[name]
    (tmp_path / "pairs.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidPair, match=f"pairs.csv.*({message})"):
        ct.read_pairs(tmp_path / "pairs.csv")


def test_other_bad_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "pairs.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(InvalidPair, match=r"pairs.parquet cannot be read as Parquet"):
        ct.read_pairs(tmp_path / "pairs.parquet")
    (tmp_path / "pairs.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidPair, match="cannot be read as text"):
        ct.read_pairs(tmp_path / "pairs.jsonl")
    with pytest.raises(InvalidPair, match="this is a folder"):
        ct.read_pairs(tmp_path)
    for source in (tmp_path / "none.csv", "", 5000 * "x", "a\0b"):
        with pytest.raises(InvalidPair, match="is not there"):
            ct.read_pairs(source)
    for source in (None, 3, ROWS[0]):
        with pytest.raises(InvalidPair, match="Pairs come from a file"):
            ct.read_pairs(source)
    with pytest.raises(InvalidPair, match="the rows has no pairs|the rows have no pairs"):
        ct.read_pairs([])
    with pytest.raises(InvalidPair, match=r"row 1: the id 'a' was used in row 0 already"):
        ct.read_pairs([ROWS[0], ROWS[0]])
    parquet(tmp_path / "pairs.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MachineError, match=r"pip install \"causal-tracing\[export\]\""):
        ct.read_pairs(tmp_path / "pairs.parquet")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELD_NAMES = ["clean", "answer", "corrupt", "foil", "subject", "occurrence", "spans", "labels", "id", "chat", "other"]
ROW = st.dictionaries(st.sampled_from(FIELD_NAMES), JSON_VALUES)


@given(st.lists(ROW | JSON_VALUES, max_size=4))
@settings(deadline=None, max_examples=1000)
def any_rows(rows: Any) -> None:
    """Pairs, or one clear error."""
    with pairs_or_an_error("row"):
        assert all(isinstance(pair, ct.Pair) for pair in ct.read_pairs(rows))


@contextmanager
def pairs_or_an_error(place: str) -> Iterator[None]:
    try:
        yield
    except InvalidPair as error:
        if place not in str(error):
            raise AssertionError(f"the error does not say where: {error}") from error


def test_badly_typed_rows_are_pairs_or_one_clear_error():
    """In a process without the checks of annotations, which would refuse such rows themselves."""
    done = executed("import sys; sys.path.insert(0, sys.argv[1]); import test_files; test_files.unchecked()",
                    str(Path(__file__).parent))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "all as they should be\n"


def unchecked() -> None:
    for line, message in BADLY_TYPED.values():
        with pytest.raises(InvalidPair, match=f"row 0: .*{message}"):
            ct.read_pairs([json.loads(line)])
    any_rows()
    print("all as they should be")


@given(st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass")),
       st.sampled_from(["p.jsonl", "p.csv", "p.parquet"]))  # fmt: skip
@settings(deadline=None, max_examples=300)
def test_any_file_is_pairs_or_one_clear_error(content: bytes, name: str):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        with pairs_or_an_error(name):
            assert ct.read_pairs(path)


ANY = st.text(st.characters(codec="utf-8") | st.sampled_from(" Rome city"), max_size=12)


@given(ANY, ANY.filter(bool), ANY)
@settings(deadline=None, max_examples=300)
def test_any_texts_are_tokenised_whole_or_one_clear_error(before: Any, subject: Any, after: Any):
    clean = before + subject + after
    pair = ct.Pair(clean=clean, corrupt=clean, answer=" Rome", foil=" Paris", subject=subject)
    with pairs_or_an_error("p"):
        prompt = tokenize(pair, TOKENIZER).clean
        assert "".join(prompt.strings) == clean
        first, last = prompt.subject[0], prompt.subject[-1]
        assert prompt.subject == tuple(range(first, last + 1))
        assert subject in "".join(prompt.strings[first : last + 1])


def test_a_file_with_bad_pairs_writes_nothing_outside_its_folder(tmp_path: Path):
    """On the command line: one line of error, exit code 2, and nothing written."""
    for name in ("a way out", "a NUL", "an override", "a million letters"):
        (tmp_path / "pairs.jsonl").write_text(BAD_LINES[name][0], encoding="utf-8")
        words = ["trace", "--model", "demo", "--pairs", "pairs.jsonl", "--out", "run"]
        done = subprocess.run([COMMAND, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith("InvalidPair: pairs.jsonl, line 1: ")
        assert "Traceback" not in done.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_a_prompt_longer_than_the_context_fails_alone(tmp_path: Path):
    model = ct.load(tiny_model("gpt2"), tokenizer=tiny_tokenizer())  # its positions are a table
    good = {"clean": "the city in Rome", "corrupt": "the city in Paris", "answer": " Mary", "foil": " John"}
    long = good | {name: "the" + 70 * " city" + good[name][-6:] for name in ("clean", "corrupt")}
    trace = ct.run(model, ct.read_pairs([good | {"id": "short"}, long | {"id": "long", "corrupt": long["clean"]}]),
                   tmp_path / "run")  # fmt: skip
    assert [pair["id"] for pair in trace.provenance["pairs"]] == ["short"]
    assert "takes 64 at most" in trace.provenance["failed"]["long"]
    assert 64 < 70 < LONGEST


def test_columns_of_dates_and_numbers_are_labels_that_a_trace_can_hold(tmp_path: Path):
    table = pd.DataFrame(
        {
            "clean": ["a"],
            "answer": [" b"],
            "when": [pd.Timestamp("2020-01-02 03:04")],
            "day": [date(2020, 1, 2)],
            "price": [Decimal("1.10")],
            "sizes": [np.arange(2)],
        }
    )
    table.to_parquet(tmp_path / "pairs.parquet")
    rows = [{"clean": "a", "answer": " b", "n": np.int64(3), "share": np.float32(0.5), "id": "x"}]
    expected = {"when": "2020-01-02 03:04:00", "day": "2020-01-02", "price": "1.10", "sizes": [0, 1]}
    for source in (table, tmp_path / "pairs.parquet"):
        assert ct.read_pairs(source)[0].labels == expected
    (found,) = ct.read_pairs(rows)
    assert json.loads(json.dumps(found.labels)) == {"n": 3, "share": 0.5}
    with pytest.raises(InvalidPair, match="row 0: this pair: the label 'image' is a bytes, which JSON cannot hold"):
        ct.read_pairs([{"clean": "a", "answer": " b", "image": b"x"}])
