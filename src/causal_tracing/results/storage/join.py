"""Measurements of several pairs, each measured with others or alone, as one: their tables side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.results.columns import tokens_among
from causal_tracing.results.measurements import Measurements

PAIRED = "corrupt_position"


def joined(parts: Sequence[Measurements], provenance: Mapping[str, Any]) -> Measurements:
    """The parts' pairs in this order. They have the same maps, with the same sites and metrics."""
    maps = {name: _joined([part.maps[name] for part in parts]) for name in parts[0].maps}
    positions = [position for each in maps.values() for position in tokens_among(each)]
    reached = max(positions, default=-1) + 1  # by pairs that are not among these
    longest = max(reached, *(part.pairs.sizes.get("token", 0) for part in parts))
    pairs = _joined([_padded(part.pairs, longest) for part in parts])
    return Measurements(pairs=pairs, maps=maps, provenance=provenance)


def _joined(parts: Sequence[xr.Dataset]) -> xr.Dataset:
    names = {name: variable for part in parts for name, variable in part.data_vars.items()}
    alike = [_completed(part, names) for part in parts]
    return xr.concat(alike, dim="pair", data_vars="minimal", coords="minimal", compat="equals", join="exact")


def _padded(part: xr.Dataset, length: int) -> xr.Dataset:
    """A prompt's tokens and roles, "" beyond its end; paired with none there."""
    if part.sizes.get("token", length) == length:
        return part
    missing, texts = (0, length - part.sizes["token"]), [name for name in part if name != PAIRED]
    nothing: Any = ""
    padded = part[texts].pad(token=missing, constant_values=nothing)
    return padded.merge(part[[PAIRED]].pad(token=missing, constant_values=-1)) if PAIRED in part else padded


def _completed(part: xr.Dataset, names: Mapping[Any, xr.DataArray]) -> xr.Dataset:
    """Numbers that only other parts have (a spread over draws, where there was one draw), as NaN."""
    missing = {
        name: (each.dims, np.full([part.sizes[dim] for dim in each.dims], np.nan))
        for name, each in names.items()
        if name not in part
    }
    return part.assign(missing)[list(names)]
