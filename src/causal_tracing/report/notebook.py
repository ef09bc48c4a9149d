"""What a notebook shows: the words and a small map, without script."""

from html import escape

import numpy as np

from causal_tracing.report.labels import number
from causal_tracing.report.page.text import visible
from causal_tracing.report.words.one_pair import read
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.rankings import strongest_position
from causal_tracing.results.select import select
from causal_tracing.results.site_kinds import kind_of

SIZE = 12  # of a cell, in pixels
POSITIVE, NEGATIVE, NEUTRAL = (94, 60, 153), (230, 97, 1), (246, 245, 248)


def notebook_html(measurements: Measurements) -> str:
    """The first pair's words, with its first component's effects as an SVG for each direction."""
    reading = read(measurements)
    maps = "".join(_map(measurements, name) for name in measurements.directions)
    words = "".join(f"<li>{escape(visible(text))}</li>" for text in (*reading.sentences, *reading.warnings))
    count = measurements.pairs.sizes["pair"]
    more = f"<p>The first of {count} pairs; .summary() lists all.</p>" if count > 1 else ""
    return (
        f"<div><p><strong>{escape(visible(reading.headline))}</strong><br>{escape(reading.total)}</p>"
        f"<ul>{words}</ul>{maps}{more}<p><em>{escape(reading.caveats[0])}</em></p></div>"
    )


def _map(measurements: Measurements, effect: str) -> str:
    """The first component's map, at the strongest position where it has other rows; none of a kind that is ranked."""
    found = select(measurements)
    drawn, component = kind_of(found).drawn, str(found.component.values[0])
    if drawn is None:
        return ""
    if "position" not in drawn:
        found = found.sel(position=strongest_position(found, effect))
    return _svg(found.sel(component=component)[effect].transpose(*drawn[::-1]).values, f"{component}: {effect}")


def _svg(values: np.ndarray, title: str) -> str:
    """Layers left to right, tokens down; undefined cells are left empty."""
    largest = float(np.nanmax(abs(values), initial=0)) or 1.0
    cells = "".join(
        f'<rect x="{SIZE * layer}" y="{SIZE * position}" width="{SIZE}" height="{SIZE}" '
        f'fill="{_colour(value / largest)}"/>'
        for (layer, position), value in np.ndenumerate(values)
        if np.isfinite(value)
    )
    width, height = SIZE * values.shape[0], SIZE * values.shape[1]
    return (
        f"<p>{escape(title)} ({number(-largest)} to {number(largest)}; tokens down, layers across)</p>"
        f'<svg width="{width}" height="{height}" role="img" aria-label="{escape(title)}">{cells}</svg>'
    )


def _colour(share: float) -> str:
    end = POSITIVE if share > 0 else NEGATIVE
    return "#" + "".join(f"{round(a + (b - a) * abs(share)):02x}" for a, b in zip(NEUTRAL, end, strict=True))
