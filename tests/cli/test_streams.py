"""What is printed where the encoding lacks letters: all of it arrives, on stdout and stderr."""

import io
import json
import os
import subprocess
import sys

import pytest

from causal_tracing.cli import console, streams

TEXT = "Überraschung → 東京 −1.5 ░▒▓█ σ…"


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("utf-8", TEXT),
        ("cp1252", "Überraschung -> \\u6771\\u4eac -1.5 :+*# sigma…"),
        ("ascii", "\\xdcberraschung -> \\u6771\\u4eac -1.5 :+*# sigma..."),
    ],
)
def test_letters_that_are_missing_are_written_otherwise(encoding: str, expected: str, monkeypatch):
    from rich.console import Console

    written = {name: io.BytesIO() for name in ("stdout", "stderr")}
    for name, stream in written.items():
        monkeypatch.setattr(sys, name, io.TextIOWrapper(stream, encoding=encoding, write_through=True))
    streams.ready()
    assert streams.writes_all() == (encoding == "utf-8")
    print(TEXT)
    console.note(TEXT)
    Console(highlight=False, markup=False).print(TEXT, soft_wrap=True)
    assert written["stdout"].getvalue().decode(encoding) == 2 * f"{expected}\n"
    assert written["stderr"].getvalue().decode(encoding) == f"{expected}\n"


def test_every_letter_of_our_own_has_one_that_looks_like_it():
    assert all(each.isascii() for each in streams.ALIKE.values())
    assert {"█", "▓", "▒", "░", "·", "−", "→"} <= {*streams.ALIKE}  # those of maps and words
    assert all(len(streams.ALIKE[shade]) == 1 for shade in "█▓▒░·−")  # maps keep their columns
    assert len({streams.ALIKE[shade] for shade in "█▓▒░·−"}) == 6  # and their cells: − is a negative effect


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_the_command_writes_all_it_has(encoding: str):
    """The error of a prompt that the encoding lacks, and a set of pairs that --pairs can read again."""
    beside = os.environ | {"PYTHONIOENCODING": encoding}
    wrong = ["trace", "--model", "demo", "--clean", "a", "--corrupt", "b", "--answer", " c", "--metric", "東京"]
    commands = (["datasets", "facts"], wrong)
    made, said = (
        subprocess.run([sys.executable, "-m", "causal_tracing", *each], capture_output=True, check=False, env=beside)
        for each in commands
    )
    assert made.returncode == 0
    assert len([json.loads(line) for line in made.stdout.decode("ascii").splitlines()]) > 200
    assert "There is no metric '\\u6771\\u4eac'" in said.stderr.decode("ascii")


def test_who_reads_no_more_ends_a_command_without_a_word():
    command = [sys.executable, "-m", "causal_tracing", "datasets", "facts"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        run.stdout.close()
        said = run.stderr.read()
    assert (run.returncode, said) == (1, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a file that is always full")
def test_a_stream_that_cannot_be_written_is_one_error():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "causal_tracing", "datasets"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 3
    assert done.stderr == "MachineError: The result could not be printed: No space left on device. Send it elsewhere.\n"


READ = """
import sys
from causal_tracing.cli.asked import read
print(ascii(read(None, {"clean": sys.argv[1], "answer": "b"}, chat=False).pairs[0].clean))
"""


def test_prompts_are_utf_8_where_the_locale_knows_ascii_alone():
    """Python then keeps the bytes of an argument as halves of letters, and the prompt was said to be made of such."""
    beside = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", READ, "Köln 東"], capture_output=True, check=True, env=beside)
    assert done.stdout.decode("ascii").strip() == ascii("Köln 東")
