"""What a terminal shows: words in its columns, and maps, tokens (or heads) down the side and layers left to right."""

import re
from collections.abc import Iterator, Sequence

import numpy as np
import xarray as xr
from rich.cells import cell_len, set_cell_size
from rich.console import Group, RenderableType
from rich.text import Text

from causal_tracing.errors import InvalidOption
from causal_tracing.prompts.token_texts import printable
from causal_tracing.prompts.tokens import Column
from causal_tracing.report.labels import UNPAIRED, number
from causal_tracing.report.words.circuits import WEIGHTED, share_of, weight_of
from causal_tracing.results.circuits import circuits
from causal_tracing.results.columns import is_token
from causal_tracing.results.effects import label
from causal_tracing.results.lens import EMBEDDING, RUNS, at_the_end, mean_at_the_end
from causal_tracing.results.means import MeanMap, NoMean, mean_map
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.ranked import strongest_place
from causal_tracing.results.select import measured_directions, select
from causal_tracing.results.site_kinds import CIRCUITS, kind_of

# From the colour of most negative to that of most positive; safe for the colour-blind, like the figures'.
NEGATIVE, NEUTRAL, POSITIVE = (230, 97, 1), (235, 235, 240), (94, 60, 153)
WITHOUT_COLOUR = " ░▒▓█"
MOST_ROWS = 100  # of a map in a terminal
MOST_LENS_ROWS = 12
LEAST, RULER = 5, 3  # columns of a map beside each other, however narrow a terminal is; what a ruler may stand out


def wrapped(text: str, width: int | None) -> str:
    """A text whose lines are broken between words where they are wider than `width`; what goes on is set in."""
    return text if width is None else "\n".join(part for line in text.split("\n") for part in _broken(line, width))


def _broken(line: str, width: int) -> Iterator[str]:
    """One line in as many as it takes; a word that is wider stays whole, for the terminal to break."""
    if cell_len(line) <= width:
        yield line
        return
    begun, margin = "", " " * (len(line) - len(line.lstrip(" ")) + 2)
    for word in re.findall(r" *[^ ]+", line):
        if begun.strip() and cell_len(begun + word) > width:
            yield begun
            begun, word = margin, word.lstrip(" ")
        begun += word
    yield begun


def maps(
    measurements: Measurements, *, colour: bool, most_pairs: int, width: int | None = None
) -> Iterator[RenderableType]:
    """The maps of the mean over pairs, if there is one; else of the first pairs, in the first direction.

    Of circuits a table of the mean, or of the first pair. Maps are no wider than `width`, if there is one.
    """
    if CIRCUITS.name in measurements.maps:
        yield from _circuits(measurements)
    try:
        means = mean_map(measurements)
    except NoMean:
        for pair in measurements.pairs.pair.values[:most_pairs]:
            found = select(measurements, pair=str(pair))
            effect = measured_directions(found)[0]
            yield from heat_maps(found, effect, label(effect), colour=colour, width=width)
        return
    called = f"mean {label(means.shown)} over {means.pairs} pairs"
    yield from heat_maps(means, means.shown, called, colour=colour, width=width)


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


def lens(measurements: Measurements, *, most_pairs: int, width: int | None = None) -> Iterator[str]:
    """What the logit lens reads at the last token, as a table of each of the first pairs; of many pairs their means.

    Where both runs side by side are wider than `width`, they have a table each.
    """
    if measurements.lens is None:
        return
    try:
        means = mean_at_the_end(measurements)
    except NoMean:
        for pair in measurements.pairs.pair.values[:most_pairs]:
            yield from _lenses(at_the_end(measurements, str(pair)), f"pair {pair}", width)
        return
    yield from _lenses(means, f"mean over {measurements.pairs.sizes['pair']} pairs", width)


def _lenses(found: xr.Dataset, called: str, width: int | None) -> Iterator[str]:
    both = _lens(found, called, RUNS)
    if width is None or max(map(len, both.split("\n"))) <= width:
        yield both
    else:
        yield from (_lens(found, called, (run,)) for run in RUNS)


