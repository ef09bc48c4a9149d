"""What options may hold: a value that cannot be meant is one clear error, where it comes in."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

from causal_tracing.errors import InvalidOption, nearest


def one_of(what: str, value: Any, valid: Sequence[str], use: str = "") -> None:
    """Raises InvalidOption where the value is none of the names that are valid (for this use)."""
    if value not in valid:
        raise InvalidOption(f"There is no {what} {value!r}{use}. {nearest(str(value), valid)}")


def names(what: str, values: Any, valid: Sequence[str]) -> None:
    """Raises InvalidOption where these are no list of valid names, or none at all."""
    if isinstance(values, str):
        raise InvalidOption(f"Give the {what}s as a list, such as [{values!r}].")
    _listed(f"the {what}s", values, f"such as [{valid[0]!r}]")
    if not values:
        raise InvalidOption(f"No {what} was asked for. Valid: {', '.join(valid)}.")
    for value in values:
        one_of(what, value, valid)
    once(what, values)


def once(what: str, values: Iterable[Any]) -> None:
    """Raises InvalidOption where one of these is named twice: the arrays of a result have one place for each."""
    twice = [value for value, times in Counter(values).items() if times > 1]
    if twice:
        raise InvalidOption(f"The {what} {twice[0]!r} is asked for twice. Name each once.")


def texts(what: str, values: Any) -> None:
    """Raises InvalidOption where these are no list of texts."""
    _listed(what, values, "of texts")
    for value in values:
        if not isinstance(value, str) or not value:
            raise InvalidOption(f"{what} must hold texts; it holds {value!r}.")


def whole(what: str, value: Any, *, least: int, most: int | None = None) -> None:
    """Raises InvalidOption where the value is no whole number, less than the least, or more than the most."""
    if not _integer(value) or value < least:
        raise InvalidOption(f"{what} must be a whole number of at least {least}; it is {value!r}.")
    if most is not None and value > most:
        raise InvalidOption(f"{what} must be {most:,} at most; it is {value:,}.")


def numbered(what: str, values: Any, count: int, owner: str) -> None:
    """Raises InvalidOption where these are no numbers of the owner's `count` layers or neurons."""
    _listed(f"the {what}s", values, "such as [0, 1]")
    if not len(values):
        raise InvalidOption(f"No {what} was asked for: {owner} has {what}s 0 to {count - 1}.")
    for value in values:
        if not (_integer(value) and 0 <= value < count):
            raise InvalidOption(f"There is no {what} {value!r}: {owner} has {what}s 0 to {count - 1}.")
    once(what, map(int, values))


def columns(what: str, values: Any) -> None:
    """Raises InvalidOption where these are no positions or roles: a text, or a list of texts and whole numbers."""
    if not isinstance(values, str):
        _listed(what, values, 'such as "each", "together", or [2, "last"]')
        for value in values:
            if not (_integer(value) or isinstance(value, str)):
                raise InvalidOption(f"{what} holds {value!r}, which is neither a position nor a role.")


def whole_number(text: str) -> int | None:
    """The whole number that a text is, with or without a sign; None where it is another text."""
    # Python reads "1_000" and " 7 " as numbers too, and refuses very long ones with words of its own.
    return int(text) if re.fullmatch("[+-]?[0-9]{1,18}", text) else None


def _integer(value: Any) -> bool:
    # To Python True is 1, and an option that is switched on is no count; numpy's integers are numbers like others.
    return isinstance(value, Integral) and not isinstance(value, bool)


def _listed(what: str, values: Any, example: str) -> None:
    if isinstance(values, (str, Mapping)) or not (hasattr(values, "__iter__") and hasattr(values, "__len__")):
        raise InvalidOption(f"{what} must be a list, {example}; it is {values!r}.")
