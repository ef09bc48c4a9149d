"""Differences of two traces in words: what was compared, each number with its interval, and the caveats that apply."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.errors import some_of
from causal_tracing.report.labels import between, number, p_value, percent
from causal_tracing.report.words.many_pairs import SIGNIFICANT, where_peak, with_interval
from causal_tracing.results.comparison import Differences
from causal_tracing.results.effects import AVERAGED, FRACTIONS
from causal_tracing.results.statistics.bootstrap import FEWEST, NEAR_ZERO, OF_SIDE, ZERO

LONGEST = 60  # letters of an option's value
MOST = 12  # names of a list
DENOMINATORS = {
    NEAR_ZERO: "the interval of the {} trace's total effect contains 0",
    ZERO: "the {} trace's total effect is 0 on average",
}
CAVEATS = (
    "A cell's difference says that the two runs differ there, not why.",
    "The largest of many differences, chosen and measured on the same pairs, is biased upward: other pairs would show "
    "a smaller one. p over the whole map accounts for the choice; the interval does not.",
    "The unit is the pair, and pairs of one cluster are one. The templates are fixed, not sampled: nothing here speaks "
    "for prompts of another kind.",
    "Intervals are 95 % by bootstrap over clusters; of few clusters they cover less (docs/statistics.md).",
)


def words(found: Differences) -> str:
    """What was compared, the total effects, the largest difference of each component, and the caveats."""
    lines = [*_compared(found), *_total(found), ""]
    lines += [*_largest(found), *_counts(found), *_left_out(found)]
    lines += [f"Warning: {warning}" for warning in _warnings(found)]
    return "\n".join([*lines, "", "What this does not show", *(f"- {caveat}" for caveat in CAVEATS)])


def _compared(found: Differences) -> Iterator[str]:
    """Both traces, and what their records say differently."""
    yield f"The first minus the second: {found.titled('mean paired difference')}"
    for which, side in found.sides.items():
        yield f"  {which:<7} {side.model} · {side.metric} ({side.unit})"
    if not found.differing:
        yield "Model, options and prompts are recorded as the same."
    for name, (one, other) in found.differing.items():
        yield f"  {name}: first {_value(one)}, second {_value(other)}"


def _value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _total(found: Differences) -> Iterator[str]:
    both = (f"{which} {with_interval(side.total)} {side.unit}" for which, side in found.sides.items())
    yield f"total effect: {', '.join(both)}"
    if found.reason:
        yield f"There is no difference of effects: {found.reason}. Only fractions of the total effect are compared."
    else:
        yield f"difference of the total effects {with_interval(found.total)} {found.unit}"


def _largest(found: Differences) -> Iterator[str]:
    """Of each component, the tested cell with the largest difference (by size)."""
    by = _measure(found)
    if not by:
        return
    for component in found.cells.component.values:
        here = found.cells.sel(component=component)
        size = abs(here[by]).where(here.status == "ok")
        if not size.notnull().any():
            continue
        if not (size > 0).any():
            yield f"No cell of {component} differs."
            continue
        at = np.unravel_index(int(size.fillna(-1).values.argmax()), size.shape)
        cell = here.isel(dict(zip(size.dims, map(int, at), strict=True)))
        yield f"Largest difference of {component}: {where_peak(cell)}; {_said(found, cell)}."


def _measure(found: Differences) -> str:
    """What differences are ranked by: the first effect; where effects have no difference, a fraction; "" else."""
    # Two metrics in other units have no difference of effects; fractions have no unit.
    fractions = [name for name in FRACTIONS if name in found.cells and found.cells[name].notnull().any()]
    return next(iter(fractions), "") if found.reason else found.shown


def _said(found: Differences, cell: xr.Dataset) -> str:
    """One cell's differences with their intervals."""
    parts = []
    for name in () if found.reason else [name for name in AVERAGED if name in cell]:
        low, high, adjusted = (float(cell[f"{name}_{end}"]) for end in ("low", "high", "p_adjusted"))
        both = " − ".join(_bracketed(float(cell[f"{name}_{which}"])) for which in ("first", "second"))
        test = "" if np.isnan(adjusted) else f", p {p_value(adjusted)} over the whole map"
        parts.append(f"{name} {both} = {number(float(cell[name]))}{between(low, high)} {found.unit}{test}")
    for name in FRACTIONS:
        if name in cell and not np.isnan(float(cell[name])):
            low, high = float(cell[f"{name}_low"]), float(cell[f"{name}_high"])
            interval = "" if np.isnan(low) else f" [{percent(low)}, {percent(high)}]"
            parts.append(f"difference of {name.replace('_', ' ')}s {percent(float(cell[name]))}{interval}")
    return "; ".join(parts)


def _bracketed(value: float) -> str:
    return f"({number(value)})" if value < 0 else number(value)


def _counts(found: Differences) -> Iterator[str]:
    """How many cells differ, of how many that were tested."""
    counts = []
    for name in [name for name in AVERAGED if name in found.cells]:
        adjusted = found.cells[f"{name}_p_adjusted"]
        counts.append(f"{int((adjusted < SIGNIFICANT).sum())} of {int(adjusted.notnull().sum())} by {name}")
    if not found.reason:
        yield f"Cells that differ with p < {SIGNIFICANT} over the whole map: {', '.join(counts)}."


def _left_out(found: Differences) -> Iterator[str]:
    for which, only in (("first", found.only_first), ("second", found.only_second)):
        if only:
            told = "; ".join(f"{kind} {some_of(names, MOST)}" for kind, names in only.items())
            yield f"Only in the {which}, and not compared: {told}."
    if found.undefined:
        yield f"In both, and without a number by one of the metrics: pairs {some_of(found.undefined, MOST)}."


def _warnings(found: Differences) -> Iterator[str]:
    """The caveats that apply to this comparison."""
    yield from found.warnings
    if found.clusters < FEWEST:
        yield f"Fewer than {FEWEST} clusters: differences without intervals."
    if found.smallest_p > SIGNIFICANT:
        yield (
            f"With {found.clusters} clusters the smallest p that can be is {found.smallest_p:.2g}: no test can reach "
            f"{SIGNIFICANT}."
        )
    yield from _without_fractions(found.cells)


def _without_fractions(cells: xr.Dataset) -> Iterator[str]:
    """Where a total effect is too small to divide by, in how many cells, by which trace."""
    name = next((name for name in FRACTIONS if name in cells), None)
    if name is None:
        return
    reasons = cells[f"{name}_reason"].values
    for which in ("first", "second"):
        for reason, what in DENOMINATORS.items():
            count = int((reasons == OF_SIDE[which][reason]).sum())
            if count:
                cells_said = "No cell has fractions" if count == reasons.size else f"{count} cells have no fractions"
                yield f"{cells_said} to compare: {what.format(which)}."
