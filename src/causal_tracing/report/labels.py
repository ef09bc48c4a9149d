"""Sites as people read them: one site's numbers as a row, its name, and what its numbers mean together."""

import math
from typing import Any

from causal_tracing.results.columns import in_words
from causal_tracing.results.select import HIGH, NEARLY_ZERO, SiteRow
from causal_tracing.results.site_kinds import KINDS

UNPAIRED = "–"  # stands where a clean token has no corrupt one
BETWEEN = 1e-3  # takes a number that lies between two of two decimals to the larger one, and no further


def number(value: float) -> str:
    """A number for people: three significant digits or two decimals, with a real minus sign; of −0 it has none.

    What lies between two is told as the larger one, 2.63 of 2.625: numbers of bfloat16 often do, and pages tell so.
    """
    value = float(value)  # of numpy's numbers a product may warn
    if abs(value) < 0.1 and value != 0:
        return f"{value:.2g}".replace("-", "−")
    between = value * 8 % 2 == 1  # of all doubles, these alone lie between two of two decimals
    return f"{value + math.copysign(BETWEEN, value) if between else value + 0.0:.2f}".replace("-", "−")


def percent(fraction: float) -> str:
    """A fraction in whole per cent, with a real minus sign; `9.9 %` of what is less than a tenth, `49.9 %` than a half.

    There the words change (`select.pattern`): what is told must not stand on the other side of it.
    """
    size = abs(fraction)
    told = f"{_whole(100 * size)}"
    for level in (NEARLY_ZERO, HIGH):
        if size < level and _whole(100 * size) == _whole(100 * level):
            told = f"{min(100 * size, 100 * level - 0.1):.1f}"
    return f"{'−' if fraction < 0 and told != '0' else ''}{told} %"


def _whole(size: float) -> int:
    """The nearest whole number; of two the larger one, as pages have it."""
    return math.floor(size + 0.5)


def between(low: float, high: float) -> str:
    """An interval behind its estimate; "" where there is none."""
    return "" if math.isnan(low) else f" [{number(low)}, {number(high)}]"


def p_value(value: float) -> str:
    """A p behind the letter: `= 0.03`; of one that only rounding would make 0.05 that it is less."""
    if value < 0.001:
        return "< 0.001"
    return "< 0.05" if value < 0.05 <= float(f"{value:.2g}") else f"= {value:.2g}"


def full_name(row: SiteRow) -> str:
    """A site's name and its place: `z layer 3 head 1, token 2 (osse | iffel)`."""
    return f"{site_name(row)}, {place(row)}" if KINDS[row.kind].column == "position" else site_name(row)


def addressed(row: SiteRow) -> str:
    """Where a site is, in a sentence: `head 1 of layer 3 at token 2 (osse | iffel)`."""
    kind = KINDS[row.kind]
    address = kind.address.format(**names_of(row))
    return f"{address} at {place(row)}" if kind.column == "position" else address


def names_of(row: SiteRow) -> dict[str, Any]:
    """What a kind's texts may name of a site."""
    query = "" if row.query is None else asking(row.query, row.query_token)
    return {
        "component": row.component,
        "layer": row.layer,
        "part": row.part,
        "column": row.position,
        "query": query,
    }


def asking(query: int | str, token: str = "") -> str:
    """The token that attends, for people: `token 7 (in)`, or by its role."""
    if isinstance(query, str):
        return in_words(query)
    return f"token {query}" + (f" ({token.strip() or repr(token)})" if token else "")


def place(row: SiteRow) -> str:
    """A site for people: `token 2 (osse | iffel)`."""
    if isinstance(row.position, str) and KINDS[row.kind].of_keys:
        return f"the keys {row.position.replace('_', ' ')!r}"
    if isinstance(row.position, str):
        return in_words(row.position)
    clean, corrupt = (
        row.clean_token.strip() or repr(row.clean_token),
        row.corrupt_token.strip() or (repr(row.corrupt_token) if row.corrupt_token else UNPAIRED),
    )
    shown = clean if row.clean_token == row.corrupt_token else f"{clean} | {corrupt}"
    return f"the last token ({shown})" if row.role == "last" else f"token {row.position} ({shown})"


def site_name(row: SiteRow) -> str:
    """A site's component, layer and part for people: `z layer 3 head 1`."""
    named = KINDS[row.kind].named
    return named.format(**names_of(row)) + (f" ({row.window})" if row.window else "")


def with_share(effect: float | None, fraction: float | None) -> str:
    """An effect with its share of the total effect, for people; a dash where it was not measured."""
    if effect is None:
        return "–"
    return number(effect) + (f" ({percent(fraction)})" if fraction is not None else "")
