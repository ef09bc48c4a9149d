"""What stands in a cell of a table, or in a field of a row: gaps, numbers and arrays of numpy, dates."""

from collections.abc import Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from math import isfinite
from numbers import Real
from typing import Any
from uuid import UUID

GAPS = ("NAType", "NaTType")  # what pandas has for a missing value beside NaN


def as_python(value: Any) -> Any:
    """An array as a list, one of its numbers as a plain one; anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def label(value: Any) -> Any:
    """What a table's cell says, as JSON holds it: of dates, exact decimals and infinite numbers their text."""
    value = as_python(value)
    if isinstance(value, list):
        return [*map(label, value)]
    of_text = isinstance(value, (date, time, timedelta, Decimal, UUID)) or (
        isinstance(value, float) and not isfinite(value)
    )
    return str(value) if of_text else value


def without_gaps(value: Any, depth: int = 2) -> Any:
    """A row, and its objects, without what is missing in them: tables have every key in every row."""
    if not isinstance(value, Mapping) or not depth:
        return value
    return {name: without_gaps(each, depth - 1) for name, each in value.items() if not _is_gap(each)}


def _is_gap(value: Any) -> bool:
    """Whether a table's cell is empty: None, NaN, or what pandas has in its place."""
    return value is None or (isinstance(value, Real) and value != value) or type(value).__name__ in GAPS
