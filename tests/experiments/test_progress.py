"""What is told of the work, and where: nothing of short work, lines without a terminal, a bar in one."""

import io
import sys
import time
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import causal_tracing as ct
from causal_tracing.experiments import progress as module
from causal_tracing.experiments.progress import telling
from causal_tracing.models.model import Model
from joint import tiny

PAIR = ct.Pair(clean=" w11 w12 w13 w14", corrupt=" w11 w12 w43 w14", answer=" w7", foil=" w8")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


def worked(seconds: float = 0.0, **options: Any) -> None:
    with telling(True, **options) as told:
        assert told is not None
        for done in range(11):
            told(done, 10)
            time.sleep(seconds)


def test_short_work_is_silent(capfd, monkeypatch):
    worked()
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    worked()
    assert terminal.getvalue() == ""
    assert capfd.readouterr() == ("", "")


def test_a_line_for_every_tenth_without_a_terminal(capfd):
    worked(at_once=True)
    assert capfd.readouterr().err.splitlines() == [f"tracing, {10 * n} %" for n in range(11)]


def test_lines_begin_when_the_work_has_taken_long(capfd, monkeypatch):
    monkeypatch.setattr(module, "LINES_AFTER", 0.05)
    worked(seconds=0.02)
    lines = capfd.readouterr().err.splitlines()
    assert 0 < len(lines) < 11
    assert lines[-1] == "tracing, 100 %"


def test_a_bar_in_a_terminal_is_gone_when_the_work_is_done(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    worked(seconds=0.03, at_once=True)
    assert "tracing" in terminal.getvalue()
    assert "/10" in terminal.getvalue()
    assert terminal.getvalue().endswith("\x1b[2K")  # the line is erased


class Notebook(ModuleType):
    """IPython in a notebook, as far as it is asked: one display at a time, which can be updated."""

    def __init__(self) -> None:
        super().__init__("IPython")
        self.sent: list[tuple[str, dict[str, str]]] = []
        self.display = ModuleType("IPython.display")
        self.display.display = self._show  # pyright: ignore[reportAttributeAccessIssue]

    def get_ipython(self) -> Any:
        return SimpleNamespace(config={"IPKernelApp": {}})

    def _show(self, bundle: dict[str, str], *, raw: bool, display_id: bool) -> Any:
        assert raw
        assert display_id
        self.sent.append(("display", bundle))
        return SimpleNamespace(update=self._update)

    def _update(self, bundle: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.sent.append(("update", bundle))


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Notebook:
    made = Notebook()
    monkeypatch.setitem(sys.modules, "IPython", made)
    monkeypatch.setitem(sys.modules, "IPython.display", made.display)
    return made


def test_a_notebook_has_one_output_that_is_updated_and_empty_at_the_end(notebook, monkeypatch, capfd):
    monkeypatch.setattr(module, "EVERY", 0.0)
    worked(at_once=True)
    assert [how for how, _ in notebook.sent] == ["display", *["update"] * 11]
    assert notebook.sent[5][1] == {
        "text/plain": "tracing, 50 %",
        "text/html": '<progress value="5" max="10"></progress> tracing, 50 %',
    }
    assert notebook.sent[-1][1] == {"text/plain": "", "text/html": ""}
    assert capfd.readouterr() == ("", "")


def test_a_notebook_is_not_flooded_and_short_work_shows_nothing(notebook):
    worked(seconds=0.03, at_once=True)
    assert 2 <= len(notebook.sent) - 1 <= 3  # 0.3 s, and one each quarter of a second
    notebook.sent.clear()
    worked()
    assert notebook.sent == []


def test_a_notebooks_bar_goes_where_the_work_fails(notebook):
    def fail() -> None:
        with telling(True, at_once=True) as told:
            assert told is not None
            told(1, 10)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert notebook.sent[-1][1] == {"text/plain": "", "text/html": ""}


def test_a_callable_is_told_and_false_says_nothing(model, capfd, monkeypatch):
    seen: list[tuple[int, int]] = []
    ct.trace(model, PAIR, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (1000, 1000)
    seen.clear()
    ct.attribute(model, PAIR, method="ig", steps=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert (500, 1000) in seen
    assert seen[-1] == (1000, 1000)
    monkeypatch.setattr(module, "LINES_AFTER", 0.0)
    ct.trace(model, PAIR, progress=False)
    assert capfd.readouterr().err == ""
    ct.trace(model, PAIR)
    assert "tracing, 100 %" in capfd.readouterr().err
