"""A command line that is run in this process on tiny models, whatever model it names."""

import sys
from dataclasses import replace
from typing import Any

import pytest

import causal_tracing
from causal_tracing.cli import app as cli
from causal_tracing.errors import ModelNotFound
from loaded import shared
from tokenizers_for_tests import words

WORDS = words(*(f" w{n}" for n in range(96)))
CLEAN, CORRUPT = " w11 w12 w13 w14 w15", " w11 w12 w43 w14 w15"
PAIR = ["--clean", CLEAN, "--corrupt", CORRUPT, "--answer", " w7", "--foil", " w8"]
TRACE = ["trace", "--model", "tiny", *PAIR]
NOISED = ["trace", "--model", "tiny", "--prompt", CLEAN, "--subject", "w12 w13", "--answer", " w7", "--foil", " w8"]
NOISE = ["--noise", "3sigma", "--draws", "3"]


def load_tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """`load` gives a tiny model, whatever it is asked for, and remembers how it was asked."""
    asked: dict[str, Any] = {}

    def load(name: str, **options: Any) -> Any:
        asked.update(options, name=name)
        if name == "none":
            raise ModelNotFound("There is no model 'none'.")
        family = {"parallel": "gpt_neox", "bloom": "bloom"}.get(name, "llama")
        return replace(shared(family), tokenizer=WORDS, name=name, source={"kind": "folder"})

    monkeypatch.setattr(causal_tracing, "load", load)
    return asked


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    monkeypatch.setattr(sys, "argv", ["causal-tracing", *arguments])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    shown = capsys.readouterr()
    return code, shown.out, shown.err
