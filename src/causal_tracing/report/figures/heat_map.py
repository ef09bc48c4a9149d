"""Maps: a panel for each effect and component, on one diverging scale centred on 0.

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

from causal_tracing.errors import InvalidOption
from causal_tracing.prompts.tokens import Column
from causal_tracing.report.figures.look import Look, drawable, number_ticks, unit_label, where
from causal_tracing.results.columns import column_of
from causal_tracing.results.effects import label
from causal_tracing.results.ranked import SUM, has_sum, strongest_position, summed
from causal_tracing.results.select import known
from causal_tracing.results.site_kinds import kind_of

COLOURS = "PuOr"  # safe for the colour-blind; purple supports the clean behaviour
NOT_TOLD = 0.05  # adjusted p from which a mean is marked
ROW_HEIGHTS = {"position": 0.26}  # inches; tokens need more than numbers do
NUMBERS_HEIGHT = 0.16
MOST_NAMED = 60  # rows that have room for names
MOST_PANELS = 9  # beside each other, of maps by query


def maps(found: xr.Dataset, shown: Sequence[str], look: Look) -> Figure:
    """A panel for each effect and component; parts that a component does not have are hatched."""
    drawn = kind_of(found).drawn
    assert drawn is not None
    if kind_of(found).shown:  # margins have none of these effects
        found = found.sel({axis: found[shown[0]].notnull().any([n for n in found[shown[0]].dims if n != axis])
                           for axis in drawn})  # fmt: skip
    parts, place = _drawn_part(found, shown, drawn, look)
    columns, (rows, across) = _panels(found, shown[0]), (found.sizes[axis] for axis in drawn)
    wide, high = (across, rows) if look.orient == "layers_right" else (rows, across)
    height = ROW_HEIGHTS.get(drawn[0], NUMBERS_HEIGHT)
    size = (1.2 + len(columns) * max(2.6, 0.13 * wide), 1.1 + len(shown) * max(1.6, height * high))
    figure, panels = plt.subplots(
        len(shown), len(columns), figsize=size, squeeze=False, sharex=True, sharey=True, layout="constrained"
    )
    largest, images = largest_size([parts[effect][effect] for effect in shown]), []
    for row, effect in zip(panels, shown, strict=True):
        for axes, (name, at) in zip(row, columns.items(), strict=True):
            images.append(_map(axes, parts[effect].sel(at), effect, drawn, look, largest))
            title = f"{name}: {label(effect, look.vocabulary)}"
            axes.set_title(f"{title}, {place}" if place else title, fontsize=9)
            axes.label_outer()
    figure.colorbar(images[0], ax=panels, label=unit_label(found), shrink=0.8)
    return figure


def _panels(found: xr.Dataset, effect: str) -> dict[str, dict[str, Any]]:
    """What each column of panels shows, by name: a component; of maps by query one of its heads, the strongest ones."""
    components = [str(name) for name in found.component.values]
    if not kind_of(found).by_query:
        return {name: {"component": name} for name in components}
    # The same heads of every component, so that their panels can be compared.
    sizes = abs(found[effect].where(found.status == "ok")).max(["query", "position"]).fillna(-1)
    count = max(1, MOST_PANELS // len(components))
    strongest = {*np.argsort(-sizes.max("component").values, kind="stable")[:count]}
    heads = [str(name) for n, name in enumerate(found["head"].values) if n in strongest]
    return {f"{name} {head}": {"component": name, "head": head} for name in components for head in heads}


def _drawn_part(
    found: xr.Dataset, shown: Sequence[str], drawn: tuple[str, str], look: Look
) -> tuple[dict[str, xr.Dataset], str]:
    """Each effect with its status as it is drawn: whole, or at one position (or summed over all); and that by name."""
    if column_of(found) in drawn:
        return dict.fromkeys(shown, found), ""
    if look.position == SUM:
        if not has_sum(found):
            raise InvalidOption(
                f'position="sum" adds up single tokens; these {kind_of(found).name} were measured at '
                f"{', '.join(map(str, found.position.values))}. Name one of them."
            )
        return {effect: summed(found, effect) for effect in shown}, "each position alone, added up"
    chosen = strongest_position(found, shown[0]) if look.position is None else look.position
    here = found.sel(position=known("position", chosen, found.position.values.tolist()))
    return dict.fromkeys(shown, here), where(found, chosen)


def _map(axes: Axes, found: xr.Dataset, effect: str, drawn: tuple[str, str], look: Look, largest: float) -> Any:
    """One panel; the image."""
    down, across = drawn if look.orient == "layers_right" else drawn[::-1]
    image = _cells(axes, found, effect, (down, across), largest)
    for axis, set_ticks, set_label, turned in (
        (down, axes.set_yticks, axes.set_ylabel, 0),
        (across, axes.set_xticks, axes.set_xlabel, 90),
    ):
        if axis == "position" or (axis == "query" and found.sizes[axis] <= MOST_NAMED):
            _token_ticks(found[axis].values.tolist(), found, set_ticks, turned)
        elif found[axis].dtype.kind == "O" and found.sizes[axis] <= MOST_NAMED:
            set_ticks(range(found.sizes[axis]), [*map(drawable, found[axis].values)], fontsize=6, rotation=turned)
        else:
            numbers = np.arange(found.sizes[axis]) if found[axis].dtype.kind == "O" else found[axis].values
            number_ticks(set_ticks, numbers)
            set_label(axis, fontsize=8)
    return image


def _token_ticks(columns: Sequence[Column], found: xr.Dataset, set_ticks: Callable[..., Any], turned: int) -> None:
    names = [where(found, position) for position in columns]
    set_ticks(range(len(names)), names, fontsize=7, rotation=turned)


def _cells(axes: Axes, found: xr.Dataset, effect: str, order: tuple[str, str], largest: float) -> Any:
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
