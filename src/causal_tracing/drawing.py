"""What all figures share: one diverging scale centred on 0, hatching, marks, ticks and tokens as text.

Undefined cells are hatched, structural zeros carry a dot, cuts a frame.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from causal_tracing.rows import UNPAIRED

COLOURS = "PuOr"  # safe for the colour-blind; purple supports the clean behaviour
MOST_TICKS = 12


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
    clean, corrupt = (drawable(str(found[name].values[int(position)])) for name in ("clean_token", "corrupt_token"))
    return f"{position} {clean}" if clean == corrupt else f"{position} {clean} | {corrupt or UNPAIRED}"


def drawable(token: str) -> str:
    """A token as matplotlib should draw it: no math, no control characters."""
    visible = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in token)
    return visible.strip().replace("$", r"\$")
