"""What all figures share: one diverging scale centred on 0, hatching, marks, ticks and tokens as text.

Undefined cells are hatched, structural zeros carry a dot, cuts a frame, means that cannot be told from 0 a ring.
"""

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from causal_tracing.report.labels import UNPAIRED
from causal_tracing.results.effects import label

COLOURS = "PuOr"  # safe for the colour-blind; purple supports the clean behaviour
MOST_TICKS = 12
NOT_TOLD = 0.05  # adjusted p from which a mean is marked


def maps(found: xr.Dataset, shown: Sequence[str], orient: str, vocabulary: str | None) -> Figure:
    """A panel for each effect and component, on one scale."""
    components, across = found.component.values, (len(found.layer), len(found.position))
    wide, high = across if orient == "layers_right" else across[::-1]
    size = (1.2 + len(components) * max(2.6, 0.13 * wide), 1.1 + len(shown) * max(1.6, 0.26 * high))
    figure, panels = plt.subplots(
        len(shown), len(components), figsize=size, squeeze=False, sharex=True, sharey=True, layout="constrained"
    )
    largest = largest_size([found[name] for name in shown])
    images = []
    for row, effect in zip(panels, shown, strict=True):
        for axes, component in zip(row, components, strict=True):
            images.append(_map(axes, found.sel(component=component), effect, orient, largest))
            axes.set_title(f"{component}: {label(effect, vocabulary)}", fontsize=9)
    figure.colorbar(images[0], ax=panels, label=f"{found.unit.item()} of {found.metric.item()}", shrink=0.8)
    return figure


def _map(axes: Axes, found: xr.Dataset, effect: str, orient: str, largest: float) -> Any:
    down = orient == "layers_down"
    image = cells(axes, found, effect, ("layer", "position") if down else ("position", "layer"), largest)
    tokens, layers = (axes.set_xticks, axes.set_yticks) if down else (axes.set_yticks, axes.set_xticks)
    labels = [where(found, position) for position in found.position.values.tolist()]
    tokens(range(len(labels)), labels, fontsize=7, rotation=90 if down else 0)
    number_ticks(layers, found.layer.values)
    (axes.set_ylabel if down else axes.set_xlabel)("layer", fontsize=8)
    return image


def cells(axes: Axes, found: xr.Dataset, effect: str, order: tuple[str, str], largest: float) -> Any:
    """Draws one effect as an image, `order` naming what goes down and what across; the image."""
    values, status = found[effect].transpose(*order).values, found.status.transpose(*order).values
    image = axes.imshow(values, cmap=COLOURS, vmin=-largest, vmax=largest, aspect="auto", interpolation="nearest")
    for row, column in np.ndindex(*values.shape):
        corner = (column - 0.5, row - 0.5)
        if np.isnan(values[row, column]):
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, hatch="////", edgecolor="0.7", linewidth=0))
        elif status[row, column] == "cut":
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="black", linewidth=1))
    if f"{effect}_p_adjusted" in found:  # a mean that cannot be told from 0, by the test over the map
        faint = np.argwhere(found[f"{effect}_p_adjusted"].transpose(*order).values >= NOT_TOLD)
        axes.plot(faint[:, 1], faint[:, 0], "o", color="0.5", markersize=2, markerfacecolor="none", markeredgewidth=0.5)
    zeros = np.argwhere(status == "structural_zero")
    axes.plot(zeros[:, 1], zeros[:, 0], ".", color="0.7", markersize=1.5)
    return image


def largest_size(parts: Sequence[xr.DataArray]) -> float:
    """The largest size of an effect, for a scale that all panels share; 1 where there is none."""
    return max(float(np.nanmax(abs(part.values), initial=0)) for part in parts) or 1.0


def number_ticks(set_ticks: Callable[..., Any], numbers: np.ndarray) -> None:
    """Ticks of layers or heads, thinned where there are many."""
    every = max(1, -(-len(numbers) // MOST_TICKS))
    set_ticks(range(0, len(numbers), every), numbers[::every], fontsize=7)


def where(found: xr.Dataset, position: int | str) -> str:
    """A position's token; both where the prompts differ."""
    if not str(position).isdigit():
        return str(position)
    if "clean_token" not in found:  # of many pairs
        return f"token {position}"
    clean, corrupt = (drawable(str(found[name].values[int(position)])) for name in ("clean_token", "corrupt_token"))
    return f"{position} {clean}" if clean == corrupt else f"{position} {clean} | {corrupt or UNPAIRED}"


def drawable(token: str) -> str:
    """A token as matplotlib should draw it: no math, no control characters."""
    visible = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in token)
    return visible.strip().replace("$", r"\$")
