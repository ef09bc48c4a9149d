"""What the page's script draws a component's parts from: few enough numbers for a page, and it says which.

1. Drawn kinds: every number while they fit; else by the first metric only, and then the strongest positions only.
2. Ranked kinds: the strongest by each effect, and every effect's curve by rank at logarithmically spaced ranks.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.prompts.tokens import Column
from causal_tracing.report.page.text import metrics_with_effects, role_row, rounded, switched, token_row
from causal_tracing.results.columns import columns_of
from causal_tracing.results.effects import AVERAGED, effects
from causal_tracing.results.means import MeanMap
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.ranked import SUM, half_of_all, has_sum, parts_of, ranked, strongest_position, summed
from causal_tracing.results.site_kinds import SiteKind, kind_of

MOST_NUMBERS = 300_000  # of a drawn kind, in a page: about 2 MB
STRONGEST = 200  # of a ranked kind, by each effect
MOST_VIEWS = 12  # pairs times metrics of a ranked kind
CURVE_POINTS = 120
DIGITS = 5
TESTED = ("low", "high", "p_adjusted")
LETTERS = {
    "ok": "o", "structural_zero": "z", "cut": "c", "undefined": "n", "unpaired": "u", "failed": "f", "given": "g",
    "not_patched": "p", "no_window": "x",
}  # fmt: skip


def parts_data(measurements: Measurements, kind: SiteKind, shown: Sequence[str]) -> dict[str, Any]:
    """A kind's numbers, of these pairs: as maps, or where it has none, ranked; and what the kind is called."""
    pairs = measurements.pairs.sel(pair=list(shown))
    numbers = _maps(measurements, kind, pairs) if kind.figure == "parts" else _ranks(measurements, kind, pairs)
    return {"kind": kind.name, "noun": kind.part, "drawn": kind.figure == "parts", **numbers}


def parts_mean(means: MeanMap) -> dict[str, Any]:
    """The mean over pairs, laid out as a pair of `parts_data`, with its intervals and its p over the map."""
    return _maps_mean(means) if kind_of(means.cells).figure == "parts" else _ranks_mean(means)


