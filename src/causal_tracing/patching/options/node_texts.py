"""How nodes with or without scores, and sizes of circuits, are spelled: on a command line and in a file."""

from collections.abc import Mapping
from typing import Any

from causal_tracing.errors import InvalidOption
from causal_tracing.patching.options.spelling import is_a, list_of, one


def nodes(text: str) -> list[str] | dict[str, float]:
    """z 3.1; mlp_out 0 as names, z 3.1 = 2.5; mlp_out 0 = 1 as scores. Raises InvalidOption."""
    parts = [part.strip() for part in text.split(";") if part.strip()]
    scored = [part.partition("=") for part in parts if "=" in part]
    if not scored:
        return parts
    if len(scored) < len(parts):
        raise InvalidOption(f"{text!r} has a score for some nodes and not for others: give all of them one, or none.")
    found: dict[str, float] = {}
    for name, _, score in scored:
        if name.strip() in found:
            raise InvalidOption(f"{text!r} names {name.strip()!r} twice. Name each node once.")
        found[name.strip()] = _number(text, score)
    return found


def _number(text: str, score: str) -> float:
    try:
        return float(score)
    except ValueError:
        raise InvalidOption(f"{text!r}: the score {score.strip()!r} is no number.") from None


def _nodes_again(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name} = {score!r}" for name, score in value.items())
    return "; ".join(value)


def is_ranking(value: Any) -> bool:
    """Whether a file's value is a list of names, or a table of scores."""
    return list_of(str)(value) or (isinstance(value, dict) and all(is_a(each, int, float) for each in value.values()))


NODES = one(
    lambda value: nodes(value) if isinstance(value, str) else value,
    _nodes_again,
    fits=is_ranking,
    form='a list of nodes, such as ["z 3.1", "mlp_out 0"], or a table of scores by node',
    example='Such as "z 23.4; mlp_out 29; z 23.5", or with scores "z 23.4 = 7.5; mlp_out 29 = 3.1".',
)


def size(text: Any) -> int | float:
    """10 as a number of nodes, 0.05 as a share of them. Raises InvalidOption."""
    if not isinstance(text, str):
        return text
    try:
        return int(text) if text.strip().isdecimal() else float(text)
    except ValueError:
        raise InvalidOption(
            f"{text!r} is no size: write a number of nodes such as 10, or a share such as 0.05."
        ) from None


SIZE = one(size, str, fits=lambda value: is_a(value, int, float), form="a number of nodes, or a share such as 0.05")
SIZES = one(
    lambda value: [size(each) for each in (value.split(",") if isinstance(value, str) else value)],
    lambda value: ",".join(map(str, value)),
    fits=list_of(int, float),
    form="a list of numbers of nodes, or of shares, such as [5, 0.1]",
    example="Such as 5,10,0.2.",
)
