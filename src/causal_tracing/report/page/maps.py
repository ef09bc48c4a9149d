"""What the page's script draws single heads and neurons from: few enough numbers for a page, and it says which.

1. Heads: every number while they fit; else by the first metric only, and then the strongest positions only.
2. Neurons: the strongest by each effect, and every effect's curve by rank at logarithmically spaced ranks.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.report.labels import UNPAIRED
from causal_tracing.report.page.text import visible
from causal_tracing.results.effects import EFFECTS, effects
from causal_tracing.results.means import AVERAGED, Evidence
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.rankings import SUM, half_of_all, has_sum, heads_of, ranked, strongest_position, summed

# These follow from others, or are shown by another switch: they would only lengthen the list of directions.
NOT_SWITCHED = ("bypass", "bypass_given_restored", "restored_fraction", "lost_fraction")
MOST_IN_FULL = 20  # pairs, whose numbers by every metric go into a page: the others' by the first alone, and shorter
DIGITS, FEW_DIGITS = 7, 4
STATUSES = ("ok", "structural_zero", "cut", "undefined", "unpaired", "no_window", "failed")

MOST_NUMBERS = 300_000  # of heads, in a page: about 2 MB


STRONGEST = 200  # neurons, by each effect


MOST_VIEWS = 12  # pairs times metrics of neurons


CURVE_POINTS = 120


DIGITS = 5


TESTED = ("low", "high", "p_adjusted")


LETTERS = {"ok": "o", "structural_zero": "z", "cut": "c", "undefined": "n", "unpaired": "u", "failed": "f"}


def heads_data(measurements: Measurements, shown: list[str]) -> dict[str, Any]:
    """The heads' numbers as [component][position][layer][head]; the last position is the sum, where there is one."""
    found = effects(measurements, "heads").sel(pair=shown)
    names = [name for name in switched(found) if name != "interaction"]
    metrics = metrics_with_effects(found)
    each = len(shown) * len(names) * int(np.prod([found.sizes[name] for name in ("component", "layer", "head")]))
    if len(metrics) * each * found.sizes["position"] > MOST_NUMBERS:
        metrics = metrics[:1]
    kept = _kept_positions(found, metrics, max(1, MOST_NUMBERS // each))
    with_sum = has_sum(found)
    components = [str(name) for name in found.component.values]
    return {
        "components": components,
        "counts": {name: heads_of(found, name) for name in components},  # fewer of k and v where queries share them
        "readers": {name: found.readers.sel(component=name).values.tolist() for name in components},
        "layers": found.layer.values.tolist(),
        "effects": switched(found),
        "metrics": metrics,
        "positions": [*map(str, kept), *([SUM] if with_sum else [])],
        "measured": found.sizes["position"],
        "strongest": str(_strongest(found, metrics, shown)),
        "pairs": [_heads_of_pair(found.sel(pair=pair), metrics, names, kept, with_sum) for pair in shown],
    }


def neurons_data(measurements: Measurements, shown: list[str]) -> dict[str, Any]:
    """The strongest neurons as [layer, neuron, position, an effect each], and the curves by rank."""
    found = effects(measurements, "neurons").sel(pair=shown)
    metrics = metrics_with_effects(found)
    metrics = metrics if len(metrics) * len(shown) <= MOST_VIEWS else metrics[:1]
    return {
        "effects": switched(found),
        "metrics": metrics,
        "layers": found.layer.values.tolist(),
        "kept": STRONGEST,
        "positions": [str(position) for position in found.position.values],
        "pairs": [_neurons_of_pair(found.sel(pair=pair), metrics) for pair in shown],
    }


def heads_mean(evidence: Evidence) -> dict[str, Any]:
    """The mean over pairs, laid out as a pair of `heads_data`, with its intervals and its p over the map."""
    found = evidence.cells.expand_dims(metric=[evidence.metric])
    names = [name for name in AVERAGED if name in found]
    parts = [*names, *(f"{name}_{part}" for name in names for part in TESTED), "clusters"]
    each = len(parts) * int(np.prod([found.sizes[name] for name in ("component", "layer", "head")]))
    kept = _kept_positions(found, [evidence.metric], max(1, MOST_NUMBERS // each))
    numbers = _head_numbers(found.sel(metric=evidence.metric), parts, kept, with_sum=False)
    return {
        "positions": [*map(str, kept)],
        "measured": found.sizes["position"],
        "strongest": str(strongest_position(evidence.cells, names[0])),
        "rows": [role_row(position) for position in kept],
        "metrics": {evidence.metric: numbers},
    }


def neurons_mean(evidence: Evidence) -> dict[str, Any]:
    """The mean over pairs, laid out as a pair of `neurons_data`; rows end with low, high, p of each effect."""
    cells = evidence.cells
    tested = [f"{name}_{part}" for name in switched(cells) for part in TESTED]
    return {
        "rows": [role_row(position) for position in cells.position.values.tolist()],
        "metrics": {evidence.metric: _neuron_numbers(cells, tested)},
    }


def _strongest(found: xr.Dataset, metrics: list[str], shown: list[str]) -> int | str:
    """The position that is shown first: that of the first pair's strongest head."""
    if not metrics:
        return found.position.values.tolist()[0]
    return strongest_position(found.sel(metric=metrics[0], pair=shown[0]), switched(found)[0])


def _kept_positions(found: xr.Dataset, metrics: list[str], count: int) -> list[int | str]:
    """As many positions as there is room for, those with the strongest heads first, in the order of the prompt."""
    positions = found.position.values.tolist()
    if count >= len(positions) or not metrics:
        return positions[:count]
    size = abs(found[switched(found)[0]].sel(metric=metrics[0]).where(found.status.sel(metric=metrics[0]) == "ok"))
    largest = size.max([name for name in size.dims if name != "position"]).fillna(-1)
    strongest = np.argsort(-largest.values, kind="stable")[:count]
    return [positions[index] for index in sorted(strongest)]


def _heads_of_pair(
    found: xr.Dataset, metrics: list[str], names: list[str], kept: list[int | str], with_sum: bool
) -> dict[str, Any]:
    rows = [token_row(found, position) for position in kept]
    if with_sum:
        rows.append({"label": "sum over positions", "spoken": "sum over positions", "differs": False})
    return {
        "rows": rows,
        "metrics": {name: _head_numbers(found.sel(metric=name), names, kept, with_sum) for name in metrics},
    }


def _head_numbers(found: xr.Dataset, names: list[str], kept: list[int | str], with_sum: bool) -> dict[str, Any]:
    found = found.drop_vars("readers", errors="ignore")
    parts = {name: _at_positions(found[[name, "status"]], name, kept, with_sum) for name in names}
    status, counts = parts[names[0]].status, {str(name): heads_of(found, name) for name in found.component.values}
    return {
        "status": {name: _letters(status.sel(component=name).values[..., :n]) for name, n in counts.items()},
        **{
            effect: {
                name: plain(part[effect].sel(component=name).values[..., :n].tolist(), DIGITS)
                for name, n in counts.items()
            }
            for effect, part in parts.items()
        },
    }


def _at_positions(found: xr.Dataset, effect: str, kept: list[int | str], with_sum: bool) -> xr.Dataset:
    """One effect and its status at the positions kept, the sum over all positions behind them."""
    here = found.sel(position=kept)
    if with_sum:
        here = here.assign_coords(position=[*map(str, kept)])
        here = xr.concat([here, summed(found, effect).expand_dims(position=[SUM])], "position", coords="minimal",
                         compat="override")  # fmt: skip
    return here.transpose("component", "position", "layer", "head")


def _letters(status: np.ndarray) -> list[list[str]]:
    """Statuses as a word for each position and layer, a letter for each head."""
    return [["".join(LETTERS.get(str(one), "n") for one in heads) for heads in layers] for layers in status]


def _neurons_of_pair(found: xr.Dataset, metrics: list[str]) -> dict[str, Any]:
    return {
        "rows": [token_row(found, position) for position in found.position.values.tolist()],
        "metrics": {name: _neuron_numbers(found.sel(metric=name)) for name in metrics},
    }


def _neuron_numbers(found: xr.Dataset, beside: Sequence[str] = ()) -> dict[str, Any]:
    order = {name: ranked(found, name) for name in switched(found)}
    sites = {site: None for effect in order.values() for site in effect[:STRONGEST].site.values}
    indices = [found.indexes[name] for name in ("layer", "position", "neuron")]
    numbers = [found[name].sel(component="neurons").transpose("layer", "position", "neuron").values
               for name in (*order, *beside)]  # fmt: skip
    top = []
    for _, layer, position, neuron in sites:
        at = tuple(index.get_loc(one) for index, one in zip(indices, (layer, position, neuron), strict=True))
        top.append([int(layer), int(neuron), at[1], *(plain(float(array[at]), DIGITS) for array in numbers)])
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
    return [[int(rank), plain(float(effects_by_rank[rank - 1]), DIGITS)] for rank in ranks]


def map_data(measurements: Measurements, shown: list[str]) -> dict[str, Any]:
    """The pairs' numbers as [component][layer][position], null where undefined, with the labels of the axes."""
    data, found = measurements.pairs, effects(measurements)
    metrics = metrics_with_effects(found)
    return {
        "metrics": [{"name": name, "unit": found.unit.sel(metric=name).item()} for name in metrics],
        "components": [str(name) for name in found.component.values],
        "layers": found.layer.values.tolist(),
        "positions": [str(position) for position in found.position.values],
        "directions": list(measurements.directions),
        "effects": switched(found),
        "windows": _windows(found),
        "statuses": STATUSES,
        "pairs": [_pair(found.sel(pair=pair), data.sel(pair=pair), metrics, n) for n, pair in enumerate(shown)],
    }


def metrics_with_effects(found: xr.Dataset) -> list[str]:
    """The metrics that have effects for some pair, in the trace's order."""
    names = [str(name) for name in found.metric.values if name != "entropy"]
    return [name for name in names if found.total_effect.sel(metric=name).notnull().any()]


def switched(found: xr.Dataset) -> list[str]:
    """The effects that the page's switch offers."""
    return [name for name in EFFECTS if name in found and name not in NOT_SWITCHED]


def token_row(found: xr.Dataset, position: int | str) -> dict[str, Any]:
    """A row's label (both tokens where the prompts differ), and how it is spoken."""
    if not str(position).isdigit():
        return role_row(position)
    clean, corrupt = (visible(str(found[name].values[int(position)])) for name in ("clean_token", "corrupt_token"))
    differs = clean != corrupt
    both = (clean.strip() or clean, corrupt.strip() or corrupt or UNPAIRED)
    spoken = " | ".join(f'"{text}"' for text in (both if differs else both[:1]))
    return {
        "label": " | ".join(both if differs else both[:1]),
        "spoken": f"position {position} {spoken}",
        "differs": differs,
    }


def role_row(position: int | str) -> dict[str, Any]:
    """A row's label and how it is spoken, where there is no one token: a role, or a position of several pairs."""
    name = str(position).replace("_", " ")
    spoken = f"position {name}" if name.isdigit() else f"the {name} token"
    return {"label": name, "spoken": "all tokens together" if name == "together" else spoken, "differs": False}


def by_component(values: xr.DataArray, digits: int = DIGITS) -> dict[str, Any]:
    """Numbers of each component as [layer][position], null where undefined."""
    return {str(name): plain(values.sel(component=name).values.tolist(), digits) for name in values.component.values}


def coded(status: xr.DataArray) -> xr.DataArray:
    """Statuses as their places in STATUSES: there is one for every cell of a page."""
    return status.copy(data=np.vectorize(STATUSES.index, otypes=[int])(status.values))


def plain(value: Any, digits: int = DIGITS) -> Any:
    """Numbers as JSON can hold them, null where undefined."""
    if isinstance(value, list):
        return [plain(item, digits) for item in value]
    if isinstance(value, float):
        rounded = float(f"{value:.{digits}g}") if np.isfinite(value) else None
        return int(rounded) if rounded is not None and rounded.is_integer() else rounded
    return value


def _windows(found: xr.Dataset) -> dict[str, list[list[int]]]:
    """The layers patched together at each component's layer, where they are more than one."""
    if "window_first" not in found or (found.window_last <= found.window_first).all():
        return {}
    ends = xr.concat([found.window_first, found.window_last], "end").transpose("component", "layer", "end")
    return {str(name): ends.sel(component=name).values.tolist() for name in found.component.values}


def _pair(found: xr.Dataset, data: xr.Dataset, metrics: list[str], number: int) -> dict[str, Any]:
    """One pair's map, as long as its own prompt; of pairs beyond the first ones, by the first metric alone."""
    few = number >= MOST_IN_FULL
    if found.position.dtype.kind in "iu":
        found = found.sel(position=found.position < data.clean_length)
    return {
        "id": str(found.pair.item()),
        "asked": _asked(data),
        "rows": [token_row(found, position) for position in found.position.values.tolist()],
        "metrics": {
            name: _numbers(found.sel(metric=name), FEW_DIGITS if few else DIGITS)
            for name in (metrics[:1] if few else metrics)
        },
    }


def _asked(data: xr.Dataset) -> str:
    """A pair's clean prompt and its answer, on one line."""
    return " ".join(visible(f"{data.clean_prompt.item()} →{data.answer.item()}").split())


def _numbers(found: xr.Dataset, digits: int) -> dict[str, Any]:
    return {
        "total": plain(found.total_effect.item()),
        "fraction_reason": found.fraction_reason.item() or found.reason.item(),
        "status": by_component(coded(found.status)),
        **{name: by_component(found[name], digits) for name in switched(found) if name != "interaction"},
    }
