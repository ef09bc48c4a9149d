"""What the page's script draws the map of whole components from, of each pair and of the mean over pairs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.prompts.answers import on_one_line
from causal_tracing.report.page.lens import lens_cells, mean_lens_cells
from causal_tracing.report.page.text import (
    DIGITS,
    metrics_with_effects,
    role_row,
    rounded,
    switched,
    token_row,
    visible,
)
from causal_tracing.results.columns import columns_of, is_token
from causal_tracing.results.effects import AVERAGED, FRACTIONS, STATUSES, effects
from causal_tracing.results.means import MeanMap, by_column, defined
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.select import measured_directions
from causal_tracing.results.site_kinds import KINDS

MOST_IN_FULL = 20  # pairs, whose numbers by every metric go into a page: the others' by the first alone, and shorter
FEW_DIGITS = 4
BESIDE_EFFECTS = ("status", "total_effect", "reason", "fraction_reason")  # what is drawn of a pair beside its effects


def has_map(measurements: Measurements) -> bool:
    """Whether the first kind is drawn by token and layer: what a page begins with."""
    return KINDS[measurements.kind()].figure == "tokens"


def map_data(measurements: Measurements, shown: list[str]) -> dict[str, Any]:
    """The pairs' numbers as [component][layer][position], null where undefined, with the labels of the axes.

    No components where the first kind is not drawn so.
    """
    data, found = measurements.pairs, effects(measurements)
    metrics = [name for name in metrics_with_effects(data.sel(pair=list(shown))) if name in found.metric]
    there, drawn = has_map(measurements), {*switched(found), *BESIDE_EFFECTS}
    alone = found.drop_vars({*found.data_vars} - drawn)  # to take a pair out of the rest too takes as long as to draw
    return {
        "metrics": [{"name": name, "unit": found.unit.sel(metric=name).item()} for name in metrics],
        "components": [str(name) for name in found.component.values] if there else [],
        "layers": found.layer.values.tolist() if there else [],
        "positions": [str(position) for position in columns_of(found)] if there else [],
        "directions": list(measured_directions(found)),
        "effects": switched(found),
        "windows": windows_of(found),
        "statuses": STATUSES,
        "pairs": [
            _pair(alone.sel(pair=pair), data.sel(pair=pair), metrics, n, mapped=there)
            | _lens(measurements, found, pair, n)
            for n, pair in enumerate(shown)
        ],
    }


def mean_data(measurements: Measurements, means: MeanMap, ids: Sequence[str]) -> dict[str, Any]:
    """The averaged map as [component][layer][position], with intervals and p over the map, and the pairs' own values.

    Its `id` is none of the pairs'; `values` are [component][layer][position][pair], pairs in the order of `pairs`; the
    interaction has none, for it is the difference of the others.
    """
    cells = means.cells
    if KINDS[means.kind].figure != "tokens":
        total = {"total": rounded(float(means.total.estimate)), "fraction_reason": _fraction_reason(means)}
        return {**_named(means, ids), "rows": [], "metrics": {means.metric: total}, "pairs": [], "values": {}}
    names = [name for name in AVERAGED if name in cells]
    columns = by_column(defined(effects(measurements).sel(metric=means.metric)))
    numbers = {
        "total": rounded(float(means.total.estimate)),
        "fraction_reason": _fraction_reason(means),
        "status": by_component(coded(cells.status)),
        **{name: by_component(cells[name]) for name in names},
        "low": {name: by_component(cells[f"{name}_low"]) for name in names},
        "high": {name: by_component(cells[f"{name}_high"]) for name in names},
        "p": {name: by_component(cells[f"{name}_p_adjusted"]) for name in names},
        "shares": {effect: by_component(cells[name]) for name, effect in FRACTIONS.items() if name in cells},
        "clusters": by_component(cells.clusters),
    }
    return {
        **_named(means, ids),
        "rows": [role_row(position) for position in cells.position.values.tolist()],
        "metrics": {means.metric: numbers},
        **_mean_lens(measurements, cells),
        "pairs": [str(pair) for pair in columns.pair.values],
        "values": {
            name: by_component(columns[name].transpose(..., "pair"), FEW_DIGITS)
            for name in measured_directions(columns)
        },
    }


def _mean_lens(measurements: Measurements, cells: xr.Dataset) -> dict[str, Any]:
    if measurements.lens is None:
        return {}
    return {"lens": mean_lens_cells(measurements, cells.position.values.tolist(), cells.layer.values.tolist())}


def _named(means: MeanMap, ids: Sequence[str]) -> dict[str, str]:
    return {"id": unused("mean", ids), "name": f"mean over {means.pairs} pairs"}


def unused(name: str, ids: Sequence[str]) -> str:
    """A name that none of these ids is."""
    while name in ids:
        name += "*"
    return name


def by_component(values: xr.DataArray, digits: int = DIGITS) -> dict[str, Any]:
    """Numbers of each component as [layer][position], null where undefined."""
    arrays = np.moveaxis(values.values, values.dims.index("component"), 0)
    # Whole numbers are plain as they are.
    numbers = [rounded(array.tolist(), digits) if array.dtype.kind == "f" else array.tolist() for array in arrays]
    return dict(zip(map(str, values.component.values), numbers, strict=True))


def coded(status: xr.DataArray) -> xr.DataArray:
    """Statuses as their places in STATUSES: there is one for every cell of a page."""
    return status.copy(data=np.vectorize(STATUSES.index, otypes=[int])(status.values))


def windows_of(found: xr.Dataset) -> dict[str, list[list[int]]]:
    """The layers patched together at each component's layer, where they are more than one."""
    if "window_first" not in found or (found.window_last <= found.window_first).all():
        return {}
    ends = xr.concat([found.window_first, found.window_last], "end").transpose("component", "layer", "end")
    return {str(name): ends.sel(component=name).values.tolist() for name in found.component.values}


