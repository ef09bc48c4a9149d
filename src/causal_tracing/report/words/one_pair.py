"""Numbers to sentences that claim no more than was measured.

1. The finding: where the residual stream carries the difference, layer by layer, and its strongest site.
2. The strongest sites of each component, with what restoration and disruption mean together (`pattern`).
3. How the usual picture of factual recall compares, where a subject is known.
4. Warnings about this result, and what no result of this kind shows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.prompts.answers import on_one_line, texts_of
from causal_tracing.report.labels import addressed, full_name, names_of, number, percent, place, with_share
from causal_tracing.report.words.attention import attention_sentences
from causal_tracing.report.words.circuits import circuit_sentences
from causal_tracing.report.words.lens import lens_sentences
from causal_tracing.report.words.method import (
    Side,
    beside,
    control_sentences,
    convention_sentences,
    device_sentences,
    headline,
    how_to_read,
    noise_sentences,
    not_shown,
    pairing_warnings,
    seen_beside_usual,
    sides,
    thirds,
    usual_sentence,
    write_sentences,
)
from causal_tracing.report.words.paths import path_sentences
from causal_tracing.report.words.senders import sender_sentences
from causal_tracing.report.words.sets import joint_sentences
from causal_tracing.results.columns import all_tokens, columns_of
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.select import NEARLY_ZERO, SiteRow, select, shown_first, site_row, strongest
from causal_tracing.results.site_kinds import KINDS, kind_of

SITES_EACH = 3  # a component
PAIRS_EACH = 10  # that an overview shows alone
LARGE_SPOT_DIFFERENCE = 1e-3  # in the metric's unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One pair's result in words: the finding first, then the sites, then what it does not show."""

    pair: str
    sides: tuple[Side, Side]
    total: str
    run: str
    sentences: tuple[str, ...]
    sites: tuple[SiteRow, ...]
    warnings: tuple[str, ...]
    caveats: tuple[str, ...]
    how_to_read: tuple[str, ...]

    @property
    def headline(self) -> str:
        """What was asked, on one line."""
        return headline(self.sides)


def read(measurements: Measurements, *, pair: str | None = None, metric: str | None = None) -> Reading:
    """What one pair's numbers say (default: the first pair, the first metric). Raises InvalidOption."""
    found, first = select(measurements, pair=pair, metric=metric), measurements.kinds[0]
    data = measurements.pairs.sel(pair=found.pair.item())
    parts = [
        select(measurements, pair=pair, metric=metric, of=of) for of in measurements.kinds_by(metric) if of != first
    ]
    rows = tuple(
        row
        for each in (found, *parts)
        for name in each.component.values
        for row in ([] if kind_of(each).large else strongest(each, SITES_EACH, component=name))
    )
    return Reading(
        pair=str(found.pair.item()),
        sides=sides(measurements, data),
        total=_total(found),
        run=_run(measurements),
        sentences=(
            *(_carried(found) if found.attrs["write"] == "donor" else ()),
            *_best(found),
            *_together(found),
            *circuit_sentences(measurements, str(found.pair.item()), metric),
            *joint_sentences(measurements, str(found.pair.item())),
            *attention_sentences(measurements, str(found.pair.item())),
            *noise_sentences(measurements, found),
            *write_sentences(measurements),
            *convention_sentences(measurements),
            *(_usual(found, measurements.provenance) if found.attrs["write"] == "donor" else ()),
            *_of_parts(parts),
            *(said for each in (found, *parts) for said in (*path_sentences(each), *sender_sentences(each))),
            *lens_sentences(measurements, str(found.pair.item())),
        ),
        sites=rows,
        warnings=(*device_sentences(measurements.provenance), *_warnings(measurements, data, found)),
        caveats=not_shown(measurements),
        how_to_read=how_to_read(measurements),
    )


def in_words(reading: Reading, *, width: int | None = None) -> str:
    """A reading as plain text: the finding first, then the strongest sites, then what it does not show.

    Where the table of sites is wider than `width`, each has two lines.
    """
    lines = [reading.headline, f"{reading.total}     {reading.run}", "", *reading.sentences]
    lines += [f"Warning: {warning}" for warning in reading.warnings]
    if reading.sites:
        lines += ["", *_table(reading.sites, width)]
    lines += ["", "What this does not show", *(f"- {caveat}" for caveat in reading.caveats)]
    return "\n".join(lines)


