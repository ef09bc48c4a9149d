"""How far the work is: a bar in a notebook or a terminal, lines elsewhere. Work that ends at once shows nothing."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

from causal_tracing.patching.options.trace import Progress

BAR_AFTER, LINES_AFTER = 1.0, 2.0  # seconds of work before anything is shown
EVERY = 0.25  # seconds between two updates of a notebook's bar: each is a message to the browser


@contextmanager
def telling(progress: bool | Progress, *, at_once: bool = False, pairs: int = 0) -> Iterator[Progress | None]:
    """What is to be called with (done, total): made for True, none for False, a callable as it is.

    `at_once`: what is shown is shown from the beginning. Of many `pairs` it is said how many a minute are done.
    """
    if progress is False:
        yield None
    elif progress is not True:
        yield progress
    elif display := _display():
        with _in_notebook(display, 0.0 if at_once else BAR_AFTER, pairs) as told:
            yield told
    elif sys.stderr is None or getattr(sys.stderr, "closed", False):  # a program without a console
        yield None
    elif getattr(sys.stderr, "isatty", bool)():  # what stands in its place need not have one
        with _in_terminal(0.0 if at_once else BAR_AFTER, pairs) as told:
            yield told
    else:
        yield _lines(0.0 if at_once else LINES_AFTER, pairs)


def _display() -> Callable[..., Any] | None:
    """IPython's `display`, where this is a notebook; None elsewhere. IPython is never loaded for it."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if "IPKernelApp" not in getattr(shell, "config", ()):
        return None
    from IPython.display import display  # pyright: ignore[reportMissingImports]

    return display


@contextmanager
def _in_terminal(delay: float, pairs: int) -> Iterator[Progress]:
    """A bar on stderr, gone when the work is done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("tracing"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}"),
    )
    bar = Bar(
        *columns,
        console=Console(file=sys.stderr),
        transient=True,
        refresh_per_second=4,
        redirect_stdout=False,  # what a program prints meanwhile stays its own
        redirect_stderr=False,
    )
    task, pace, started = bar.add_task("", total=None, said=""), _Pace(pairs), time.monotonic()

    def told(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total, said=pace.said(done, total))
        # A bar that is made, but not begun, prints nothing.
        if not bar.live.is_started and time.monotonic() - started >= delay:
            bar.start()

    try:
        yield told
    finally:
        if bar.live.is_started:
            bar.stop()


@contextmanager
def _in_notebook(display: Callable[..., Any], delay: float, pairs: int) -> Iterator[Progress]:
    """One output of the cell, updated in place, and empty when the work is done; it needs no widgets."""
    pace, started, shown, handle = _Pace(pairs), time.monotonic(), 0.0, None

    def told(done: int, total: int) -> None:
        nonlocal shown, handle
        now, said = time.monotonic(), pace.said(done, total)
        if now - started < delay or (handle is not None and now - shown < EVERY):
            return
        shown, bundle = now, _bundle(done, total, said)
        if handle is None:
            handle = display(bundle, raw=True, display_id=True)
        else:
            handle.update(bundle, raw=True)

    try:
        yield told
    finally:
        if handle is not None:
            handle.update({"text/plain": "", "text/html": ""}, raw=True)


def _bundle(done: int, total: int, said: str) -> dict[str, str]:
    """How far the work is, as text and as HTML without style or script."""
    text = f"tracing, {100 * done // max(1, total)} %{said and ', ' + said}"
    return {
        "text/plain": text,
        "text/html": f'<progress value="{done}" max="{total}"></progress> {escape(text)}',
    }


class _Pace:
    """How many pairs a minute are done, and how long the rest takes at that; what was there before does not count."""

    def __init__(self, pairs: int) -> None:
        self.pairs = pairs
        self.begun: tuple[float, float] | None = None  # when, and how much was done then

    def said(self, done: int, total: int) -> str:
        """Such as "24.0 pairs a minute, 2 min left"; empty while nothing can be said."""
        now, share = time.monotonic(), done / max(1, total)
        if self.begun is None:
            self.begun = now, share
        since, before = self.begun
        if not self.pairs or share <= before or now <= since:
            return ""
        a_minute = (share - before) * self.pairs * 60 / (now - since)
        left = (1 - share) * self.pairs / a_minute
        return f"{a_minute:.1f} pairs a minute, {max(1, round(left))} min left" if share < 1 else ""


def _lines(delay: float, pairs: int) -> Progress:
    """A line on stderr for every tenth of the work."""
    started, reached, pace = time.monotonic(), -1, _Pace(pairs)

    def told(done: int, total: int) -> None:
        nonlocal reached
        tenth, said = 10 * done // max(1, total), pace.said(done, total)
        if tenth > reached and time.monotonic() - started >= delay:
            reached = tenth
            print(f"tracing, {10 * tenth} %{said and ', ' + said}", file=sys.stderr, flush=True)

    return told
