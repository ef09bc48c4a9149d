"""What the page's script draws the map from: plain values, and texts without characters that hide or reorder."""

import unicodedata
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.effects import EFFECTS, effects
from causal_tracing.results import Measurements
from causal_tracing.rows import UNPAIRED

# These follow from others, or are shown by another switch: they would only lengthen the list of directions.
NOT_SWITCHED = ("bypass", "bypass_given_restored", "restored_fraction", "lost_fraction")


MOST_IN_FULL = 20  # pairs, whose numbers by every metric go into a page: the others' by the first alone, and shorter
DIGITS, FEW_DIGITS = 7, 4
STATUSES = ("ok", "structural_zero", "cut", "undefined", "unpaired", "no_window", "failed")


def map_data(measurements: Measurements, shown: list[str]) -> dict[str, Any]:
    """The pairs' numbers as [component][layer][position], null where undefined, with the labels of the axes."""
    data, found = measurements.data, effects(measurements)
    metrics = metrics_with_effects(found)
    return {
        "metrics": [{"name": name, "unit": found.unit.sel(metric=name).item()} for name in metrics],
        "components": [str(name) for name in data.component.values],
        "layers": data.layer.values.tolist(),
        "positions": [str(position) for position in data.position.values],
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


def visible(text: str) -> str:
    """Text without characters that could reorder or hide what is around them: those are named instead."""
    return "".join(
        f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") else c for c in text
    )


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