def _table(sites: Sequence[SiteRow], width: int | None) -> list[str]:
    """The sites with their effects, in one line each; in two where these are wider than `width`."""
    names = [full_name(row) for row in sites]
    effects = [
        (with_share(row.restoration, row.restored_fraction), with_share(row.disruption, row.lost_fraction))
        for row in sites
    ]
    interactions = [with_share(row.interaction, None) for row in sites]
    wide = max([42, *map(len, names)]) + 2
    lines = [f"{'strongest sites':{wide}}{'restoration':>16}{'disruption':>16}{'interaction':>14}"]
    for name, (restored, lost), interaction, row in zip(names, effects, interactions, sites, strict=True):
        lines.append(f"{name:{wide}}{restored:>16}{lost:>16}{interaction:>14}  {row.pattern}".rstrip())
    if width is None or max(map(len, lines)) <= width:
        return lines
    lines = [f"{'strongest sites':16}{'restoration':>15}{'disruption':>15}{'interaction':>13}"]
    for name, (restored, lost), interaction, row in zip(names, effects, interactions, sites, strict=True):
        lines += [f"{name}: {row.pattern}" if row.pattern else name, f"{restored:>31}{lost:>15}{interaction:>13}"]
    return lines


def overview(measurements: Measurements, *, metric: str | None = None, averaged: str) -> str:
    """Several pairs: what they say together, then each alone by its total effect and strongest site."""
    pairs = [str(pair) for pair in measurements.pairs.pair.values]
    lines = [f"{len(pairs)} pairs     {_run(measurements)}", "", averaged, "", "Each pair alone"]
    for pair in pairs[:PAIRS_EACH]:
        found = select(measurements, pair=pair, metric=metric)
        rows = [] if kind_of(found).large else strongest(found, 1)
        lines.append(f"{pair}: {_total(found)}")
        lines += [f"    {_site_sentence(row, found.unit.item())}" for row in rows]
        warnings = _warnings(measurements, measurements.pairs.sel(pair=pair), found)
        lines += [f"    Warning: {warning}" for warning in warnings]
        lines += [f"    {sentence}" for sentence in noise_sentences(measurements, found)]
    devices = (sentence for sentence in device_sentences(measurements.provenance) if sentence not in averaged)
    said = (*write_sentences(measurements), *convention_sentences(measurements), *devices)
    lines += [f"\n{sentence}" for sentence in said]
    if len(pairs) > PAIRS_EACH:
        lines.append(f"and {len(pairs) - PAIRS_EACH} more. Choose one with pair=.")
    return "\n".join(lines)


def _total(found: xr.Dataset) -> str:
    clean, corrupt, total = (found[name].item() for name in ("clean", "corrupt", "total_effect"))
    if np.isnan(total) and not found.reason.item():
        return f"clean {number(clean)} {found.unit.item()} (there is no corrupt prompt, and so no total effect)"
    if np.isnan(total):
        return f"total effect undefined: {found.reason.item()}"
    return f"total effect {number(total)} {found.unit.item()} (clean {number(clean)}, corrupt {number(corrupt)})"


def _run(measurements: Measurements) -> str:
    record = measurements.provenance
    worlds = record["worlds"] - record["worlds_skipped"]
    words = f"{worlds:,} worlds in {record['seconds']:.0f} s"
    return " · ".join([record["model"], record["dtype"], record["engine"], words])


def _carried(found: xr.Dataset) -> Iterator[str]:
    """Which position has the largest effect in the residual stream, as stretches of layers with their range."""
    component = next((name for name in ("resid_post", "resid_pre", "resid_mid") if name in found.component), None)
    if component is None or len(found.position) < 2 or len(found.layer) < 2:
        return
    stream = found.sel(component=component)
    effect = _towards(found, stream).where(stream.status.isin(["ok", "cut"]))
    sizes = effect.fillna(-np.inf).transpose("layer", "position").values
    at = zip(found.layer.values.tolist(), sizes, strict=True)
    # Where nothing goes the way of the total effect, no token carries it.
    peaks = [(layer, columns_of(found)[int(row.argmax())]) for layer, row in at if row.max() > 0]
    parts = []
    for position, group in groupby(peaks, key=lambda peak: peak[1]):
        stretch = [layer for layer, _ in group]
        span = f"layers {stretch[0]} to {stretch[-1]}" if len(stretch) > 1 else f"layer {stretch[0]}"
        where = place(site_row(found, component, stretch[0], position))
        here = stream.sel(position=position, layer=stretch)
        parts.append(f"on {where} in {span}{_range(here, found.unit.item())}")
    if parts:
        listed = ", ".join(parts[:-1]) + f", and {parts[-1]}" if len(parts) > 1 else parts[0]
        yield f"In the residual stream ({component}), the difference rides most strongly {listed}."


