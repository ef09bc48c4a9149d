"""Terminals as people have them: narrow ones, of few colours, with control characters in what is shown."""

from typing import Any

import pytest

from causal_tracing.report.terminal import wrapped

PAIR = ["--clean", " w11 w12 w13 w14 w15", "--corrupt", " w11 w12 w43 w14 w15", "--answer", " w7", "--foil", " w8"]
TRACE = ["trace", "--model", "tiny", *PAIR, "--components", "mlp_out", "--spot-checks", "0"]


def test_help_has_every_options_whole_name_in_a_narrow_terminal(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in ("20", "40", "60", "100"):
        monkeypatch.setenv("COLUMNS", columns)
        code, out, _ = ask("trace", "--help")
        assert code == 0
        assert "--expert-positions" in out, columns
        assert "--knockout-window" in out
    code, _, err = ask("trase")
    assert (code, "No such command 'trase'." in err) == (2, True)


@pytest.mark.usefixtures("tiny")
def test_maps_are_no_wider_than_the_terminal(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in (20, 40, None):
        monkeypatch.setenv("COLUMNS", str(columns)) if columns else monkeypatch.delenv("COLUMNS", raising=False)
        code, out, err = ask(*TRACE, "--lens")
        assert code == 0, err
        title, *rows = out.partition("\nmlp_out:")[2].partition("\n\n")[0].splitlines()[-7:]
        assert title.endswith("logits")
        assert len(rows) == 6  # the ruler, and five tokens
        assert max(map(len, rows)) <= (columns or 80)
        assert out.count("logit lens at the last token, pair pair-0") == (2 if columns else 1)


TABLES = {
    "check": (["check", "--model", "tiny"], ("check ", "bound")),
    "trace": (["trace", "--model", "tiny", *PAIR, "--spot-checks", "0"], ("strongest sites ", "interaction")),
    "attribute": (["attribute", "--model", "tiny", *PAIR, "--verify", "3", "--sample", "3"], ("component ", "recall")),
}


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("name", TABLES)
def test_words_and_tables_fit_the_terminal(ask: Any, monkeypatch: pytest.MonkeyPatch, name: str, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    command, (first, last) = TABLES[name]
    code, out, err = ask(*command)
    assert code == 0, err
    lines = out.splitlines()
    assert max(map(len, lines)) <= columns
    assert any(line.startswith(first) and line.endswith(last) for line in lines)  # a table's heading is whole


def test_a_long_line_is_broken_between_words_and_set_in() -> None:
    assert wrapped("- one two three", 9) == "- one two\n  three"
    assert wrapped("  a: 東京 東京", 10) == "  a: 東京\n    東京"  # two columns a letter
    assert wrapped("x" * 12 + " y", 9) == "x" * 12 + "\n  y"  # nowhere to break
    assert wrapped("one two three", None) == "one two three"


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(("term", "shaded"), [("xterm", False), ("xterm-256color", True)])
def test_shades_are_letters_where_a_terminal_has_few_colours(
    ask: Any, monkeypatch: pytest.MonkeyPatch, term: str, shaded: bool
) -> None:
    """Of sixteen colours, those of both signs would be the same grey."""
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("FORCE_COLOR", "1")
    for name in ("COLORTERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    code, out, err = ask(*TRACE)
    assert code == 0, err
    assert ("48;5;" in out) == shaded
    assert any(letter in out for letter in "░▒▓█") != shaded


@pytest.mark.usefixtures("tiny")
def test_what_a_terminal_would_obey_is_named_and_not_sent_there(ask: Any) -> None:
    odd = ["--clean", " w11\r\x1b[31m w12", "--corrupt", " w11\r\x1b[32m w12", "--answer", " w7", "--foil", " w8"]
    code, out, err = ask("trace", "--model", "tiny", *odd, "--components", "mlp_out", "--spot-checks", "0")
    assert code == 0, err
    assert "\\r\\x1b[31m" in err
    assert not {"\r", "\x1b"} & {*err, *out}
