"""Sources of pairs as people have them: numpy's values, a column that is there twice, files without an ending."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from causal_tracing import Pair, read_pairs
from causal_tracing.errors import InvalidPair

ROW: dict[str, Any] = {"clean": "the A of", "corrupt": "the B of", "answer": " x", "foil": " y"}
PAIR = Pair(**ROW)


class Named:
    """What other libraries have for a path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pairs", "clean,corrupt,answer,foil\nthe A of,the B of, x, y\n"),
        ("pairs.txt", "clean\tcorrupt\tanswer\tfoil\nthe A of\tthe B of\t x\t y\n"),
        ("pairs.dat", '{"clean": "the A of", "corrupt": "the B of",\n "answer": " x", "foil": " y"}'),
        ("63", '{"clean": "the A of", "corrupt": "the B of", "answer": " x", "foil": " y"}\n'),
    ],
)
def test_a_file_whose_ending_says_nothing_is_read_by_what_is_in_it(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert read_pairs(tmp_path / name) == [PAIR]
    assert read_pairs(Named(tmp_path / name)) == [PAIR]


def test_such_a_file_that_is_neither_is_said_to_be_no_json(tmp_path: Path) -> None:
    for text in ("- clean: a\n  answer: b\n", "x" * 200_000):
        (tmp_path / "pairs.yaml").write_text(text)
        with pytest.raises(InvalidPair, match=r"pairs\.yaml, line 1: not JSON"):
            read_pairs(tmp_path / "pairs.yaml")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"chat": np.True_}, {"chat": True}),
        ({"subject": "A", "occurrence": np.int64(-1)}, {"subject": "A", "occurrence": -1}),
        ({"clean": np.array("the A of")}, {}),
        ({"answer": np.array([" x", " z"])}, {"answer": (" x", " z")}),
        ({"id": 3, "cluster": 7}, {"id": "3", "cluster": "7"}),
        ({"id": np.int32(3), "cluster": 7.0}, {"id": "3", "cluster": "7"}),  # of a column with gaps
        ({"score": float("inf"), "all": np.array([1.0, np.nan])}, {"labels": {"score": "inf", "all": [1.0, "nan"]}}),
        ({"labels": {"n": np.float32(0.5), 10: 1}}, {"labels": {"n": 0.5, "10": 1}}),
    ],
)
def test_values_of_numpy_and_numbers_as_names(given: dict[str, Any], kept: dict[str, Any]) -> None:
    assert read_pairs([ROW | given]) == [Pair(**(ROW | kept))]


def test_a_table_with_a_column_twice_is_refused_and_no_column_dropped(tmp_path: Path) -> None:
    names = [*ROW, "answer"]
    frame = pd.DataFrame([[*ROW.values(), " z"]], columns=names)
    table = pa.table([pa.array([value]) for value in (*ROW.values(), " z")], names=names)
    parquet.write_table(table, tmp_path / "pairs.parquet")
    for source in (frame, table, tmp_path / "pairs.parquet"):
        with pytest.raises(InvalidPair, match="Two columns are called 'answer'"):
            read_pairs(source)


def test_a_folder_that_is_called_as_a_set_does_not_hide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = read_pairs("facts:capital")
    (tmp_path / "facts:capital").mkdir()  # of the run of these pairs
    assert read_pairs("facts:capital") == before


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (io.StringIO("[]"), "An open file was given. Give its name"),
        (ROW, "this is dict.*put a single row into a list"),
        (PAIR, "this is Pair.*put a single row into a list"),
        (b"pairs.csv", "this is bytes"),
        ("https://example.com/pairs.csv", r"https://example\.com/pairs\.csv is not there.*fetched from a network"),
        ("", "'' is not there"),
        ("/", "this is a folder"),
    ],
)
def test_what_is_no_source_is_said(source: Any, message: str) -> None:
    with pytest.raises(InvalidPair, match=message):
        read_pairs(source)


def test_pairs_are_values_that_sets_and_dictionaries_take() -> None:
    same = Pair(**ROW, labels={"n": [1]}, spans={"where": "of"})
    assert {PAIR, Pair(**ROW)} == {PAIR}
    assert hash(same) == hash(Pair(**ROW, labels={"n": [1]}, spans={"where": "of"}))


def test_what_numpy_has_for_texts_and_numbers_makes_the_same_pair() -> None:
    """In a process of its own: here annotations are checked, which know no numbers of numpy."""
    made = (
        "import numpy as np\nfrom causal_tracing import Pair\n"
        "asked = {'clean': 'a b a', 'answer': ['x', 'y'], 'subject': 'a', 'occurrence': 1, 'chat': True, 'id': 'n'}\n"
        "same = Pair(**{name: np.array(value)[()] for name, value in asked.items()})\n"
        "assert same == Pair(**asked), same\nassert repr(same) == repr(Pair(**asked)), same"
    )
    done = subprocess.run([sys.executable, "-c", made], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