def _pair(
    found: xr.Dataset, data: xr.Dataset, metrics: list[str], number: int, *, mapped: bool = True
) -> dict[str, Any]:
    """One pair's map, as long as its own prompt; of pairs beyond the first ones, by the first metric alone."""
    few = number >= MOST_IN_FULL
    if not mapped:
        totals = {name: _total(found.sel(metric=name)) for name in metrics}
        return {"id": str(found.pair.item()), "asked": _asked(data), "rows": [], "metrics": totals}
    # There are columns for the longest of all prompts.
    length = int(data.clean_length)
    found = found.isel(position=[not is_token(each) or each < length for each in columns_of(found)])
    return {
        "id": str(found.pair.item()),
        "asked": _asked(data),
        "rows": [token_row(found, position) for position in found.position.values.tolist()],
        "metrics": {
            name: _numbers(found.sel(metric=name), FEW_DIGITS if few else DIGITS)
            for name in (metrics[:1] if few else metrics)
        },
    }


def _lens(measurements: Measurements, found: xr.Dataset, pair: str, number: int) -> dict[str, Any]:
    """What the logit lens says at the cells of one of the first pairs, where it was read."""
    if measurements.lens is None or number >= MOST_IN_FULL or not has_map(measurements):
        return {}
    length = int(measurements.pairs.clean_length.sel(pair=pair))
    columns = [each for each in columns_of(found) if not is_token(each) or each < length]
    return {"lens": lens_cells(measurements, pair, columns, found.layer.values.tolist())}


def _asked(data: xr.Dataset) -> str:
    """A pair's clean prompt and its answer, on one line."""
    return " ".join(visible(f"{data.clean_prompt.item()} →{on_one_line(data.answer.item())}").split())


def _numbers(found: xr.Dataset, digits: int) -> dict[str, Any]:
    return {
        **_total(found),
        "status": by_component(coded(found.status)),
        **{name: by_component(found[name], digits) for name in switched(found) if name != "interaction"},
    }


def _total(found: xr.Dataset) -> dict[str, Any]:
    return {
        "total": rounded(found.total_effect.item()),
        "fraction_reason": found.fraction_reason.item() or found.reason.item(),
    }


def _fraction_reason(means: MeanMap) -> str:
    """Why there are no fractions; empty where there are."""
    known = [means.cells[name] for name in FRACTIONS if name in means.cells]
    if any(np.isfinite(values.values).any() for values in known):
        return ""
    reasons = [str(text) for name in FRACTIONS if f"{name}_reason" in means.cells
               for text in means.cells[f"{name}_reason"].values.ravel() if text]  # fmt: skip
    return reasons[0] if reasons else "the total effect is not known to differ from 0"