def _lens(found: xr.Dataset, called: str, runs: Sequence[str]) -> str:
    """A row a layer, of at most so many layers: each run's first choice, p(answer), and answer minus foil."""
    layers = found.layer.values.tolist()
    shown = sorted({round(each) for each in np.linspace(0, len(layers) - 1, min(len(layers), MOST_LENS_ROWS))})
    lines = [f"logit lens at the last token, {called} (a readout, no effect)"]
    lines.append("layer " + "".join(f"  {run + ':':26}{'p(answer)':>9}{'answer-foil':>13}" for run in runs))
    for n in shown:
        cells = (_lens_cell(found.isel(layer=n).sel(run=run)) for run in runs)
        lines.append(f"{'embed' if layers[n] == EMBEDDING else layers[n]:>5} {''.join(cells)}".rstrip())
    return "\n".join(lines)


def _lens_cell(here: xr.Dataset) -> str:
    top = ""
    if "top" in here and here.top.item():
        top = f"{repr(here.top.item())[:20]} {here.top_prob.item():.2f}"
    numbers = ((float(here[name]), width) for name, width in (("answer_prob", 9), ("logit_diff", 13)))
    shown = (f"{number(value) if np.isfinite(value) else '–':>{width}}" for value, width in numbers)
    return f"  {set_cell_size(top, 26)}{''.join(shown)}"


def heat_maps(
    found: xr.Dataset | MeanMap, effect: str, called: str, *, colour: bool = True, width: int | None = None
) -> Iterator[RenderableType]:
    """An effect of each component over rows and layers, below a scale that all share; nothing of kinds that are ranked.

    Without colour, shades show the size and − a negative effect. A map that is wider than `width` goes on below itself.
    """
    cells = found.cells.assign_coords(unit=found.unit) if isinstance(found, MeanMap) else found
    drawn = kind_of(cells).drawn
    if drawn is None:
        return
    # Nobody sees a map whole that runs over several screens: the words and the page say what is in it.
    if cells.sizes[drawn[0]] > MOST_ROWS:
        return
    for axis, at in strongest_place(cells, effect).items():
        name = _label(cells, at) if axis == "position" else f"{axis} {at}"
        cells, called = cells.sel({axis: at}), f"{called}, {name}"
    largest = float(np.nanmax(abs(cells[effect].values), initial=0)) or 1.0
    of_tokens = drawn[0] == "position"
    labels = [_label(cells, each) if of_tokens else str(each) for each in cells[drawn[0]].values.tolist()]
    labels = [_cut(each, width) for each in labels]
    room = cells.sizes[drawn[1]] if width is None else max(LEAST, width - max(map(cell_len, labels)) - RULER)
    for component in cells.component.values:
        here = cells.sel(component=component).transpose(*drawn, ...)
        title = f"{component}: {called}, {number(-largest)} to {number(largest)} {cells.unit.item()}"
        parts = [
            _part(here.isel({drawn[1]: slice(start, start + room)}), effect, labels, largest, colour)
            for start in range(0, here.sizes[drawn[1]], room)
        ]
        yield Group(Text(wrapped(title, width), style="bold"), *(row for part in parts for row in part))


def _part(here: xr.Dataset, effect: str, labels: Sequence[str], largest: float, colour: bool) -> Iterator[Text]:
    """Some columns of a map below their ruler, with a label a row."""
    rows, columns = here[effect].dims
    margin = max(map(cell_len, labels))
    yield Text(" " * (margin + 1) + _ruler(here[columns].values))
    for at, name in enumerate(labels):
        row, line = Text(" " * (margin - cell_len(name)) + f"{name} "), here.isel({rows: at})
        for value, status in zip(line[effect].values, line.status.values, strict=True):
            row.append(*_cell(float(value), str(status), largest, colour))
        yield row


def _cut(name: str, width: int | None) -> str:
    """A row's name in no more than half of the width."""
    return (
        name
        if width is None or cell_len(name) <= width // 2
        else set_cell_size(name, max(1, width // 2 - 1)).rstrip() + "…"
    )


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
    clean, corrupt = (printable(token).strip() for token in tokens)
    return clean if clean == corrupt else f"{clean} | {corrupt or UNPAIRED}"