def _towards(found: xr.Dataset, stream: xr.Dataset) -> xr.DataArray:
    """The effects as they go the way of the total effect, which is negative where the clean run does worse."""
    return stream[shown_first(found)] * np.sign(found.total_effect.item())


def _peak(effect: xr.DataArray) -> int | str:
    """The position with the largest effect."""
    return effect.position.values.tolist()[int(effect.fillna(-np.inf).argmax("position"))]


def _range(here: xr.Dataset, unit: str) -> str:
    """What one layer at a time brings back (or loses) in a stretch of layers, cuts left out."""
    values = here[shown_first(here)].where(here.status == "ok")
    if not values.notnull().any():
        return ""
    low, high = number(values.min().item()), number(values.max().item())
    what = (
        "a window of layers" if "window_first" in here and (here.window_last > here.window_first).any() else "a layer"
    )
    restores = shown_first(here) == "restoration"
    verb = f"restoring {what} there brings back" if restores else f"disrupting {what} there loses"
    return f" ({verb} {low if low == high else f'{low} to {high}'} {unit})"


def _best(found: xr.Dataset) -> Iterator[str]:
    """The strongest site of each component, with its numbers; circuits have sentences of their own."""
    if (found.status == "structural_zero").all():
        yield "No site can have an effect here: what would be patched is the same in both runs, or nothing reads it."
    for component in [] if kind_of(found).large else found.component.values:
        rows = strongest(found, 1, component=component)
        # Whole layers have a sentence of their own, which says what they can mean.
        if rows and rows[0].position != "together":
            moved = any((found[name].sel(component=component).fillna(0) != 0).any() for name in _measured(found))
            said = _site_sentence(rows[0], found.unit.item())
            yield said if moved else f"No site of {component} has any effect here."


def _measured(found: xr.Dataset) -> list[str]:
    return [name for name in ("restoration", "disruption") if name in found]


def _site_sentence(row: SiteRow, unit: str) -> str:
    parts, kind = [], KINDS[row.kind]
    for verb, effect, fraction in (
        (kind.restores, row.restoration, row.restored_fraction),
        (kind.loses, row.disruption, row.lost_fraction),
    ):
        if effect is not None:
            share = f" ({percent(fraction)} of the total effect)" if fraction is not None else ""
            parts.append(f"{verb} {number(effect)} {unit}{share}")
    meaning = f": {row.pattern}" if row.pattern else ""
    said = f"Strongest {kind.called.format(**names_of(row))}: {addressed(row)}; {'; '.join(parts)}{meaning}."
    return said + beside(row, unit)


def _together(found: xr.Dataset) -> Iterator[str]:
    """MLP against attention where whole layers were patched; whole layers of the stream are cuts, and said to be."""
    if "together" not in columns_of(found):
        return
    column = found.sel(position="together")
    cuts = [str(name) for name in found.component.values if (column.status.sel(component=name) == "cut").all()]
    if cuts:
        yield (
            f"With all tokens patched at once, every layer of {' and '.join(cuts)} is a complete cut: it gives the "
            "other run's answer by construction, so these bars say nothing about the layers."
        )
    for component in (name for name in ("mlp_out", "attn_out") if name in found.component):
        rows = [row for row in strongest(found, 1, component=component) if row.position == "together"]
        for row in rows:
            yield _site_sentence(row, found.unit.item())


def _of_parts(parts: Sequence[xr.Dataset]) -> Iterator[str]:
    """The strongest site of each other kind's components."""
    for found in parts:
        if not (kind_of(found).layered or kind_of(found).by_query):  # what is patched together has its own sentences
            continue
        for component in found.component.values:
            for row in strongest(found, 1, component=component):
                yield _site_sentence(row, found.unit.item()) + _readers(found, row)


