"""Pairs from a JSON Lines file: one object a line, with the fields of Pair. Other fields become labels."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from causal_tracing.errors import InvalidPair
from causal_tracing.prompts import Pair

_FIELDS = tuple(field.name for field in fields(Pair))


def read_pairs(path: str | Path) -> list[Pair]:
    """The pairs of a `.jsonl` file, in its order; fields that Pair does not have are kept as labels.

    Raises InvalidPair, naming the line: not JSON, a missing or wrong field, an id that was used before.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: JSON may hold U+2028
    except FileNotFoundError:
        raise InvalidPair(f"{path} is not there. Name a file with one JSON object a line.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidPair(f"{path} cannot be read as text (UTF-8): {error}") from None
    pairs: list[Pair] = []
    lines_of: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        pair = _pair(line, f"{path}, line {number}")
        if pair.id in lines_of:
            raise InvalidPair(
                f"{path}, line {number}: the id {pair.id!r} was used in line {lines_of[pair.id]} already."
            )
        if pair.id is not None:
            lines_of[pair.id] = number
        pairs.append(pair)
    if not pairs:
        raise InvalidPair(f"{path} has no pairs: write one JSON object a line.")
    return pairs


def _pair(line: str, where: str) -> Pair:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise InvalidPair(f"{where}: not JSON ({error}).") from None
    if not isinstance(row, dict):
        raise InvalidPair(f'{where}: a JSON object is needed, such as {{"clean": …, "answer": …}}; found {row!r}.')
    missing = [name for name in ("clean", "answer") if name not in row]
    if missing:
        raise InvalidPair(f"{where}: {' and '.join(missing)} missing. Every pair needs clean and answer.")
    known = {name: value for name, value in row.items() if name in _FIELDS and name != "labels"}
    for name in ("spans", "labels"):
        if not isinstance(row.get(name, {}), dict):
            raise InvalidPair(f"{where}: {name} must be an object of names and texts, and is {row[name]!r}.")
    labels = {name: value for name, value in row.items() if name not in _FIELDS} | row.get("labels", {})
    try:
        return Pair(**known, labels=labels)
    except InvalidPair as error:
        raise InvalidPair(f"{where}: {error}") from None
