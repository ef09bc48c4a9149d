"""Evidence in words: each number with its interval, the pairs it speaks for, and the caveats that apply."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.report.labels import asking, between, number, p_value, percent
from causal_tracing.report.words.circuits import circuit_sentences
from causal_tracing.report.words.lens import mean_lens_sentences
from causal_tracing.report.words.method import (
    control_sentences,
    device_sentences,
    says_of_pairs,
    seen_beside_usual,
    thirds,
    usual_sentence,
)
from causal_tracing.report.words.paths import through, verb_of
from causal_tracing.report.words.senders import NOT_SHOWN_SENDERS, mean_sender_sentences
from causal_tracing.results.arms import DIRECT, DIRECT_NAMES, DIRECTIONS
from causal_tracing.results.columns import columns_of, in_words
from causal_tracing.results.means import MeanMap, NoMean
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.site_kinds import KINDS, PATHS, kind_of
from causal_tracing.results.statistics.bootstrap import FEWEST, Interval

STABLE, SIGNIFICANT, OF_INTEREST = 0.8, 0.05, 0.02
BESIDE_THE_PROMPTS = ("id", "cluster", "labels")  # what two pairs that ask the same may differ in
CAVEATS = (
    "The unit is the pair, and pairs of one cluster are one. The templates are fixed, not sampled: nothing here speaks "
    "for prompts of another kind.",
    "Intervals are 95 % by bootstrap over clusters; of few clusters they cover less (docs/statistics.md).",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanReading:
    """What many pairs say together, in words: whom it speaks for, the findings, what limits them."""

    title: str
    total: str
    sentences: tuple[str, ...]
    warnings: tuple[str, ...]
    caveats: tuple[str, ...]


def beside_the_maps(measurements: Measurements, metric: str | None = None) -> Iterator[str]:
    """What is said of all pairs together beside their maps: of circuits, and of the logit lens."""
    yield from circuit_sentences(measurements, metric=metric)
    yield from mean_lens_sentences(measurements)


def read(means: Mapping[str, MeanMap | NoMean], record: Mapping[str, Any], beside: Iterable[str] = ()) -> MeanReading:
    """The means over pairs: what they speak for, the peaks with their intervals, and the caveats that apply.

    Each kind of site is a map of its own; the first of `means` must have one. `beside` is what else is said of them.
    """
    (_, main), *others = means.items()
    assert isinstance(main, MeanMap)
    maps = [main, *(found for _, found in others if isinstance(found, MeanMap))]
    sentences = [*_said(main, record), *_usual(main, record)]
    for name, found in others:
        lacking = f"There is no mean of {name} over these pairs: {found}"
        sentences += [lacking] if isinstance(found, NoMean) else _said(found, record)
    return MeanReading(
        title=_share(main, record),
        total=_total(main),
        sentences=(*sentences, *beside),
        warnings=(
            *control_sentences(record),
            *device_sentences(record),
            *_repeated(record),
            *_warnings(main),
            *(each for one in maps if not KINDS[one.kind].large for each in _of_peaks(one)),
        ),
        caveats=(*CAVEATS, says_of_pairs(means, record), *(NOT_SHOWN_SENDERS if PATHS.name in means else ())),
    )


def _said(means: MeanMap, record: Mapping[str, Any]) -> Iterator[str]:
    """The peaks of one map, and the paths that lead from its sites."""
    yield from _best(means)
    yield from _direct(means, record)
    yield from mean_sender_sentences(means)


def words(means: Mapping[str, MeanMap | NoMean], record: Mapping[str, Any], beside: Iterable[str] = ()) -> str:
    """The same as plain text."""
    reading = read(means, record, beside)
    lines = [reading.title, reading.total, "", *reading.sentences]
    lines += [f"Warning: {warning}" for warning in reading.warnings]
    return "\n".join([*lines, "", "What this does not show", *(f"- {caveat}" for caveat in reading.caveats)])


def _share(means: MeanMap, record: Mapping[str, Any]) -> str:
    """How many pairs this speaks for, of how many."""
    asked = record.get("pairs_asked", means.pairs + len(means.undefined))
    if asked == means.pairs:
        return means.titled("Mean")
    left = {
        "left out by the clean run": len(record.get("dropped", ())),
        "failed": len(record.get("failed", ())),
        "not done": record.get("pairs_missing", 0),
        f"without {means.metric}": len(means.undefined),
    }
    why = ", ".join(f"{count} {reason}" for reason, count in left.items() if count)
    return f"{means.titled('Mean', of=asked)} ({why})"


def _total(means: MeanMap) -> str:
    if np.isnan(float(means.total.estimate)):
        return "there are no corrupt prompts, and so no total effect"
    return f"total effect {with_interval(means.total)} {means.unit}"


def with_interval(interval: Interval) -> str:
    """One estimate and, where there is one, its interval: `1.20 [0.90, 1.50]`."""
    estimate, low, high = (float(each) for each in (interval.estimate, interval.low, interval.high))
    return number(estimate) + between(low, high)


def _best(means: MeanMap) -> Iterator[str]:
    """The strongest site of each component: mean, interval, fraction, test, and how far its place can be trusted.

    Circuits have no strongest one: they are told size by size (`circuits.py`).
    """
    if KINDS[means.kind].large:
        return
    for component, (half, stable) in means.peaks.items():
        cell = means.peak(component)
        if cell is None:
            continue
        parts = [_effect(cell, name, means.unit) for name in DIRECTIONS if name in cell]
        adjusted = float(cell[f"{means.shown}_p_adjusted"])
        test = "" if np.isnan(adjusted) else f" (p {p_value(adjusted)} over the whole map)"
        # Interactions have no fraction of the total effect: they are told by their size.
        if means.shown not in DIRECTIONS:
            low, high = float(cell[f"{means.shown}_low"]), float(cell[f"{means.shown}_high"])
            size = f"{number(float(cell[means.shown]))}{between(low, high)} {means.unit}"
            parts.append(f"beyond the sum of what each does alone {size}")
        kind = kind_of(cell)
        what = f"{component} site" if kind.layered and kind.part else kind.called.format(component=component)
        said = f"Strongest {what}: {where_peak(cell)}; {'; '.join(parts)}{test}."
        yield said + _trust(means, half.held_out, stable.within_one_layer)


def _direct(means: MeanMap, record: Mapping[str, Any]) -> Iterator[str]:
    """Each component's strongest mean of direct paths, beside the whole effect there."""
    norm = record.get("options", {}).get("direct_norm", "live")
    measured = [direct for direct in DIRECT if f"{DIRECT_NAMES[direct]}_{means.shown}" in means.cells]
    # Of both, that through the stream alone is told: the other stands in the tables.
    for direct in measured[:1]:
        name = f"{DIRECT_NAMES[direct]}_{means.shown}"
        for component in means.cells.component.values:
            here = means.cells.sel(component=component)
            size = abs(here[name]).where(here.status == "ok").fillna(0.0)
            if not (size > 0).any():
                continue
            index = np.unravel_index(int(size.values.argmax()), size.shape)
            cell = here.isel({str(axis): int(n) for axis, n in zip(size.dims, index, strict=True)})
            both = [
                number(float(cell[each])) + between(float(cell[f"{each}_low"]), float(cell[f"{each}_high"]))
                for each in (name, means.shown)
            ]
            yield (
                f"Strongest direct path of {component}: {where_peak(cell)}; {through(direct, norm)} it "
                f"{verb_of(means.shown)} {both[0]} {means.unit}, in all {both[1]}."
            )


