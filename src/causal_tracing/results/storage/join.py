"""Measurements of several pairs, each measured with others or alone, as one: their tables side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.results.columns import tokens_among
from causal_tracing.results.measurements import Measurements

NOTHING: Mapping[str, Any] = {"O": "", "U": "", "i": -1, "f": np.nan}  # by the kind of type


def joined(parts: Sequence[Measurements], provenance: Mapping[str, Any]) -> Measurements:
    """The parts' pairs in this order. They have the same maps, with the same sites and metrics."""
    maps = {name: _joined([part.maps[name] for part in parts]) for name in parts[0].maps}
    positions = [position for each in maps.values() for position in tokens_among(each)]
    reached = max(positions, default=-1) + 1  # by pairs that are not among these
    longest = max(reached, *(part.pairs.sizes.get("token", 0) for part in parts))
    pairs = _joined([_padded(part.pairs, longest) for part in parts])
    read = [_padded(part.lens, longest) for part in parts if part.lens is not None]
    lens = _joined(read) if len(read) == len(parts) else None
    return Measurements(pairs=pairs, maps=maps, provenance=provenance, lens=lens)


def _joined(parts: Sequence[xr.Dataset]) -> xr.Dataset:
    if len(parts) == 1:  # of a single pair's million paths no copy is made
        return parts[0]
    names = {name: variable for part in parts for name, variable in part.data_vars.items()}
    alike = [_completed(part, names) for part in parts]
    # "exact": parts with other sites or metrics are an error, and no table with holes.
    return xr.concat(alike, dim="pair", data_vars="minimal", coords="minimal", compat="equals", join="exact")


def _padded(part: xr.Dataset, length: int) -> xr.Dataset:
    """What is known of each token, beyond the prompt's end: no text, no token (−1), no number."""
    if part.sizes.get("token", length) == length:
        return part
    missing = (0, length - part.sizes["token"])
    of_tokens = {name: each for name, each in part.data_vars.items() if "token" in each.dims}
    return part.drop_dims("token").assign({
        name: each.pad(token=missing, constant_values=NOTHING[each.dtype.kind]) for name, each in of_tokens.items()
    })  # fmt: skip


def _completed(part: xr.Dataset, names: Mapping[Any, xr.DataArray]) -> xr.Dataset:
    """Numbers that only other parts have (a spread over draws, where there was one draw), as NaN."""
    missing = {
        name: (each.dims, np.full([part.sizes[dim] for dim in each.dims], np.nan))
        for name, each in names.items()
        if name not in part
    }
    return part.assign(missing)[list(names)]
