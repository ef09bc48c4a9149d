"""The section of circuits on the page: the curve of faithfulness with its interval and both ends, and its numbers."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

import pandas as pd

from causal_tracing.errors import InvalidOption, some_of
from causal_tracing.report.labels import number
from causal_tracing.report.page.forms import titled
from causal_tracing.report.page.text import visible
from causal_tracing.report.words.circuits import WEIGHTED, share_of, weight_of
from causal_tracing.results.circuits import Circuits, circuits
from causal_tracing.results.means import MeanMap
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.site_kinds import SiteKind

WIDTH, HEIGHT, EDGE, TICK = 640, 280, 40, 24
MOST_NAMED = 12  # in a row


def circuits_section(
    measurements: Measurements, kind: SiteKind, shown: Sequence[str], _: MeanMap | None, id: str
) -> str:
    """The section: of the mean over pairs (that of faithfulness, not of cells), chosen by `id`, and of each pair."""
    several = measurements.pairs.sizes["pair"] > 1
    parts = [(None, id, False)] if several and id else []
    parts += [(pair, pair, bool(parts) or n > 0) for n, pair in enumerate(shown)]
    return titled(kind, "".join(_part(measurements, pair, own, hidden=hidden) for pair, own, hidden in parts))


def _part(measurements: Measurements, pair: str | None, id: str, *, hidden: bool) -> str:
    head = f'<div data-pair="{escape(id)}"{" hidden" if hidden else ""}>'
    try:
        found = circuits(measurements, pair=pair)
    except InvalidOption as error:
        return f'{head}<p class="warning">{escape(visible(str(error)))}</p></div>'
    return f'{head}<div class="chart">{curve(found)}</div>{_table(found)}</div>'


@dataclass(frozen=True, slots=True, kw_only=True)
class _Picture:
    """Where sizes are to the right, on a logarithmic scale, and what f is upwards, from `low` to `high`."""

    items: int
    low: float
    high: float

    def right(self, size: int) -> float:
        # Of a single item the axis has no length, and nothing can be divided by its logarithm.
        return EDGE + (WIDTH - 2 * EDGE) * math.log(size) / max(math.log(self.items), 1e-9)

    def up(self, f: float) -> float:
        return HEIGHT - EDGE - (HEIGHT - 2 * EDGE) * (f - self.low) / (self.high - self.low)

    def at(self, size: int, f: float) -> str:
        return f"{self.right(size):.1f},{self.up(f):.1f}"


def curve(found: Circuits) -> str:
    """f upwards against the size to the right, with its interval and both ends: a picture without script."""
    rows = found.curve.iloc[1:]  # a logarithmic axis has no place for the empty set
    rows = rows[rows.faithfulness.notna()]
    told = [0.0, 1.0, *rows.faithfulness, *rows.low.dropna(), *rows.high.dropna()]
    picture = _Picture(items=found.items, low=float(min(told)), high=float(max(told)))
    sizes, known = [int(size) for size in rows["size"]], rows.faithfulness.tolist()
    line = " ".join(picture.at(size, f) for size, f in zip(sizes, known, strict=True))
    marks = "".join(
        f'<circle cx="{picture.right(size):.1f}" cy="{picture.up(f):.1f}" r="3.5" fill="currentColor"><title>'
        f"{size} {found.of}: f = {escape(share_of(row))}</title></circle>"
        for size, f, (_, row) in zip(sizes, known, rows.iterrows(), strict=True)
    )
    said = f"Faithfulness of sets of 1 to {found.items} {found.of}, {found.how}"
    ends = "".join(_level(picture.up(f), text) for f, text in ((0.0, "empty set: 0"), (1.0, f"all {found.of}: 1")))
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(said)}">{ends}{_band(rows, picture)}'
        f'<polyline points="{line}" fill="none" stroke="currentColor" stroke-width="2"/>{marks}'
        f"{''.join(_ticks(sizes, picture, found.of))}</svg>"
    )


def _level(y: float, text: str) -> str:
    return (
        f'<line x1="{EDGE}" x2="{WIDTH - EDGE}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" stroke-dasharray="4 4" '
        f'opacity="0.5"/><text x="{EDGE}" y="{y - 5:.1f}" font-size="12" fill="currentColor">{text}</text>'
    )


def _band(rows: pd.DataFrame, picture: _Picture) -> str:
    """The interval, where there is one."""
    known = rows[rows.low.notna()]
    sizes = [int(size) for size in known["size"]]
    there = [picture.at(size, f) for size, f in zip(sizes, known.high.tolist(), strict=True)]
    back = [picture.at(size, f) for size, f in zip(sizes, known.low.tolist(), strict=True)][::-1]
    return f'<polygon points="{" ".join([*there, *back])}" fill="currentColor" opacity="0.15"/>' if there else ""


def _ticks(sizes: Sequence[int], picture: _Picture, of: str) -> Iterator[str]:
    """Numbers of nodes or edges below the picture, as many as there is room for."""
    style, last = 'font-size="12" text-anchor="middle" fill="currentColor"', -math.inf
    for size in sizes:
        if picture.right(size) - last > TICK:
            last = picture.right(size)
            yield f'<text x="{last:.1f}" y="{HEIGHT - EDGE + 16}" {style}>{size}</text>'
    yield f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}" {style}>{of} (logarithmic)</text>'


def _table(found: Circuits) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in _heads(found))
    rows = "".join(
        f'<tr><th scope="row">{row["size"]}</th><td class="number">{escape(share_of(row))}</td>'
        f'<td class="number">{number(row.metric)} {escape(found.unit)}</td>'
        f'<td class="number">{weight_of(found, row)}</td><td>{escape(visible(named(row.added)))}</td></tr>'
        for _, row in found.curve.iterrows()
    )
    return (
        f'<div class="scroll" tabindex="0"><table class="sites"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody>'
        "</table></div>"
    )


def _heads(found: Circuits) -> list[str]:
    return [found.of, "f [95 %]", "metric", WEIGHTED[found.of], f"{found.of} that this size adds"]


def named(added: str) -> str:
    """What a size adds, the first ones by name."""
    return some_of(added.split("; ") if added else [], MOST_NAMED)