def where_peak(cell: xr.Dataset) -> str:
    """A cell's layer, part if it is of one, and column."""
    kind = kind_of(cell)
    if kind.layered and kind.part:
        return f"layer {int(cell.layer)}, {kind.part} {int(cell[kind.part])} at {where(cell)}"
    part, layer = (cell[axis].item() if axis and axis in kind.axes else None for axis in (kind.part, "layer"))
    query = asking(cell["query"].item()) if kind.by_query else ""
    named = {"component": cell.component.item(), "part": part, "layer": layer, "column": cell[kind.column].item()}
    address = kind.address.format(**named, query=query)
    return f"{address} at {where(cell)}" if kind.column == "position" else address


def _effect(cell: xr.Dataset, name: str, unit: str) -> str:
    fraction = {"restoration": "restored_fraction", "disruption": "lost_fraction"}[name]
    verb = kind_of(cell).restores if name == "restoration" else kind_of(cell).loses
    mean = f"{number(float(cell[name]))}{between(float(cell[f'{name}_low']), float(cell[f'{name}_high']))} {unit}"
    share = float(cell[fraction])
    if np.isnan(share):
        return f"{verb} {mean}"
    low, high = float(cell[f"{fraction}_low"]), float(cell[f"{fraction}_high"])
    interval = "" if np.isnan(low) else f" [{percent(low)}, {percent(high)}]"
    return f"{verb} {mean}, {percent(share)}{interval} of the total effect"


