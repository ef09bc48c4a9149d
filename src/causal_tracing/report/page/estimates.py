"""The page of estimates: how far they agree with what was patched, as a table and as a scatter. No script."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pandas as pd

from causal_tracing.report.labels import number
from causal_tracing.report.page.forms import part
from causal_tracing.report.page.page import head, list_of, prompt, write
from causal_tracing.report.page.text import visible
from causal_tracing.report.words import estimates as in_words
from causal_tracing.results.estimates import Checked
from causal_tracing.results.measurements import Measurements

SIDE, EDGE, MOST_SITES = 260, 34, 30


def estimates_page(
    measurements: Measurements, agreement: pd.DataFrame, checked: Sequence[Checked], path: str | Path | None = None
) -> str:
    """The page as text, also written to `path`, whole or not at all. Raises MachineError."""
    record, direction = measurements.provenance, measurements.directions[0]
    named = [(one, in_words.named(measurements, one)) for one in checked]
    asked, *against = in_words.asked(measurements)
    rows = [{"component": name, **row} for name, row in agreement.to_dict("index").items()]
    page = Template(part("estimates.html")).substitute(
        head=head(f"Estimates: {asked}", part("page.css")),
        headline=prompt(asked) + "".join(f"<small>against {prompt(side)}</small>" for side in against),
        total=escape(
            visible(
                f"estimated {direction} ({in_words.how(record)}, {measurements.metric}) · {_total(measurements)} · "
                f"{record['model']}"
            )
        ),
        agreement="".join(_agreement(row) for row in rows),
        rest=list_of(tuple(visible(text) for text in in_words.left_out(measurements, agreement))),
        scatters="".join(_scatter(row, named) for row in rows),
        direction=direction,
        unit=escape(visible(in_words.unit_of(measurements))),
        noun=in_words.noun(measurements),
        sites="".join(_site(one, name) for one, name in sorted(named, key=_size)[:MOST_SITES]),
        provenance=escape("\n".join(f"{name}: {json.dumps(value)}" for name, value in record.items())),
    )
    if path is not None:
        write(Path(path), page)
    return page


def _total(measurements: Measurements) -> str:
    """The total effect; of several pairs their mean."""
    pairs = measurements.pairs
    total = float((pairs.clean - pairs.corrupt).sel(metric=measurements.metric).mean())
    mean = "mean total effect" if pairs.sizes["pair"] > 1 else "total effect"
    return f"{mean} {number(total)} {pairs.unit.values[0]}"


def _size(one: tuple[Checked, str]) -> float:
    # What has no number compares with nothing: it comes last, as what is 0 does.
    return -abs(one[0].exact) if np.isfinite(one[0].exact) else 0.0


def _agreement(row: Mapping[str, Any]) -> str:
    cells = "".join(f'<td class="number">{_shown(row, name)}</td>' for name in in_words.COLUMNS)
    patched = f"{row['verified']} + {row['sampled']}"
    return f'<tr><td>{escape(row["component"])}</td><td class="number">{patched}</td>{cells}</tr>'


def _shown(row: Mapping[str, Any], name: str) -> str:
    if np.isnan(row[name]):
        return "–"
    most = "≤ " if name == "recall" and row["above"] != 0 else ""  # what was not patched may hold stronger ones
    return most + number(row[name])


def _site(one: Checked, name: str) -> str:
    numbers = "".join(f'<td class="number">{_number(each)}</td>' for each in (one.exact, one.estimate))
    chosen = "a strong estimate" if one.why == "top" else "a random one of the rest"
    return f"<tr><td>{escape(visible(name))}</td>{numbers}<td>{chosen}</td></tr>"


def _number(value: float) -> str:
    return number(value) if np.isfinite(value) else "–"


def _scatter(row: Mapping[str, Any], named: Sequence[tuple[Checked, str]]) -> str:
    """One component's estimates (upwards) against exact effects (to the right), on one scale for both."""
    mine = [
        (one, name)
        for one, name in named
        if one.group == row["component"] and np.isfinite([one.exact, one.estimate]).all()
    ]
    most = max((abs(each) for one, _ in mine for each in (one.exact, one.estimate)), default=0) or 1.0  # all 0

    def at(value: float) -> float:
        return EDGE + (SIDE - 2 * EDGE) * (value / most + 1) / 2

    marks = "".join(
        f'<circle class="{one.why}" cx="{at(one.exact):.1f}" cy="{SIDE - at(one.estimate):.1f}" r="3.5">'
        f"<title>{escape(visible(name))}: exact {number(one.exact)}, estimate {number(one.estimate)}</title>"
        "</circle>"
        for one, name in mine
    )
    low, middle, high = at(-most), at(0.0), at(most)
    said = f"Estimates against exact effects of {len(mine)} sites of {row['component']}"
    return (
        f'<figure><svg viewBox="0 0 {SIDE} {SIDE}" role="img" aria-label="{escape(said)}">'
        f'<line class="axis" x1="{low}" x2="{high}" y1="{middle}" y2="{middle}"/>'
        f'<line class="axis" x1="{middle}" x2="{middle}" y1="{low}" y2="{high}"/>'
        f'<line class="equal" x1="{low}" x2="{high}" y1="{high}" y2="{low}"/>{marks}'
        f'<text x="{high}" y="{middle + 14}" text-anchor="end">exact {number(most)}</text>'
        f'<text x="{middle + 5}" y="{low - 6}">estimate {number(most)}</text></svg>'
        f"<figcaption>{escape(row['component'])}: Pearson {_shown(row, 'pearson')}</figcaption></figure>"
    )
