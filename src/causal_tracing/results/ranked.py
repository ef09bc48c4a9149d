"""What is drawn of a map that has more axes than a picture: what the figures and the page draw.

1. Drawn kinds: their map at one position, or the sum over positions of effects measured one at a time.
2. Ranked kinds: every measured cell, ranked; what is zero by construction or was not measured is left out.
"""

from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.prompts.tokens import Column
from causal_tracing.results.columns import all_tokens, among_others, column_of, columns_of
from causal_tracing.results.site_kinds import kind_of

SUM = "sum"  # as a position: the sum over all of them


def parts_of(found: xr.Dataset, component: str) -> int:
    """How many parts a component has: of keys and values, fewer heads than of queries where queries share them."""
    part = kind_of(found).part
    assert part is not None
    measured = found.status.sel(component=component) != "unpaired"
    there = np.flatnonzero(measured.any([name for name in measured.dims if name != part]).values)
    return int(there[-1]) + 1 if len(there) else found.sizes[part]


def strongest_position(found: xr.Dataset, effect: str) -> Column:
    """Where the largest single effect (by size) is, structural zeros and cuts left out."""
    size = abs(found[effect].where(found.status == "ok"))
    column = column_of(found)
    largest = size.max([name for name in size.dims if name != column])
    return columns_of(found)[int(largest.fillna(-1).argmax(column))]


def strongest_place(found: xr.Dataset, effect: str) -> dict[str, Any]:
    """Where the largest single effect is along the axes that a picture has no room for: a position, or a head."""
    kind = kind_of(found)
    size = abs(found[effect].where(found.status == "ok")).fillna(-1)
    left = [axis for axis in kind.axes if axis not in ("component", *(kind.drawn or ())) and axis in size.dims]
    most = {axis: size.max([name for name in size.dims if name != axis]) for axis in left}
    return {axis: found[axis].values.tolist()[int(most[axis].argmax(axis))] for axis in left}


def has_sum(found: xr.Dataset) -> bool:
    """Whether a sum over positions means something: several, each one token of its own."""
    return len(columns_of(found)) > 1 and all_tokens(found)


def summed(found: xr.Dataset, effect: str) -> xr.Dataset:
    """One effect and its status, summed over positions: of effects measured one at a time, no joint effect.

    Positions that one of the prompts does not have are left out; NaN where a cell failed, or where none is left.
    """
    said: Any = found.status.variable  # without labels, which are the same
    values: Any = found[effect].variable
    missing = said == "unpaired"
    # A cell that failed makes the sum undefined; a token that a prompt does not have adds nothing.
    value = values.where(~missing, 0.0).sum("position", skipna=False).where(~missing.all("position"))
    zero = ((said == "structural_zero") | missing).all("position")
    status = xr.full_like(zero, "ok", dtype=object).where(~zero, "structural_zero")
    status = status.where(~missing.all("position"), "unpaired").where(~(said == "failed").any("position"), "failed")
    here = found[[effect, "status"]].isel(position=0, drop=True)
    return here.assign({effect: value, "status": status}).transpose(*value.dims)


def ranked(found: xr.Dataset, effect: str) -> xr.DataArray:
    """Every measured cell's effect along `cell` (the kind's `ranked_axes`), largest size first; none of a margin."""
    flat = found[effect].where((found.status == "ok") & among_others(found)).stack(cell=kind_of(found).ranked_axes)
    flat = flat[flat.notnull().values]
    return flat[np.argsort(-abs(flat.values), kind="stable")]


def half_of_all(sizes: np.ndarray) -> int:
    """How many of the largest sizes make half of their sum; 0 of none."""
    total = np.cumsum(np.sort(sizes)[::-1])
    return int(np.searchsorted(total, total[-1] / 2) + 1) if len(total) and total[-1] > 0 else 0
