"""What all figures share: what was chosen of a view, ticks, units, and tokens as text."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from causal_tracing.prompts.tokens import Column
from causal_tracing.report.labels import UNPAIRED
from causal_tracing.results.columns import is_token

MOST_TICKS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Which part of a map is drawn, which way round, and by whose names."""

    position: int | str | None = None
    layer: int | None = None
    orient: str = "layers_right"
    vocabulary: str | None = None


def number_ticks(set_ticks: Callable[..., Any], numbers: np.ndarray) -> None:
    """Ticks of layers, heads and the like, thinned where there are many."""
    every = max(1, math.ceil(len(numbers) / MOST_TICKS))
    set_ticks(range(0, len(numbers), every), numbers[::every], fontsize=7)


def by_layer(axes: Axes, found: xr.Dataset) -> None:
    """Layers across, the metric's unit up, and a line at 0."""
    axes.axhline(0, color="0.6", linewidth=0.8)
    number_ticks(axes.set_xticks, found.layer.values)
    axes.set_xlabel("layer", fontsize=8)
    axes.set_ylabel(unit_label(found), fontsize=8)
    axes.label_outer()


def unit_label(found: xr.Dataset) -> str:
    """The unit and its metric, for an axis."""
    return f"{found.unit.item()} of {found.metric.item()}"


def where(found: xr.Dataset, position: Column) -> str:
    """A position's token; both where the prompts differ."""
    if not is_token(position):
        return drawable(str(position))
    if "clean_token" not in found:  # of many pairs
        return f"token {position}"
    clean, corrupt = (drawable(str(found[name].values[position])) for name in ("clean_token", "corrupt_token"))
    return f"{position} {clean}" if clean == corrupt else f"{position} {clean} | {corrupt or UNPAIRED}"


def drawable(text: str) -> str:
    """A token or a name as matplotlib should draw it: no math, no control characters."""
    visible = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    return visible.strip().replace("$", r"\$")
