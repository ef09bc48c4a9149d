"""What may follow a prompt: one text, or a set of texts that count together, as if any of them were the answer.

A set of one text is that text. Where there is nothing but text (a cell of CSV, a flag of the command line, a label of a
result), a set is spelled as a JSON list: [" he", " his"].
"""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from causal_tracing.errors import InvalidPair

Texts = str | Sequence[str]  # one text, or those of a set
TARGETS = ("answer", "foil")  # the fields of a pair that may be sets
BEGIN, END = ('["', "['"), "]"  # of a set that is spelled, and of a list as Python and pandas write it
MOST_SHOWN, FIRST_SHOWN = 5, 3  # of a set's texts, on one line


def checked_texts(what: str, value: Any) -> str | tuple[str, ...]:
    """A text as it is, a list of several as a tuple, a list of one as its text. Raises InvalidPair."""
    if isinstance(value, str):
        return _checked(what, value)
    if not isinstance(value, Sequence):
        raise InvalidPair(f"{what} must be a text or a list of texts, and is {value!r}.")
    if not value:
        raise InvalidPair(f"{what} is an empty list. Give a text, several of them, or leave it out.")
    found = [_checked(f"{what}, text {n}", text) for n, text in enumerate(value)]
    twice = [text for text, times in Counter(found).items() if times > 1]
    if twice:
        raise InvalidPair(f"{what} has {twice[0]!r} twice, which would count twice. Name each text once.")
    return tuple(found) if len(found) > 1 else found[0]


def _checked(what: str, text: Any) -> str:
    if not isinstance(text, str):
        raise InvalidPair(f"{what} must be a text, and is {text!r}.")
    if not text:
        raise InvalidPair(f"{what} is empty. Give a text, or leave it out.")
    check_letters(what, text)
    return text


def check_letters(what: str, text: str) -> None:
    """Raises InvalidPair for halves of letters (lone surrogates), which no tokenizer can read."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidPair(f"{what} has half a letter (U+{ord(text[error.start]):04X}) at {error.start}.") from None


def each_of(texts: Texts | None) -> tuple[str, ...]:
    """The texts one by one; none of None."""
    return () if texts is None else (texts,) if isinstance(texts, str) else tuple(texts)


def spelled(texts: Texts | None) -> str:
    """A text as it is, a set as a JSON list; so is a text that would be read as one. Of None an empty text."""
    if texts is None:
        return ""
    if isinstance(texts, str) and not _is_set(texts):
        return texts
    return json.dumps(list(each_of(texts)), ensure_ascii=False)


def meant(what: str, text: str) -> str | list[str]:
    """What a text of a cell or a flag means: a set where it is a JSON list of texts, else itself. Raises InvalidPair.

    `["` alone is a text, which code may go on with.
    """
    if not _is_set(text):
        return text
    found = _json(text)
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise InvalidPair(
            f"{what} begins and ends as a list of texts, and is none: {text!r}. Write such as "
            '[" he", " his"]; a text of just these letters is a list of one.'
        )
    return found


def texts_of(text: str) -> str | list[str]:
    """What was spelled, again: a text, or the texts of a set."""
    found = _json(text) if _is_set(text) else None
    return text if not isinstance(found, list) else list(map(str, found)) if len(found) > 1 else str(found[0])


def on_one_line(text: str) -> str:
    """A spelled text for people: of a set its texts, or the first of them and how many there are."""
    found = texts_of(text)
    if isinstance(found, str):
        return found
    first, *others = found if len(found) <= MOST_SHOWN else found[:FIRST_SHOWN]
    more = f" | … ({len(found)} in all)" if len(found) > MOST_SHOWN else ""
    return " | ".join([first, *(other.strip() or other for other in others)]) + more


def _is_set(text: str) -> bool:
    return text.startswith(BEGIN) and text.endswith(END)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
