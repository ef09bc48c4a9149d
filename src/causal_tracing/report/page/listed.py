"""Tables of a page: kinds whose cells are of no one layer, the strongest first, of each pair and of the mean.

They need no script: which of them is shown follows the pair that is chosen, as the stories do.
"""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.report.labels import between, number, p_value, site_name, with_share
from causal_tracing.report.page.forms import form, titled
from causal_tracing.report.page.text import visible
from causal_tracing.report.words.many_pairs import where_peak
from causal_tracing.results.columns import among_others
from causal_tracing.results.means import MeanMap
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.ranked import ranked
from causal_tracing.results.select import SiteRow, select, shown_first, strongest
from causal_tracing.results.site_kinds import SiteKind

MOST = 40  # cells of a kind, by each pair
OF_DIRECTION = (("", ""), ("_of_members", ", each alone, added up"), ("_beyond_sum", ", beyond the sum of each alone"))
SHARES = {"restoration": "restored_fraction", "disruption": "lost_fraction"}


def listed(measurements: Measurements, kind: SiteKind, shown: Sequence[str], mean: MeanMap | None, id: str) -> str:
    """The section of a kind; `id` is what the mean is chosen by."""
    tables = [_of_pair(measurements, kind, pair, hidden=mean is not None or n > 0) for n, pair in enumerate(shown)]
    of_mean = [_of_mean(kind, mean, id)] if mean is not None else []
    return titled(kind, "".join([_matrix(kind), *of_mean, *tables]))


def _matrix(kind: SiteKind) -> str:
    """What the script draws of paths; their table says the same without it."""
    return f"{form('matrix.html', kind)}<h3>The strongest as a table</h3>" if kind.figure == "matrix" else ""


def _of_pair(measurements: Measurements, kind: SiteKind, pair: str, *, hidden: bool) -> str:
    found = select(measurements, pair=pair, of=kind.name)
    rows = [[site_name(row), *_cells(row, found)] for row in strongest(found, MOST)]
    return _table(kind, pair, _heads(found), rows, _count(found, kind), hidden=hidden)


def _count(found: xr.Dataset, kind: SiteKind) -> int:
    """How many cells a table could have: two sites are one, whichever comes first."""
    there = found[shown_first(found)].where((found.status == "ok") & among_others(found)).notnull()
    if not kind.mirrored:
        return int(there.sum())
    # By number along both axes together, and in one order: so (A, B) and (B, A) are the same two numbers.
    down, across = kind.axes[1:]
    names = np.concatenate([there[down].values, there[across].values]).astype(str)
    numbers = np.unique(names, return_inverse=True)[1]
    first, second = np.nonzero(there.any("component").transpose(down, across).values)
    both = np.sort([numbers[first], numbers[there.sizes[down] + second]], axis=0)
    return np.unique(both, axis=1).shape[1]


def _cells(row: SiteRow, found: xr.Dataset) -> Iterator[str]:
    for direction, name in _columns(found):
        value = getattr(row, name)
        share = getattr(row, SHARES[direction]) if name == direction else None
        yield with_share(value, share)


def _of_mean(kind: SiteKind, mean: MeanMap, id: str) -> str:
    cells = mean.cells.assign_coords(kind=kind.name, unit=mean.unit)
    order, seen = ranked(cells, mean.shown), dict[Any, Mapping[str, Any]]()
    for n, cell in enumerate(order.cell.values):
        # Of two sites in either order one row is told.
        at = dict(zip(kind.ranked_axes, cell, strict=True))
        seen.setdefault(frozenset(at.values()) if kind.mirrored else n, at)
    rows = []
    for at in [*seen.values()][:MOST]:
        here = mean.cells.sel(at)
        rows.append([where_peak(here), *(_with_interval(here, name) for _, name in _columns(mean.cells))])
    return _table(kind, id, _heads(cells), rows, len(seen), hidden=False)


def _with_interval(cell: xr.Dataset, name: str) -> str:
    value = float(cell[name])
    if np.isnan(value):
        return "–"
    p = float(cell[f"{name}_p_adjusted"])
    test = "" if np.isnan(p) else f" (p {p_value(p)})"
    return number(value) + between(float(cell[f"{name}_low"]), float(cell[f"{name}_high"])) + test


def _columns(found: xr.Dataset) -> Iterator[tuple[str, str]]:
    """The effects that a table shows: of each direction what was measured."""
    for direction in SHARES:
        yield from ((direction, f"{direction}{end}") for end, _ in OF_DIRECTION if f"{direction}{end}" in found)


def _heads(found: xr.Dataset) -> list[str]:
    ends = dict(OF_DIRECTION)
    unit = str(found.unit.item())
    return [f"{direction}{ends[name.removeprefix(direction)]} ({unit})" for direction, name in _columns(found)]


def _table(
    kind: SiteKind, id: str, heads: Sequence[str], rows: Sequence[Sequence[str]], count: int, *, hidden: bool
) -> str:
    head = "".join(f'<th scope="col" class="number">{escape(text)}</th>' for text in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(visible(name))}</th>'
        + "".join(f'<td class="number">{escape(text)}</td>' for text in numbers)
        + "</tr>"
        for name, *numbers in rows
    )
    more = f'<p class="quiet">The {len(rows)} strongest of {count:,} cells; trace.of("{kind.name}") has all.</p>'
    return (
        f'<div data-pair="{escape(id)}"{" hidden" if hidden else ""}><div class="scroll" tabindex="0">'
        f'<table class="sites"><thead><tr><th scope="col">{escape(kind.noun)}</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{more if len(rows) < count else ''}</div>"
    )
