"""Maps in the terminal: tokens (or heads) down the side, layers left to right, one coloured block a cell."""

from collections.abc import Iterator

import numpy as np
import xarray as xr
from rich.console import Group, RenderableType
from rich.text import Text

from causal_tracing.errors import InvalidOption
from causal_tracing.prompts.tokens import Column
from causal_tracing.report.labels import UNPAIRED, number
from causal_tracing.report.words.circuits import WEIGHTED, share_of, weight_of
from causal_tracing.results.circuits import circuits
from causal_tracing.results.columns import is_token
from causal_tracing.results.effects import label
from causal_tracing.results.lens import EMBEDDING, RUNS, at_the_end, mean_at_the_end
from causal_tracing.results.means import MeanMap, NoMean, mean_map
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.rankings import strongest_place
from causal_tracing.results.select import select
from causal_tracing.results.site_kinds import CIRCUITS, kind_of

# From the colour of most negative to that of most positive; safe for the colour-blind, like the figures'.
NEGATIVE, NEUTRAL, POSITIVE = (230, 97, 1), (235, 235, 240), (94, 60, 153)
WITHOUT_COLOUR = " ░▒▓█"
MOST_ROWS = 100  # of a map in a terminal
MOST_LENS_ROWS = 12


def maps(measurements: Measurements, *, colour: bool, most_pairs: int) -> Iterator[RenderableType]:
    """The maps of the mean over pairs, if there is one; else of the first pairs, in the first direction.

    Of circuits a table of the mean, or of the first pair.
    """
    if CIRCUITS.name in measurements.maps:
        yield from _circuits(measurements)
    try:
        means = mean_map(measurements)
    except NoMean:
        for pair in measurements.pairs.pair.values[:most_pairs]:
            found = select(measurements, pair=str(pair))
            effect = measurements.directions[0]
            yield from heat_maps(found, effect, label(effect), colour=colour)
        return
    yield from heat_maps(means, means.shown, f"mean {label(means.shown)} over {means.pairs} pairs", colour=colour)


def _circuits(measurements: Measurements) -> Iterator[RenderableType]:
    """Faithfulness by size."""
    try:
        found = circuits(measurements)
    except InvalidOption:
        return
    lines = [Text(f"circuits, {found.how}: faithfulness f by the number of {found.of}, of {found.items}", style="bold")]
    lines.append(Text(f"{found.of:>7} {WEIGHTED[found.of]:>16} {found.unit:>10}  f"))
    for _, row in found.curve.iterrows():
        lines.append(Text(f"{row['size']:>7} {weight_of(found, row):>16} {number(row.metric):>10}  {share_of(row)}"))
    yield Group(*lines)


def lens(measurements: Measurements, *, most_pairs: int) -> Iterator[str]:
    """What the logit lens reads at the last token, as a table of each of the first pairs; of many pairs their means."""
    if measurements.lens is None:
        return
    try:
        means = mean_at_the_end(measurements)
    except NoMean:
        for pair in measurements.pairs.pair.values[:most_pairs]:
            yield _lens(at_the_end(measurements, str(pair)), f"pair {pair}")
        return
    yield _lens(means, f"mean over {measurements.pairs.sizes['pair']} pairs")


def _lens(found: xr.Dataset, called: str) -> str:
    """A row a layer, of at most so many layers: each run's first choice, p(answer), and answer minus foil."""
    layers = found.layer.values.tolist()
    shown = sorted({round(each) for each in np.linspace(0, len(layers) - 1, min(len(layers), MOST_LENS_ROWS))})
    lines = [f"logit lens at the last token, {called} (a readout, no effect)"]
    lines.append("layer " + "".join(f"  {run + ':':26}{'p(answer)':>9}{'answer-foil':>13}" for run in RUNS))
    for n in shown:
        cells = (_lens_cell(found.isel(layer=n).sel(run=run)) for run in RUNS)
        lines.append(f"{'embed' if layers[n] == EMBEDDING else layers[n]:>5} {''.join(cells)}".rstrip())
    return "\n".join(lines)


def _lens_cell(here: xr.Dataset) -> str:
    top = ""
    if "top" in here and here.top.item():
        top = f"{repr(here.top.item())[:20]} {here.top_prob.item():.2f}"
    numbers = ((float(here[name]), width) for name, width in (("answer_prob", 9), ("logit_diff", 13)))
    shown = (f"{number(value) if np.isfinite(value) else '–':>{width}}" for value, width in numbers)
    return f"  {top:26}{''.join(shown)}"


def heat_maps(
    found: xr.Dataset | MeanMap, effect: str, called: str, *, colour: bool = True
) -> Iterator[RenderableType]:
    """An effect of each component over rows and layers, below a scale that all share; nothing of kinds that are ranked.

    Without colour, shades show the size and − a negative effect.
    """
    cells = found.cells.assign_coords(unit=found.unit) if isinstance(found, MeanMap) else found
    drawn = kind_of(cells).drawn
    if drawn is None:
        return
    if cells.sizes[drawn[0]] > MOST_ROWS:
        return
    for axis, at in strongest_place(cells, effect).items():
        name = _label(cells, at) if axis == "position" else f"{axis} {at}"
        cells, called = cells.sel({axis: at}), f"{called}, {name}"
    largest = float(np.nanmax(abs(cells[effect].values), initial=0)) or 1.0
    of_tokens = drawn[0] == "position"
    labels = [_label(cells, each) if of_tokens else str(each) for each in cells[drawn[0]].values.tolist()]
    for component in cells.component.values:
        here, width = cells.sel(component=component), max(map(len, labels))
        rows = [
            Text(f"{component}: {called}, {number(-largest)} to {number(largest)} {cells.unit.item()}", style="bold")
        ]
        rows.append(Text(" " * (width + 1) + _ruler(here[drawn[1]].values)))
        for at, name in zip(here[drawn[0]].values, labels, strict=True):
            row, line = Text(f"{name:>{width}} "), here.sel({drawn[0]: at})
            for value, status in zip(line[effect].values, line.status.values, strict=True):
                row.append(*_cell(float(value), str(status), largest, colour))
            rows.append(row)
        yield Group(*rows)


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


def _ruler(numbers: np.ndarray) -> str:
    """Layers (or what a column is) by number, as many as fit one letter a column; names are too long for that."""
    text, column = "", 0
    while column < len(numbers):
        name = str(column if isinstance(numbers[column], str) else numbers[column])
        text = text.ljust(column) + name
        column += max(5, len(name) + 1)
    return text


def _label(found: xr.Dataset, position: Column) -> str:
    """A row's name: its token, both where the prompts differ; of means its number or role."""
    if not is_token(position):
        return str(position).replace("_", " ")
    if "clean_token" not in found:  # of many pairs
        return f"token {position}"
    tokens = (str(found[name].values[position]) for name in ("clean_token", "corrupt_token"))
    clean, corrupt = ("".join(c if c.isprintable() else repr(c)[1:-1] for c in token).strip() for token in tokens)
    return clean if clean == corrupt else f"{clean} | {corrupt or UNPAIRED}"
