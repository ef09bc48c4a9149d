"""How far the work is: a bar in a notebook or a terminal, lines elsewhere. Work that ends at once shows nothing."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from causal_tracing.patching.options import Progress

BAR_AFTER, LINES_AFTER = 1.0, 2.0  # seconds of work before anything is shown


@contextmanager
def telling(progress: bool | Progress, *, at_once: bool = False, pairs: int = 0) -> Iterator[Progress | None]:
    """What is to be called with (done, total): made for True, none for False, a callable as it is.

    `at_once`: what is shown is shown from the beginning. Of many `pairs` it is said how many a minute are done.
    """
    if progress is False:
        yield None
    elif progress is not True:
        yield progress
    elif sys.stderr.isatty() or _in_notebook():
        with _bar(0.0 if at_once else BAR_AFTER, pairs) as told:
            yield told
    else:
        yield _lines(0.0 if at_once else LINES_AFTER, pairs)


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", ())


@contextmanager
def _bar(delay: float, pairs: int) -> Iterator[Progress]:
    from tqdm.auto import tqdm

    pace = _Pace(pairs)
    with tqdm(desc="tracing", delay=delay, leave=False, file=sys.stderr) as bar:

        def told(done: int, total: int) -> None:
            bar.total = total
            bar.set_postfix_str(pace.said(done, total), refresh=False)
            bar.update(done - bar.n)

        yield told


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
