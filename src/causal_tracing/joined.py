"""Measurements of several pairs, each measured with others or alone, as one: their tables side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.results import Measurements


def joined(parts: Sequence[Measurements], provenance: Mapping[str, Any]) -> Measurements:
    """The parts' pairs in this order. They have the same components, layers, positions and metrics."""
    tables = {
        name: None if getattr(parts[0], name) is None else _joined([getattr(part, name) for part in parts])
        for name in ("data", "heads", "neurons")
    }
    data = tables.pop("data")
    assert data is not None
    return Measurements(data=data, provenance=provenance, **tables)


def _joined(parts: Sequence[xr.Dataset]) -> xr.Dataset:
    longest = max(part.sizes.get("token", 0) for part in parts)
    names = {name: variable for part in parts for name, variable in part.data_vars.items()}
    alike = [_completed(_padded(part, longest), names) for part in parts]
    return xr.concat(alike, dim="pair", data_vars="minimal", coords="minimal", compat="equals", join="exact")


def _padded(part: xr.Dataset, length: int) -> xr.Dataset:
    """A prompt's tokens and roles, "" beyond its end."""
    if part.sizes.get("token", length) == length:
        return part
    texts: Any = ""
    return part.pad(token=(0, length - part.sizes["token"]), constant_values=texts)


def _completed(part: xr.Dataset, names: Mapping[Any, xr.DataArray]) -> xr.Dataset:
    """Numbers that only other parts have (a spread over draws, where there was one draw), as NaN."""
    missing = {
        name: (each.dims, np.full([part.sizes[dim] for dim in each.dims], np.nan))
        for name, each in names.items()
        if name not in part
    }
    return part.assign(missing)[list(names)]
