"""Twenty pairs of four tokens for run folders, some that are longer or cannot be traced, and what a folder holds."""

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import causal_tracing as ct
from causal_tracing.models.model import Model
from causal_tracing.results.storage.run_folder import RESULTS

COUNT = 20  # two whole chunks of eight, and four


def pair(n: int, **fields: Any) -> ct.Pair:
    common: dict[str, Any] = {
        "clean": f" w11 w{20 + n} w13 w14",
        "corrupt": f" w11 w{50 + n} w13 w14",
        "answer": " w7",
        "foil": " w8",
    }
    return ct.Pair(**(common | fields))


PAIRS = [pair(n) for n in range(COUNT)]
LONGER = ct.Pair(clean=" w11 w12 w13 w14 w15", corrupt=" w11 w42 w13 w14 w15", answer=" w7", foil=" w8")
MISALIGNED = ct.Pair(clean=" w1 w2", corrupt=" w1 w2 w3", answer=" w7", id="misaligned")


def arrays(folder: Path) -> dict[str, tuple[str, bytes, str]]:
    """What is in the rows, to the byte."""
    with sqlite3.connect(folder / RESULTS) as connection:
        found = connection.execute("SELECT pair, texts, arrays, sha256 FROM pairs").fetchall()
    return {row[0]: tuple(row[1:]) for row in found}


def whole_run(model: Model, folder: Path) -> Path:
    """The folder, with a run of all pairs in it."""
    ct.run(model, PAIRS, folder)
    return folder


def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))