def _readers(found: xr.Dataset, row: SiteRow) -> str:
    """Which query heads read a head of keys or values."""
    at = {"component": row.component, kind_of(found).part: row.part}
    readers = found.readers.sel(at).item() if "readers" in found.coords else ""
    return f" (It is read by query heads {readers}.)" if readers else ""


def _usual(found: xr.Dataset, record: Mapping[str, Any]) -> Iterator[str]:
    """The usual picture of factual recall, held against the map; only where every token has its own column."""
    roles = [str(role) for role in found.clean_role.values if role]
    component = next((name for name in ("resid_post", "resid_pre") if name in found.component), None)
    if "subject_last" not in roles or component is None or not all_tokens(found):
        return
    stream = found.sel(component=component)
    effect = _towards(found, stream).where(stream.status == "ok")
    seen, traced = [], found.layer.values.tolist()
    for part, layers in thirds(traced, record).items():
        mean = effect.sel(layer=layers).mean("layer")
        if not (mean > 0).any():
            continue
        role = str(found.clean_role.values[int(_peak(mean))])
        seen.append(seen_beside_usual(part, role))
    if seen:
        yield f"{usual_sentence(seen, traced, record)} One pair, so without an interval."


def _first_choice_is_wrong(data: xr.Dataset) -> bool:
    """Whether the clean run's first choice is certainly another token than the answer's first.

    A text need not be its token's: decoding may drop a space, and an answer may be several tokens. So where the tokens
    were not kept, only texts that differ in their letters, of an answer of one token, are known to be of two tokens.
    """
    if "answer_id" in data and not np.isnan(data.answer_id.item()):
        return bool(data.clean_top_id.values[0] != data.answer_id.item())
    first, answer = data.clean_top.values[0], data.answer.item()
    return bool(data.answer_length.item() == 1 and first.strip() != answer.strip())


def _warnings(measurements: Measurements, data: xr.Dataset, found: xr.Dataset) -> Iterator[str]:
    """What is to be known of the pair, of how exact its numbers are, and of its cells."""
    yield from _of_the_pair(measurements, data)
    if found.fraction_reason.item():
        yield f"Fractions are undefined: {found.fraction_reason.item()}."
    yield from _of_exactness(measurements, data, found)
    yield from _of_cells(found)


def _of_the_pair(measurements: Measurements, data: xr.Dataset) -> Iterator[str]:
    if _first_choice_is_wrong(data):
        first, answer = data.clean_top.values[0], data.answer.item()
        what = (
            f"the answer {answer!r}"
            if isinstance(texts_of(answer), str)
            else f"one of the answers {on_one_line(answer)}"
        )
        yield f"The clean run's first choice is {first!r}, not {what}."
    yield from control_sentences(measurements.provenance)
    yield from pairing_warnings(data)
    if "notes" in data:  # 0.1.0 did not keep them
        yield from (f"{note[0].upper()}{note[1:]}" for note in data.notes.item().splitlines())


def _of_exactness(measurements: Measurements, data: xr.Dataset, found: xr.Dataset) -> Iterator[str]:
    checks = measurements.provenance["spot_checks"]
    difference = checks["largest_difference"]
    if "reason" in checks:
        yield f"What was run again on whole forwards cannot be compared: {checks['reason']}."
    if difference is not None and difference > LARGE_SPOT_DIFFERENCE:
        yield (
            f"Cells that were run again on whole forwards differ by up to {difference:.2g}: do not trust digits beyond "
            "that."
        )
    if measurements.provenance["dtype"] in ("bfloat16", "float16"):
        yield (
            f"The model ran in {measurements.provenance['dtype']}: repeats of the unedited runs differ by "
            f"{data.spread.sel(metric=found.metric.item()).item():.2g} {found.unit.item()} (standard deviation)."
        )


def _of_cells(found: xr.Dataset) -> Iterator[str]:
    failed = int((found.status == "failed").sum())
    if failed:
        yield f"{failed} cells gave numbers that are not finite; they are left out."
    if "damage_like" in found:
        damaged = int((found.damage_like & (found.status == "ok") & (found.restored_fraction > NEARLY_ZERO)).sum())
        if damaged:
            yield (
                f"{damaged} cells look damaged rather than restored: the answer gains on the foil, but does not become "
                "likelier, and the prediction becomes less certain."
            )
