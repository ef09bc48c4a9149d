"""How tests of the command line run a command, and on which model."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import causal_tracing
from causal_tracing.cli import app as cli
from loaded import shared
from tokenizers_for_tests import words

WORDS = words(*(f" w{n}" for n in range(96)))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever model is named, a tiny llama is loaded, in an empty folder."""

    def load(name: str, **options: Any) -> Any:
        return replace(shared("llama"), tokenizer=WORDS, name=name, source={"kind": "folder"})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(causal_tracing, "load", load)


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command; gives its exit code, stdout and stderr."""

    def asked(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["causal-tracing", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return asked