def where(cell: xr.Dataset) -> str:
    """A cell's column: a token by its number, or by its role."""
    position = cell.position.item()
    if isinstance(position, int):
        return f"token {position}"
    return in_words(str(position))


def _trust(means: MeanMap, held_out: float, near: float) -> str:
    """What the peak is worth in pairs that did not choose it, and how often resamples have it there."""
    if np.isnan(held_out):
        return ""
    there = "within one layer of it" if kind_of(means.cells).layered else "it again"
    return (
        f" In pairs that did not choose it: {number(held_out)} {means.unit}; {there} in {percent(near)} of resamples."
    )


def _usual(means: MeanMap, record: Mapping[str, Any]) -> Iterator[str]:
    """The usual picture of factual recall, held against the averaged map, with intervals; where roles are known."""
    cells = means.cells
    component = next((name for name in ("resid_post", "resid_pre") if name in cells.component), None)
    named = [str(position) for position in columns_of(cells)]
    if component is None or "subject_last" not in named:
        return
    stream = cells.sel(component=component)
    # Where the total effect is negative, what carries it is negative too.
    effect = (stream[means.shown] * np.sign(float(means.total.estimate))).where(stream.status == "ok")
    seen, traced = [], cells.layer.values.tolist()
    for part, layers in thirds(traced, record).items():
        mean = effect.sel(layer=layers)
        if not (mean > 0).any():
            continue
        role = named[int(mean.mean("layer").fillna(-np.inf).argmax("position"))]
        layer = int(mean.sel(position=role).fillna(-np.inf).idxmax("layer"))
        cell = stream.sel(layer=layer, position=role)
        shown = means.shown
        size = number(float(cell[shown])) + between(float(cell[f"{shown}_low"]), float(cell[f"{shown}_high"]))
        seen.append(seen_beside_usual(part, role, f"; up to {size} in layer {layer}"))
    if seen:
        yield usual_sentence(seen, traced, record)


def _repeated(record: Mapping[str, Any]) -> Iterator[str]:
    """That pairs are there more than once, as in files that were put together, and are taken for as many."""
    first: dict[str, Mapping[str, Any]] = {}
    again = []
    for row in record.get("pairs", ()):
        asked = {name: value for name, value in row.items() if name not in BESIDE_THE_PROMPTS}
        other = first.setdefault(json.dumps(asked, sort_keys=True), row)
        if other is not row and (row.get("cluster") is None or row["cluster"] != other.get("cluster")):
            again.append(f"{row.get('id')} as {other.get('id')}")
    if again:
        yield (
            f"Some pairs ask the same as others ({len(again)}, such as {again[0]}), and each counts as evidence of its "
            "own: intervals and p claim too much. Name each once, or give those that are the same one cluster."
        )


def _warnings(means: MeanMap) -> Iterator[str]:
    """The caveats that apply to this result."""
    if means.clusters < FEWEST:
        yield f"Fewer than {FEWEST} clusters: means without intervals, and nothing can be said of their stability."
    if means.smallest_p > SIGNIFICANT:
        yield (
            f"With {means.clusters} clusters the smallest p that can be is {means.smallest_p:.2g}: no test can "
            f"reach {SIGNIFICANT}."
        )
    low, high = float(means.total.low), float(means.total.high)
    if low <= 0 <= high:
        yield "The total effect's interval contains 0: there is nothing that fractions could be fractions of."


def _of_peaks(means: MeanMap) -> Iterator[str]:
    """The caveats that apply to the peaks of a map."""
    for component, (_, stable) in means.peaks.items():
        cell = means.peak(component)
        if cell is None:
            continue
        if stable.within_one_layer < STABLE:
            yield f"The peak of {component} is unstable: other pairs would put it elsewhere."
        if "interaction" in cell:
            yield from _disagreement(means, component, cell)


def _disagreement(means: MeanMap, component: str, cell: xr.Dataset) -> Iterator[str]:
    """Where restoration and disruption at the peak cannot be the same number."""
    low, high = float(cell.interaction_low), float(cell.interaction_high)
    # The interval's end nearer to 0: the interaction is at least so large.
    least = min(abs(low), abs(high)) if low * high > 0 else 0.0
    if least > OF_INTEREST * abs(float(means.total.estimate)):
        # Of negative effects the larger one is the smaller number.
        negative = max(float(cell.restoration), float(cell.disruption)) <= 0
        kind = "AND-like: the site needs partners" if (low > 0) != negative else "OR-like: others can do without it"
        yield (
            f"Restoration and disruption disagree at the peak of {component}: interaction "
            f"{number(float(cell.interaction))}{between(low, high)} {means.unit} ({kind})."
        )
