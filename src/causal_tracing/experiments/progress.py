"""How far the work is: a bar in a notebook or a terminal, lines elsewhere. Work that ends at once shows nothing."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from causal_tracing.patching.options import Progress

BAR_AFTER, LINES_AFTER = 1.0, 2.0  # seconds of work before anything is shown


@contextmanager
def telling(progress: bool | Progress, *, at_once: bool = False) -> Iterator[Progress | None]:
    """What is to be called with (done, total): made for True, none for False, a callable as it is.

    `at_once`: what is shown is shown from the beginning.
    """
    if progress is False:
        yield None
    elif progress is not True:
        yield progress
    elif sys.stderr.isatty() or _in_notebook():
        with _bar(0.0 if at_once else BAR_AFTER) as told:
            yield told
    else:
        yield _lines(0.0 if at_once else LINES_AFTER)


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", ())


@contextmanager
def _bar(delay: float) -> Iterator[Progress]:
    from tqdm.auto import tqdm

    with tqdm(desc="tracing", delay=delay, leave=False, file=sys.stderr) as bar:

        def told(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield told


def _lines(delay: float) -> Progress:
    """A line on stderr for every tenth of the work."""
    started, reached = time.monotonic(), -1

    def told(done: int, total: int) -> None:
        nonlocal reached
        tenth = 10 * done // max(1, total)
        if tenth > reached and time.monotonic() - started >= delay:
            reached = tenth
            print(f"tracing, {10 * tenth} %", file=sys.stderr, flush=True)

    return told
