"""The columns of a map: a whole number is a token's position, a text is a role or a span, however it is written.

Numpy would make texts of all where both stand side by side, and xarray asks numpy; so lists of columns become labels
here.
"""

from collections.abc import Sequence
from numbers import Integral
from typing import Any, TypeGuard

import numpy as np
import xarray as xr

from causal_tracing.prompts.tokens import TOGETHER, Column, named_together
from causal_tracing.results.site_kinds import KINDS


def in_words(column: str) -> str:
    """A column that is no single token, for people."""
    if name := named_together(column):
        return f"all tokens of the {name.replace('_', ' ')} together"
    return "all tokens together" if column == TOGETHER else f"the {column.replace('_', ' ')} token"


def is_token(column: Any) -> TypeGuard[int]:
    """Whether a column is one token, by its position."""
    return isinstance(column, Integral)


def labelled(columns: Sequence[Column]) -> np.ndarray:
    """Columns as the labels of an axis: numbers where all are tokens, else each as it is."""
    if all(map(is_token, columns)):
        return np.array(columns, dtype=int)
    # Filled afterwards: numpy would make one kind of all that it is handed.
    found = np.empty(len(columns), dtype=object)
    found[:] = [int(column) if is_token(column) else str(column) for column in columns]
    return found


def columns_of(found: xr.Dataset | xr.DataArray) -> list[Column]:
    """The columns of a map, in their order."""
    return found[column_of(found)].values.tolist()


def column_of(found: xr.Dataset | xr.DataArray) -> str:
    """The axis that columns lie along: "position", or what a map's kind has in its place."""
    return KINDS[found.kind.item()].column if "kind" in found.coords else "position"


def among_others(found: xr.Dataset | xr.DataArray) -> xr.DataArray:
    """For each column, whether it is ranked and tested with the others: a kind's margin stands beside them."""
    column = found[column_of(found)]
    margin = KINDS[found.kind.item()].margin if "kind" in found.coords else ""
    return column != margin if margin else xr.ones_like(column, dtype=bool)


def tokens_among(found: xr.Dataset | xr.DataArray) -> list[int]:
    """The columns that are tokens, as their positions; none where columns are something else."""
    if column_of(found) not in found.dims or column_of(found) != "position":
        return []
    return [int(column) for column in columns_of(found) if is_token(column)]


def all_tokens(found: xr.Dataset | xr.DataArray) -> bool:
    """Whether each column is one token."""
    return len(tokens_among(found)) == found.sizes[column_of(found)]
