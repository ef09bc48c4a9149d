"""What a notebook shows: the words and a small map, without script."""

from html import escape

import numpy as np
import xarray as xr

from causal_tracing.report.labels import number
from causal_tracing.report.page.text import visible
from causal_tracing.report.words import many_pairs, one_pair
from causal_tracing.report.words.many_pairs import MeanReading
from causal_tracing.report.words.one_pair import Reading
from causal_tracing.results.means import NoMean, mean_maps
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.ranked import strongest_place
from causal_tracing.results.select import measured_directions, select
from causal_tracing.results.site_kinds import kind_of

SIZE = 12  # of a cell, in pixels
MOST = 60_000  # bytes of what a cell of a notebook keeps: more makes files that are slow to open and to compare
SHADES = 24  # of each colour: steps that the eye hardly sees
HEIGHT = 900  # of a page in a cell, in pixels
POSITIVE, NEGATIVE, NEUTRAL = (94, 60, 153), (230, 97, 1), (246, 245, 248)


def notebook_html(measurements: Measurements) -> str:
    """The words, with the first component's effects as an SVG for each direction: of the pair, or of many pairs' means.

    Where pairs have no mean, the first pair is shown, and says so.
    """
    count = measurements.pairs.sizes["pair"]
    if count == 1:
        return _one_pair(measurements)
    means = mean_maps(measurements)
    main = next(iter(means.values()))
    if isinstance(main, NoMean):
        return _one_pair(measurements, f"The first of {count} pairs. There is no mean over them: {main}")
    reading = many_pairs.read(means, measurements.provenance, many_pairs.beside_the_maps(measurements))
    maps = "".join(_map(main.cells, name) for name in measured_directions(main.cells))
    return _shown(reading.title, reading, maps, ".summary() lists the pairs.")


def frame(page: str, beside: str) -> str:
    """A page inside a cell: scripts run there, and reach nothing outside; with what is seen where they may not run.

    Notebooks that are not trusted, and those on a forge, take the frame away and leave what stands beside it.
    """
    return (
        f'<iframe sandbox="allow-scripts" srcdoc="{escape(page)}" width="100%" height="{HEIGHT}" '
        f'style="border:0"></iframe><details><summary>Without script</summary>{beside}</details>'
    )


def _one_pair(measurements: Measurements, which: str = "") -> str:
    """The first pair."""
    reading, found = one_pair.read(measurements), select(measurements)
    maps = "".join(_map(found, name) for name in measured_directions(found))
    return _shown(reading.headline, reading, maps, f"{which} .summary() lists all." if which else "")


def _shown(title: str, reading: Reading | MeanReading, maps: str, more: str) -> str:
    words = "".join(f"<li>{escape(visible(text))}</li>" for text in (*reading.sentences, *reading.warnings))
    return (
        f"<div><p><strong>{escape(visible(title))}</strong><br>{escape(reading.total)}</p><ul>{words}</ul>{maps}"
        f"{f'<p>{escape(visible(more))}</p>' if more else ''}<p><em>{escape(reading.caveats[0])}</em></p></div>"
    )


def _map(found: xr.Dataset, effect: str) -> str:
    """The first component's map, at the strongest position where it has other rows; none of a kind that is ranked."""
    drawn, component = kind_of(found).drawn, str(found.component.values[0])
    if drawn is None:
        return ""
    place = strongest_place(found, effect)
    title = f"{component}: {effect}" + (f", head {place['head']}" if kind_of(found).by_query else "")
    axes = "keys down, queries across" if kind_of(found).by_query else "tokens down, layers across"
    return _svg(found.sel(component=component, **place)[effect].transpose(*drawn[::-1]).values, title, axes)


def _svg(values: np.ndarray, title: str, axes: str) -> str:
    """Tokens down, layers or queries across; undefined cells are left empty. What is too large is not drawn."""
    largest = float(np.nanmax(abs(values), initial=0)) or 1.0
    cells: dict[str, str] = {}  # by colour, each a path of all its cells: a third of what so many rectangles take
    for (layer, position), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = _colour(round(value / largest * SHADES) / SHADES)
            cells[colour] = f"{cells.get(colour, '')}M{layer} {position}h1v1h-1z"
    drawn = "".join(f'<path fill="{colour}" d="{path}"/>' for colour, path in cells.items())
    if len(drawn) > MOST // 3:  # two maps, and the words
        return f"<p>{escape(title)}: {values.size:,} cells, too many for a notebook's file. .show() has them.</p>"
    layers, tokens = values.shape
    return (
        f"<p>{escape(title)} ({number(-largest)} to {number(largest)}; {axes})</p>"
        f'<svg width="{SIZE * layers}" height="{SIZE * tokens}" viewBox="0 0 {layers} {tokens}" '
        f'shape-rendering="crispEdges" role="img" aria-label="{escape(title)}">{drawn}</svg>'
    )


def _colour(share: float) -> str:
    end = POSITIVE if share > 0 else NEGATIVE
    return "#" + "".join(f"{round(a + (b - a) * abs(share)):02x}" for a, b in zip(NEUTRAL, end, strict=True))
