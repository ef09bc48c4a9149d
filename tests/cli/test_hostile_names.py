"""What a terminal would obey is named on stderr too, a width of 0 is none, and names need not be UTF-8."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from causal_tracing.cli import console

pytestmark = pytest.mark.usefixtures("tiny")
PAIR = ["--clean", " w11 w20 w13", "--corrupt", " w11 w50 w13", "--answer", " w7", "--foil", " w8"]
TRACE = ["trace", "--model", "tiny", *PAIR, "--layers", "0", "--components", "mlp_out"]


def test_errors_and_warnings_send_nothing_that_a_terminal_obeys(ask: Any) -> None:
    code, _, err = ask("report", "gone\x1b[2J\x07")
    assert code == 2
    assert "gone\\x1b[2J\\x07 is not there" in err
    code, _, err = ask(*TRACE[:3], "--pairs", "gone\x1b[2J.csv")
    assert code == 2
    assert "gone\\x1b[2J.csv is not there" in err


def test_notes_do_neither(capsys: pytest.CaptureFixture[str]) -> None:
    console.note("warning: 'abc\x1b[8m'\n  then\u202e")
    assert capsys.readouterr().err == "warning: 'abc\\x1b[8m'\n  then\\u202e\n"


def test_lines_of_an_error_stay_lines(ask: Any) -> None:
    _, _, err = ask(*TRACE[:3], "--clean", " w1 w2", "--corrupt", " w1", "--answer", " w3")
    assert err.count("\n") >= 3
    assert "\n  clean    2 tokens" in err


@pytest.mark.parametrize("columns", ["0", "00", ""])
def test_a_width_of_nothing_is_none(columns: str, ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    _, out, _ = ask(*TRACE)
    assert "restoring it brings back" in max(out.split("\n"), key=len)
    monkeypatch.setenv("COLUMNS", columns)
    assert "Which parts of a language model carry a behaviour" in ask("--help")[1]


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux alone")
def test_names_that_are_not_utf_8(ask: Any, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    assert ask(*TRACE, "--out", name)[0] == 0
    for file in ("report.html", f"{name}.csv", f"{name}.parquet", f"{name}.nc"):
        command = ["report", name] if file == "report.html" else ["export", name, file]
        code, out, _ = ask(*command)
        assert (code, out.count("\n")) == (0, 1), file
    rows = [f'{{"clean": " w11 w{20 + n} w13", "corrupt": " w11 w{50 + n} w13", "answer": " w7"}}\n' for n in range(2)]
    (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    assert ask(*TRACE[:3], "--pairs", f"{name}.jsonl", "--layers", "0", "--out", "run")[0] == 0


def test_pairs_come_from_stdin_too(ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "stdin"
    table.write_text("clean,corrupt,answer\n w11 w20 w13, w11 w50 w13, w7\n w11 w21 w13, w11 w51 w13, w7\n")
    monkeypatch.setattr("causal_tracing.cli.asked.STDIN", str(table))
    code, out, _ = ask(*TRACE[:3], "--pairs", "-", "--layers", "0")
    assert code == 0
    assert out.startswith("2 pairs ")


def test_an_error_is_no_result_where_stderr_is_closed() -> None:
    command = [sys.executable, "-m", "causal_tracing", "report", "nothere"]
    done = subprocess.run(["bash", "-c", '"$@" 2>&-', "_", *command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
