"""The columns of a map: a whole number is a token's position, a text is a role or a span, however it is written.

Numpy would make texts of all where both stand side by side, and xarray asks numpy; so lists of columns become labels
here.
"""

from collections.abc import Sequence
from numbers import Integral
from typing import Any, TypeGuard

import numpy as np
import xarray as xr

from causal_tracing.prompts.tokens import Column


def is_token(column: Any) -> TypeGuard[int]:
    """Whether a column is one token, by its position."""
    return isinstance(column, Integral)


def labelled(columns: Sequence[Column]) -> np.ndarray:
    """Columns as the labels of an axis: numbers where all are tokens, else each as it is."""
    if all(map(is_token, columns)):
        return np.array(columns, dtype=int)
    found = np.empty(len(columns), dtype=object)
    found[:] = [int(column) if is_token(column) else str(column) for column in columns]
    return found


def columns_of(found: xr.Dataset | xr.DataArray) -> list[Column]:
    """The columns of a map, in their order."""
    return found.position.values.tolist()


def tokens_among(found: xr.Dataset | xr.DataArray) -> list[int]:
    """The columns that are tokens, as their positions."""
    return [int(column) for column in columns_of(found) if is_token(column)]
