"""The page of estimates: how far they agree with what was patched, as a table and as a scatter. No script."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from causal_tracing.report.labels import number
from causal_tracing.report.page.page import head, list_of, part, prompt, write
from causal_tracing.report.page.text import visible

SIDE, EDGE, MOST_SITES = 260, 34, 30
COLUMNS = ("pearson", "spearman", "same_sign", "recall")


def screen_page(
    found: Mapping[str, Any], names: Sequence[str], rest: Sequence[str], how: str, path: str | Path | None = None
) -> str:
    """The page as text, also written to `path`, whole or not at all. Raises MachineError.

    `found` is what `Attribution.to_dict` gives, `names` each patched site for people, `rest` what is known of those
    that were not patched, and `how` the method in words.
    """
    record = found["provenance"]
    named = list(zip(found["verified"], names, strict=True))
    unit = record["unit"]
    page = Template(part("estimates.html")).substitute(
        head=head(f"Estimates: {record['clean']} →{record['answer']}", part("page.css")),
        headline=f"{prompt(record['clean'] + ' →' + record['answer'])}"
        f"<small>against {prompt(_against(record))}</small>",
        total=escape(
            f"estimated {record['direction']} ({how}, {record['metric']}) · total effect "
            f"{number(record['total_effect'])} {unit} · {record['model']}"
        ),
        agreement="".join(_agreement(row) for row in found["agreement"]),
        rest=list_of(tuple(visible(text) for text in rest)),
        scatters="".join(_scatter(row, named) for row in found["agreement"]),
        direction=record["direction"],
        unit=unit,
        sites="".join(_site(one, name) for one, name in sorted(named, key=_size)[:MOST_SITES]),
        provenance=escape("\n".join(f"{name}: {json.dumps(value)}" for name, value in record.items())),
    )
    if path is not None:
        write(Path(path), page)
    return page


def _against(record: Mapping[str, Any]) -> str:
    return record["corrupt"] + (f" →{record['foil']}" if record["foil"] else "")


def _size(one: tuple[Mapping[str, Any], str]) -> float:
    return -abs(one[0]["exact"] or 0)


def _agreement(row: Mapping[str, Any]) -> str:
    cells = "".join(f'<td class="number">{_shown(row, name)}</td>' for name in COLUMNS)
    patched = f"{row['verified']} + {row['sampled']}"
    return f'<tr><td>{escape(row["component"])}</td><td class="number">{patched}</td>{cells}</tr>'


def _shown(row: Mapping[str, Any], name: str) -> str:
    if row[name] is None:
        return "–"
    most = "≤ " if name == "recall" and row["above"] != 0 else ""  # what was not patched may hold stronger ones
    return most + number(row[name])


def _site(one: Mapping[str, Any], name: str) -> str:
    numbers = "".join(f'<td class="number">{_number(one[key])}</td>' for key in ("exact", "estimate"))
    chosen = "a strong estimate" if one["why"] == "top" else "a random one of the rest"
    return f"<tr><td>{escape(visible(name))}</td>{numbers}<td>{chosen}</td></tr>"


def _number(value: float | None) -> str:
    return "–" if value is None else number(value)


def _scatter(row: Mapping[str, Any], named: Sequence[tuple[Mapping[str, Any], str]]) -> str:
    """One component's estimates (upwards) against exact effects (to the right), on one scale for both."""
    mine = [
        (one, name)
        for one, name in named
        if one["component"] == row["component"] and None not in (one["exact"], one["estimate"])
    ]
    most = max((abs(one[key]) for one, _ in mine for key in ("exact", "estimate")), default=0) or 1.0

    def at(value: float) -> float:
        return EDGE + (SIDE - 2 * EDGE) * (value / most + 1) / 2

    marks = "".join(
        f'<circle class="{one["why"]}" cx="{at(one["exact"]):.1f}" cy="{SIDE - at(one["estimate"]):.1f}" r="3.5">'
        f"<title>{escape(visible(name))}: exact {number(one['exact'])}, estimate {number(one['estimate'])}</title>"
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
