"""What the page's script draws from: numbers by component, layer and row, null where undefined."""

import json
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.effects import effects
from causal_tracing.report.colours import SCALES
from causal_tracing.report.still import is_beyond
from causal_tracing.report.tokens import visible_token
from causal_tracing.results import Measurements

# A cell's status is one letter. `d` is ok, and looks damaged rather than restored.
STATUS = {"ok": "o", "structural_zero": "z", "cut": "c", "undefined": "u", "unpaired": "p", "failed": "f"}
ENTROPY = "entropy"  # is no effect


def view(measurements: Measurements, pairs: list[str]) -> dict[str, Any]:
    """Everything that the map and the curves show of these pairs: plain values."""
    found = effects(measurements)
    metrics = [str(name) for name in found.metric.values if name != ENTROPY]
    shown = shown_effects(measurements)
    return {
        "effects": list(shown),
        "metrics": [{"name": name, "unit": str(found.unit.sel(metric=name).item())} for name in metrics],
        "components": [str(name) for name in found.component.values],
        "layers": found.layer.values.tolist(),
        "positions": [str(position) for position in found.position.values],
        "scales": SCALES,
        "pairs": [_pair(found.sel(pair=pair), metrics, shown) for pair in pairs],
    }


def shown_effects(measurements: Measurements) -> tuple[str, ...]:
    """The directions that were measured, and their interaction where both were."""
    directions = measurements.directions
    return (*directions, "interaction") if len(directions) == 2 else directions


def script_json(content: Any) -> str:
    """JSON that cannot end the script element it stands in, whatever its texts say."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _pair(found: xr.Dataset, metrics: list[str], shown: tuple[str, ...]) -> dict[str, Any]:
    positions = found.position.values.tolist()
    return {
        "id": str(found.pair.item()),
        "rows": [_row(found, k, name) for k, name in enumerate(positions) if not is_beyond(found, name)],
        "metrics": [_numbers(found.sel(metric=name), shown) for name in metrics],
    }


def _row(found: xr.Dataset, k: int, position: int | str) -> dict[str, Any]:
    """A row of the map: which column of the trace it is, and its token, or both where the prompts differ."""
    if not str(position).isdigit():
        return {"k": k, "name": str(position).replace("_", " "), "tokens": []}
    texts = (str(found[name].values[int(position)]) for name in ("clean_token", "corrupt_token"))
    return {"k": k, "name": str(position), "tokens": [visible_token(text) for text in dict.fromkeys(texts)]}


def _numbers(found: xr.Dataset, shown: tuple[str, ...]) -> dict[str, Any]:
    """One pair by one metric; each effect as a list a component, layer by layer."""
    damaged = found.damage_like.values if "damage_like" in found else np.zeros(found.status.shape, bool)
    letters = np.vectorize(STATUS.__getitem__, otypes=[object])(found.status.values)
    letters = np.where(damaged & (letters == "o"), "d", letters)
    return {
        "total": _plain(found.total_effect.values)[0],
        "reason": str(found.reason.item()),
        "fraction_reason": str(found.fraction_reason.item()),
        "status": ["".join(component.ravel()) for component in letters],
        **{name: [_plain(component) for component in found[name].values] for name in shown},
    }


def _plain(values: np.ndarray) -> list[float | None]:
    """Numbers of six digits, row by row; None where undefined."""
    return [_rounded(value) if np.isfinite(value) else None for value in np.ravel(values).tolist()]


def _rounded(value: float) -> float | int:
    value = float(f"{value:.6g}")
    return int(value) if value.is_integer() and abs(value) < 1e15 else value
