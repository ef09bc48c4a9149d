"""Run folders that are damaged, half written, in use or full: refused by name, and left as they are."""

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

import causal_tracing as ct
from causal_tracing.errors import InvalidResults, MachineError
from causal_tracing.models.model import Model
from causal_tracing.results.storage.merge import merge
from causal_tracing.results.storage.run_folder import MANIFEST, RESULTS
from forked_driver import executed
from joint import tiny
from runs import COUNT, PAIRS, arrays, copied, whole_run


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


@pytest.fixture(scope="module")
def whole(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_run(model, tmp_path_factory.mktemp("runs") / "whole")


def flipped(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


def of_arrays(path: Path) -> int:
    """A byte in the middle of a row's arrays."""
    with sqlite3.connect(path) as connection:
        (blob,) = connection.execute("SELECT arrays FROM pairs LIMIT 1").fetchone()
    return path.read_bytes().index(blob[600:640]) + 20


DAMAGE: list[tuple[str, Callable[[Path], object], str]] = [
    (
        "arrays",
        lambda folder: flipped(folder / RESULTS, of_arrays(folder / RESULTS)),
        "the row of pair 'pair-.*' is not",
    ),
    ("header", lambda folder: flipped(folder / RESULTS, 3), "results.sqlite is damaged"),
    ("cut", lambda folder: os.truncate(folder / RESULTS, 4096), "results.sqlite is damaged"),
    ("emptied", lambda folder: os.truncate(folder / RESULTS, 0), "results.sqlite is damaged: it is empty"),
    ("manifest", lambda folder: flipped(folder / MANIFEST, 400), "manifest.json is damaged"),
    ("newer", lambda folder: newer(folder / MANIFEST), "newer version .schema 99"),
    ("newer rows", lambda folder: newer_rows(folder / RESULTS), "newer version .schema 99"),
]


def newer(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 99}))


def newer_rows(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.close()


@pytest.mark.parametrize(("damage", "said"), [one[1:] for one in DAMAGE], ids=[one[0] for one in DAMAGE])
def test_damage_is_refused_by_name(model, whole, tmp_path, damage, said):
    folder = copied(whole, tmp_path)
    damage(folder)
    with pytest.raises(InvalidResults, match=said):
        ct.open_trace(folder)


def test_a_kill_before_the_first_row_is_a_run_without_rows(model, whole, tmp_path):
    folder = copied(whole, tmp_path)
    (folder / RESULTS).unlink()
    with pytest.raises(InvalidResults, match="holds no measured pair yet"):
        ct.open_trace(folder)
    ct.run(model, PAIRS, folder)
    assert arrays(folder) == arrays(whole)


def test_a_second_process_is_refused(model, whole, tmp_path):
    folder = copied(whole, tmp_path)
    with FileLock(folder / "lock"), pytest.raises(MachineError, match="Another process is at work"):
        ct.run(model, PAIRS, folder)
    ct.run(model, PAIRS, folder)


def test_something_else_in_the_folder_is_left_alone(model, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InvalidResults, match=r"holds thesis\.tex and is no run folder"):
        ct.run(model, PAIRS, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


FULL = """
import resource, sys
sys.path.insert(0, sys.argv[2])
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from causal_tracing.engine.checks.check import accept
from families import FAMILIES, build
from joint import WORDS
from runs import PAIRS
import causal_tracing as ct

model = accept(build(next(family for family in FAMILIES if family.name == "llama")), WORDS, name="tiny")
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
ct.run(model, PAIRS, sys.argv[1])
"""


def test_a_full_disk_is_said_and_earlier_rows_are_intact(model, whole, tmp_path):
    size = str((whole / RESULTS).stat().st_size * 6 // 10)  # enough for one chunk of three
    done = executed(FULL, str(tmp_path / "run"), str(Path(__file__).parents[1]), size)
    assert done.returncode != 0
    assert "MachineError" in done.stderr
    assert "What was committed before is intact" in done.stderr
    assert ct.open_trace(tmp_path / "run").effects.sizes["pair"] == 8
    ct.run(model, PAIRS, tmp_path / "run")
    assert arrays(tmp_path / "run").keys() == arrays(whole).keys()


def test_a_folder_that_vanishes_while_it_is_worked_in_is_said(model, tmp_path):
    folder = tmp_path / "run"

    def vanish(done: int, of: int) -> None:
        if done > of // 2:
            shutil.rmtree(folder, ignore_errors=True)

    with pytest.raises(
        MachineError, match=r"run is not there any more: it was moved or deleted while it was worked in"
    ):
        ct.run(model, PAIRS, folder, progress=vanish)
    assert not folder.exists()


def listing(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Everything in a folder: when it was written, and what it holds."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_opening_a_run_folder_writes_nothing(model, whole, tmp_path):
    folder = copied(whole, tmp_path)
    before = listing(folder)
    ct.open_trace(folder)
    assert listing(folder) == before
    (folder / RESULTS).unlink()
    before = listing(folder)
    with pytest.raises(InvalidResults, match="holds no measured pair yet"):
        ct.open_trace(folder)
    assert listing(folder) == before
    assert merge(tmp_path / "all", [folder]) == [0, 1, 2]


def test_what_a_kill_left_half_written_is_taken_back_in_a_copy(model, whole, tmp_path):
    """The journal of a commit that was killed is hot: a reader that may not write cannot roll it back."""
    folder, killed = copied(whole, tmp_path), tmp_path / "killed"
    connection = sqlite3.connect(folder / RESULTS, isolation_level=None)
    connection.execute("PRAGMA cache_size=1")  # so that pages are written before the commit
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("DELETE FROM chunks WHERE chunk = 0")
    connection.execute("UPDATE pairs SET arrays = zeroblob(200000)")
    shutil.copytree(folder, killed)
    connection.close()
    assert (killed / f"{RESULTS}-journal").stat().st_size > 0
    before = listing(killed)
    assert ct.open_trace(killed).effects.sizes["pair"] == COUNT
    assert listing(killed) == before
    ct.run(model, PAIRS, killed)
    assert arrays(killed) == arrays(whole)


def test_a_merge_that_fails_leaves_nothing(model, whole, tmp_path):
    damaged = copied(whole, tmp_path)
    flipped(damaged / RESULTS, of_arrays(damaged / RESULTS))
    with pytest.raises(InvalidResults, match="is damaged"):
        merge(tmp_path / "all", [whole, damaged])
    assert not (tmp_path / "all").exists()
