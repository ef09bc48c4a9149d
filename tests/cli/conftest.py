"""How tests of the command line run a command, and on which model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import causal_tracing
from command_line import WORDS, run
from loaded import shared


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
        return run(monkeypatch, capsys, *arguments)

    return asked
