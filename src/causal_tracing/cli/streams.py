"""What is printed where the encoding lacks a letter (a redirected stream on Windows, an ASCII locale): nothing is lost.

A letter that cannot be written is written by one that looks like it, else by its number, as in \\u6771.
"""

import codecs
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from causal_tracing.errors import MachineError

LOOKALIKE = "causal_tracing.lookalike"
ALIKE = {
    "−": "-", "–": "-", "—": "-", "─": "-", "│": "|", "├": "|", "└": "`", "→": "->", "…": "...", "·": ".", "•": "*",
    "█": "#", "▓": "*", "▒": "+", "░": ":", "≤": "<=", "≥": ">=", "×": "x", "±": "+/-", "²": "^2", "σ": "sigma",
    "Σ": "Sum", "‖": "||", "⟨": "<", "⟩": ">", "’": "'", "“": '"', "”": '"', "\u202f": " ", "\u00a0": " ",
}  # fmt: skip
REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF, errno.EPIPE)


def ready() -> None:
    """Both streams write whatever they are given, in the encoding that they have; notes never go to stdout."""
    if sys.stderr is None:  # closed: what is printed there would be printed among the results
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (until the process ends)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=LOOKALIKE)  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def written() -> Iterator[None]:
    """What is printed within is written when it ends. Raises MachineError where that cannot be, such as a full disk.

    Who reads no more (`| head`) is told nothing: the command ends, as others do.
    """
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:  # closed
                sys.stdout.flush()
    except OSError as error:
        # An error that names a file is of that file, and not of what was printed.
        if error.errno not in REFUSED or error.filename is not None:
            raise
        sys.stdout = None  # what is left in it would fail once more when Python ends
        if error.errno == errno.EPIPE:
            raise SystemExit(1) from None
        raise MachineError(f"The result could not be printed: {error.strerror}. Send it elsewhere.") from error


def writes_all() -> bool:
    """Whether stdout has every letter."""
    return codecs.lookup(getattr(sys.stdout, "encoding", None) or "utf-8").name.startswith("utf")


def _lookalike(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    letters = error.object[error.start : error.end]
    return "".join(ALIKE.get(letter) or _number(letter) for letter in letters), error.end


def _number(letter: str) -> str:
    return letter.encode("ascii", "backslashreplace").decode("ascii")


codecs.register_error(LOOKALIKE, _lookalike)
