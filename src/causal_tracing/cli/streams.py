"""What is printed where the encoding lacks a letter (a redirected stream on Windows, an ASCII locale): nothing is lost.

A letter that cannot be written is written by one that looks like it, else by its number, as in \\u6771.
"""

import codecs
import sys

LOOKALIKE = "causal_tracing.lookalike"
ALIKE = {
    "−": "-", "–": "-", "—": "-", "─": "-", "│": "|", "├": "|", "└": "`", "→": "->", "…": "...", "·": ".", "•": "*",
    "█": "#", "▓": "=", "▒": "-", "░": ".", "≤": "<=", "≥": ">=", "×": "x", "±": "+/-", "²": "^2", "σ": "sigma",
    "Σ": "Sum", "‖": "||", "⟨": "<", "⟩": ">", "’": "'", "“": '"', "”": '"', "\u202f": " ", "\u00a0": " ",
}  # fmt: skip


def ready() -> None:
    """Both streams write whatever they are given, in the encoding that they have."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=LOOKALIKE)  # pyright: ignore[reportAttributeAccessIssue]


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
