"""The map in the terminal: tokens down the side, layers left to right, one coloured block a cell."""

import numpy as np
import xarray as xr
from rich.console import Group, RenderableType
from rich.text import Text

from causal_tracing.report.labels import UNPAIRED, number
from causal_tracing.results.effects import label
from causal_tracing.results.means import Evidence
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.select import select

# From the colour of most negative to that of most positive; safe for the colour-blind, like the figures'.
NEGATIVE, NEUTRAL, POSITIVE = (230, 97, 1), (235, 235, 240), (94, 60, 153)
WITHOUT_COLOUR = " ░▒▓█"


def heat_map(
    measurements: Measurements,
    component: str,
    effect: str,
    *,
    pair: str | None = None,
    metric: str | None = None,
    colour: bool = True,
) -> RenderableType:
    """One component's effect over layers and tokens. Without colour, shades show the size and − a negative effect."""
    found = select(measurements, pair=pair, metric=metric)
    labels = [_label(found, position) for position in found.position.values.tolist()]
    return _map(found, component, effect, label(effect), found.unit.item(), labels, colour=colour)


def mean_map(evidence: Evidence, component: str, *, colour: bool = True) -> RenderableType:
    """The mean over pairs of one component's effect, by layers and by positions or roles."""
    labels = [str(position).replace("_", " ") for position in evidence.cells.position.values]
    title = f"mean {label(evidence.shown)} over {evidence.pairs} pairs"
    return _map(evidence.cells, component, evidence.shown, title, evidence.unit, labels, colour=colour)


def difference_map(cells: xr.Dataset, component: str, effect: str, unit: str, *, colour: bool = True) -> RenderableType:
    """One component's mean difference of an effect over layers and columns, as `heat_map` draws effects."""
    names = [str(position) for position in cells.position.values.tolist()]
    labels = [f"token {name}" if name.isdigit() else name.replace("_", " ") for name in names]
    return _map(cells, component, effect, f"difference of {label(effect)}", unit, labels, colour=colour)


def _map(
    found: xr.Dataset, component: str, effect: str, called: str, unit: str, labels: list[str], *, colour: bool
) -> RenderableType:
    """A row of blocks for each column, below a scale that all components share."""
    largest = float(np.nanmax(abs(found[effect].values), initial=0)) or 1.0
    here, width = found.sel(component=component), max(map(len, labels))
    rows = [Text(f"{component}: {called}, {number(-largest)} to {number(largest)} {unit}", style="bold")]
    rows.append(Text(" " * (width + 1) + _ruler(here.layer.values)))
    for position, name in zip(here.position.values, labels, strict=True):
        row = Text(f"{name:>{width}} ")
        for value, status in zip(here[effect].sel(position=position), here.status.sel(position=position), strict=True):
            row.append(*_cell(value.item(), status.item(), largest, colour))
        rows.append(row)
    return Group(*rows)


def _cell(value: float, status: str, largest: float, colour: bool) -> tuple[str, str]:
    if np.isnan(value):
        return "/", "dim"
    if status == "structural_zero":
        return "·", "dim"
    share = max(-1.0, min(1.0, value / largest))
    if not colour:
        shade = WITHOUT_COLOUR[round(abs(share) * (len(WITHOUT_COLOUR) - 1))]
        return ("−" if value < 0 and shade != " " else "C" if status == "cut" else shade), ""
    end = POSITIVE if share > 0 else NEGATIVE
    red, green, blue = (round(a + (b - a) * abs(share)) for a, b in zip(NEUTRAL, end, strict=True))
    return ("C" if status == "cut" else " "), f"white on rgb({red},{green},{blue})"


def _ruler(layers: np.ndarray) -> str:
    """Layer numbers, as many as fit one column a layer."""
    text, column = "", 0
    while column < len(layers):
        name = str(layers[column])
        text = text.ljust(column) + name
        column += max(5, len(name) + 1)
    return text


def _label(found: xr.Dataset, position: int | str) -> str:
    if not str(position).isdigit():
        return str(position)
    tokens = (str(found[name].values[int(position)]) for name in ("clean_token", "corrupt_token"))
    clean, corrupt = ("".join(c if c.isprintable() else repr(c)[1:-1] for c in token).strip() for token in tokens)
    return clean if clean == corrupt else f"{clean} | {corrupt or UNPAIRED}"