def _maps(measurements: Measurements, kind: SiteKind, pairs: xr.Dataset) -> dict[str, Any]:
    """Numbers as [component][position][layer][part]; the last position is the sum, where there is one."""
    shown = pairs.pair.values.tolist()
    found = effects(measurements, kind.name).sel(pair=shown)
    names = [name for name in switched(found) if name != "interaction"]
    metrics = [name for name in metrics_with_effects(pairs) if name in found.metric]
    each = (
        len(shown)
        * len(names)
        * int(np.prod([found.sizes[name] for name in ("component", "layer", kind_of(found).part)]))
    )
    if len(metrics) * each * found.sizes["position"] > MOST_NUMBERS:
        metrics = metrics[:1]
    kept = _kept_positions(found, metrics, max(1, MOST_NUMBERS // each))
    with_sum = has_sum(found)
    components = [str(name) for name in found.component.values]
    return {
        "components": components,
        "counts": {name: parts_of(found, name) for name in components},  # fewer of k and v where queries share them
        "readers": _readers(found),
        "layers": found.layer.values.tolist(),
        "effects": switched(found),
        "metrics": metrics,
        "positions": [*map(str, kept), *([SUM] if with_sum else [])],
        "measured": found.sizes["position"],
        "strongest": str(_strongest(found, metrics, shown)),
        "pairs": [_maps_of_pair(found.sel(pair=pair), metrics, names, kept, with_sum) for pair in shown],
    }


def _ranks(measurements: Measurements, kind: SiteKind, pairs: xr.Dataset) -> dict[str, Any]:
    """The strongest parts as [layer, part, position, an effect each], and the curves by rank."""
    there = measurements.maps[kind.name].metric
    metrics, shown = [name for name in metrics_with_effects(pairs) if name in there], pairs.pair.values.tolist()
    metrics = metrics if len(metrics) * len(shown) <= MOST_VIEWS else metrics[:1]
    found = effects(measurements, kind.name, metrics=metrics or [measurements.metric]).sel(pair=shown)
    return {
        "effects": switched(found),
        "metrics": metrics,
        "layers": found.layer.values.tolist(),
        "kept": STRONGEST,
        "positions": [str(position) for position in found.position.values],
        "pairs": [_ranks_of_pair(found.sel(pair=pair), metrics) for pair in shown],
    }


def _maps_mean(means: MeanMap) -> dict[str, Any]:
    found = means.cells.expand_dims(metric=[means.metric])
    names = [name for name in AVERAGED if name in found]
    parts = [*names, *(f"{name}_{part}" for name in names for part in TESTED), "clusters"]
    each = len(parts) * int(np.prod([found.sizes[name] for name in ("component", "layer", kind_of(found).part)]))
    kept = _kept_positions(found, [means.metric], max(1, MOST_NUMBERS // each))
    numbers = _map_numbers(found.sel(metric=means.metric), parts, kept, with_sum=False)
    return {
        "positions": [*map(str, kept)],
        "measured": found.sizes["position"],
        "strongest": str(strongest_position(means.cells, names[0])),
        "rows": [role_row(position) for position in kept],
        "metrics": {means.metric: numbers},
    }


def _ranks_mean(means: MeanMap) -> dict[str, Any]:
    """Rows end with low, high, p of each effect."""
    cells = means.cells
    tested = [f"{name}_{part}" for name in switched(cells) for part in TESTED]
    return {
        "rows": [role_row(position) for position in columns_of(cells)],
        "metrics": {means.metric: _rank_numbers(cells, tested)},
    }


def _readers(found: xr.Dataset) -> dict[str, list[str]]:
    """Who reads each part, by component, where that is known, in words."""
    if "readers" not in found.coords:
        return {}
    return {
        str(name): [f"read by query heads {some}" if some else "" for some in found.readers.sel(component=name).values]
        for name in found.component.values
    }


def _strongest(found: xr.Dataset, metrics: list[str], shown: list[str]) -> Column:
    """The position that is shown first: that of the first pair's strongest head."""
    if not metrics:
        return columns_of(found)[0]
    return strongest_position(found.sel(metric=metrics[0], pair=shown[0]), switched(found)[0])


def _kept_positions(found: xr.Dataset, metrics: list[str], count: int) -> list[Column]:
    """As many positions as there is room for, those with the strongest heads first, in the order of the prompt."""
    positions = columns_of(found)
    if count >= len(positions) or not metrics:
        return positions[:count]
    size = abs(found[switched(found)[0]].sel(metric=metrics[0]).where(found.status.sel(metric=metrics[0]) == "ok"))
    largest = size.max([name for name in size.dims if name != "position"]).fillna(-1)
    strongest = np.argsort(-largest.values, kind="stable")[:count]
    return [positions[index] for index in sorted(strongest)]


def _maps_of_pair(
    found: xr.Dataset, metrics: list[str], names: list[str], kept: list[Column], with_sum: bool
) -> dict[str, Any]:
    rows = [token_row(found, position) for position in kept]
    if with_sum:
        rows.append({"label": "sum over positions", "spoken": "sum over positions", "differs": False})
    return {
        "rows": rows,
        "metrics": {name: _map_numbers(found.sel(metric=name), names, kept, with_sum) for name in metrics},
    }


def _map_numbers(found: xr.Dataset, names: list[str], kept: list[Column], with_sum: bool) -> dict[str, Any]:
    arrays = {name: _at_positions(found, name, kept, with_sum) for name in names}
    counts = {str(name): parts_of(found, name) for name in found.component.values}
    status = dict(zip(counts, _at_positions(found, names[0], kept, with_sum, told="status"), strict=True))
    return {
        "status": {name: _letters(status[name][..., :n]) for name, n in counts.items()},
        **{
            effect: {
                name: rounded(values[..., :n].tolist(), DIGITS)
                for (name, n), values in zip(counts.items(), array, strict=True)
            }
            for effect, array in arrays.items()
        },
    }


def _at_positions(
    found: xr.Dataset, effect: str, kept: list[Column], with_sum: bool, *, told: str | None = None
) -> np.ndarray:
    """One effect [component, position, layer, part] at the positions kept, the sum over all positions behind them.

    `told` is what is told of it: its status.
    """
    name, columns = told or effect, columns_of(found)
    axes = ("component", "position", "layer", kind_of(found).part)
    # Out of the array itself: to select by labels took a third of a page's time.
    here = found.variables[name].transpose(*axes).values[:, [columns.index(each) for each in kept]]
    if not with_sum:
        return here
    whole: Any = summed(found, effect).variables[name].expand_dims("position")
    return np.concatenate([here, whole.transpose(*axes).values], axis=1)


def _letters(status: np.ndarray) -> list[list[str]]:
    """Statuses as a word for each position and layer, a letter for each head."""
    return [[lettered(heads) for heads in layers] for layers in status]


def lettered(status: Iterable[Any]) -> str:
    """Statuses as a letter each, by which the script knows them."""
    return "".join(LETTERS[str(one)] for one in status)


def _ranks_of_pair(found: xr.Dataset, metrics: list[str]) -> dict[str, Any]:
    return {
        "rows": [token_row(found, position) for position in columns_of(found)],
        "metrics": {name: _rank_numbers(found.sel(metric=name)) for name in metrics},
    }


def _rank_numbers(found: xr.Dataset, beside: Sequence[str] = ()) -> dict[str, Any]:
    order = {name: ranked(found, name) for name in switched(found)}
    sites = {site: None for effect in order.values() for site in effect[:STRONGEST].cell.values}
    (component,), axes = found.component.values, ("layer", "position", kind_of(found).part)
    indices = [found.indexes[name] for name in axes]
    numbers = [found[name].sel(component=component).transpose(*axes).values
               for name in (*order, *beside)]  # fmt: skip
    top = []
    for _, layer, position, part in sites:
        at = tuple(index.get_loc(one) for index, one in zip(indices, (layer, position, part), strict=True))
        top.append([int(layer), int(part), at[1], *(rounded(float(array[at]), DIGITS) for array in numbers)])
    return {"top": top, "curves": {name: _curve(effect.values) for name, effect in order.items()}}


def _curve(values: np.ndarray) -> dict[str, Any]:
    """Effects by rank, those that support the clean behaviour and those that oppose it, as [rank, effect]."""
    parts = {"supports": np.sort(values[values > 0])[::-1], "opposes": np.sort(values[values < 0])}
    return {
        "count": len(values),
        "half": half_of_all(abs(values)),
        **{f"{name}_count": len(part) for name, part in parts.items()},
        **{name: _thinned(part) for name, part in parts.items()},
    }


def _thinned(effects_by_rank: np.ndarray) -> list[list[int | float]]:
    if not len(effects_by_rank):
        return []
    ranks = np.unique(np.geomspace(1, len(effects_by_rank), CURVE_POINTS).round().astype(int))
    return [[int(rank), rounded(float(effects_by_rank[rank - 1]), DIGITS)] for rank in ranks]
