"""Numbers to sentences that claim no more than was measured.

1. The finding: where the residual stream carries the difference, layer by layer, and its strongest site.
2. The strongest sites of each component, with what restoration and disruption mean together (`pattern`).
3. How the usual picture of factual recall compares, where a subject is known.
4. Warnings about this result, and what no result of this kind shows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.effects import effects
from causal_tracing.errors import InvalidOption, nearest
from causal_tracing.results import Measurements

HIGH, NEARLY_ZERO = 0.5, 0.1
SITES_EACH = 3  # a component
LARGE_SPOT_DIFFERENCE = 1e-3

UNITS = ("head", "neuron")

HOW_TO_READ = (
    "Restoration: the clean activation is put into the corrupt run at one site; shown is how much of the behaviour "
    "comes back. Disruption: the corrupt activation is put into the clean run; shown is how much is lost. Positive "
    "always means: supports the clean behaviour.",
    "Interaction = disruption - restoration. Above 0: the site needs partners (AND-like). Below 0: others can do "
    "without it (OR-like).",
    "A cut is a site through which the whole difference must pass: its effect is the total effect by construction, "
    "so it is marked and never ranked. A structural zero is a site that cannot matter: nothing differs there yet, or "
    "nothing reads it any more.",
)
NOT_SHOWN = (
    "An effect says that this site carries the difference between these two prompts. It does not say that the site "
    "stores a fact, and where tracing peaks does not predict where editing the weights works.",
    "The corrupt prompt decides what is measured: what both prompts share is invisible.",
    "A site with no effect may be backed up by others, and effects of different sites do not add up to the total.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRow:
    """One site's numbers, in the metric's unit and as fractions of the total effect (None where undefined)."""

    component: str
    layer: int
    unit: int | None
    position: int | str
    clean_token: str
    corrupt_token: str
    role: str
    restoration: float | None
    disruption: float | None
    interaction: float | None
    restored_fraction: float | None
    lost_fraction: float | None
    pattern: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One pair's result in words: the finding first, then the sites, then what it does not show."""

    pair: str
    headline: str
    total: str
    run: str
    sentences: tuple[str, ...]
    sites: tuple[SiteRow, ...]
    warnings: tuple[str, ...]
    caveats: tuple[str, ...]
    how_to_read: tuple[str, ...] = HOW_TO_READ


def read(measurements: Measurements, *, pair: str | None = None, metric: str | None = None) -> Reading:
    """What one pair's numbers say (default: the first pair, the first metric). Raises InvalidOption."""
    found = select(measurements, pair=pair, metric=metric)
    data = measurements.data.sel(pair=found.pair.item())
    parts = [select(measurements, pair=pair, metric=metric, of=of) for of in measurements.tables[1:]]
    rows = tuple(
        row
        for each in (found, *parts)
        for name in each.component.values
        for row in strongest(each, SITES_EACH, component=name)
    )
    return Reading(
        pair=str(found.pair.item()),
        headline=_headline(measurements, data),
        total=_total(found),
        run=_run(measurements),
        sentences=(
            *_noise(measurements, found),
            *_carried(found),
            *_best(found),
            *_together(found),
            *_usual(found),
            *_units(parts),
        ),
        sites=rows,
        warnings=tuple(_warnings(measurements, data, found)),
        caveats=(*_one_prompt(measurements), *NOT_SHOWN),
    )


def in_words(reading: Reading) -> str:
    """A reading as plain text: the finding first, then the strongest sites, then what it does not show."""
    lines = [reading.headline, f"{reading.total}     {reading.run}", "", *reading.sentences]
    lines += [f"Warning: {warning}" for warning in reading.warnings]
    lines += ["", f"{'strongest sites':44}{'restoration':>16}{'disruption':>16}{'interaction':>14}"]
    for row in reading.sites:
        cells = [with_share(row.restoration, row.restored_fraction), with_share(row.disruption, row.lost_fraction)]
        site = f"{site_name(row)}, {place(row)}"
        cells.append(with_share(row.interaction, None))
        lines.append(f"{site:44}{cells[0]:>16}{cells[1]:>16}{cells[2]:>14}  {row.pattern}".rstrip())
    lines += ["", "What this does not show", *(f"- {caveat}" for caveat in reading.caveats)]
    return "\n".join(lines)


def overview(measurements: Measurements, *, metric: str | None = None) -> str:
    """Several pairs, a line each: total effect and strongest site. Ask for one pair to read more."""
    pairs = [str(pair) for pair in measurements.data.pair.values]
    lines = [f"{len(pairs)} pairs     {_run(measurements)}", ""]
    for pair in pairs:
        found = select(measurements, pair=pair, metric=metric)
        rows = strongest(found, 1)
        lines.append(f"{pair}: {_total(found)}")
        lines += [f"    {_site_sentence(row, found.unit.item())}" for row in rows]
        warnings = _warnings(measurements, measurements.data.sel(pair=pair), found)
        lines += [f"    Warning: {warning}" for warning in warnings]
    return "\n".join([*lines, "", "Each pair stands for itself: nothing here is averaged. Choose one with pair=."])


def select(
    measurements: Measurements, *, pair: str | None = None, metric: str | None = None, of: str = "blocks"
) -> xr.Dataset:
    """The effects of one pair by one metric; `of` blocks, heads or neurons.

    Raises InvalidOption for a name that is not in the trace.
    """
    data, chosen = measurements.data, {}
    for name, asked in (("pair", pair), ("metric", metric)):
        valid = [str(value) for value in data[name].values]
        chosen[name] = valid[0] if asked is None else known(name, asked, valid)
    return effects(measurements, of).sel(chosen)


def known(what: str, asked: Any, valid: Sequence[Any]) -> Any:
    """The name that was asked for, if the trace has it. Raises InvalidOption with the nearest that it has."""
    if asked not in valid:
        raise InvalidOption(f"There is no {what} {asked!r} in this trace. {nearest(str(asked), map(str, valid))}")
    return asked


def strongest(found: xr.Dataset, count: int, *, by: str | None = None, component: str | None = None) -> list[SiteRow]:
    """The sites with the largest effects (by size) of one pair and metric; cuts and structural zeros are left out."""
    by = by or _shown(found)
    effect = found[by].where(found.status == "ok")
    if component is not None:
        effect = effect.sel(component=[component])
    flat = effect.stack(site=[name for name in ("component", "layer", "position", *UNITS) if name in effect.dims])
    flat = flat[np.argsort(-abs(flat.values), kind="stable")]
    flat = flat[flat.notnull().values][:count]  # before the rows are made: there may be tens of thousands
    return [_row(found, *site) for site in flat.site.values]


def pattern(restored: float | None, lost: float | None) -> str:
    """What a restored and a lost fraction mean together (AND, OR, SUM, XOR); "" where only the numbers speak."""
    if restored is None or lost is None:
        return ""
    high, zero = (restored >= HIGH, lost >= HIGH), (abs(restored) < NEARLY_ZERO, abs(lost) < NEARLY_ZERO)
    if all(high):
        return "a bottleneck for this contrast"
    if all(zero):
        return "not on the path for this contrast, or masked by self-repair"
    if high[0] and zero[1]:
        return "sufficient here, but backed up elsewhere (OR-like)"
    if zero[0] and high[1]:
        return "necessary, but needs partners (AND-like)"
    if restored * lost < 0 and not any(zero):
        return "matters, but its sign depends on the rest: no single number describes it (XOR-like)"
    if restored < 0 and lost < 0 and not any(zero):
        return "opposes the clean answer"
    between = all(NEARLY_ZERO <= value < HIGH for value in (restored, lost))
    if between and abs(restored - lost) < NEARLY_ZERO / 2:
        return "adds its share, independently of the rest (SUM-like)"
    return ""


def number(value: float) -> str:
    """A number for people: three significant digits or two decimals, with a real minus sign."""
    text = f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}"
    return text.replace("-", "−")


def percent(fraction: float) -> str:
    """A fraction in per cent, with a real minus sign."""
    return f"{round(100 * fraction)} %".replace("-", "−")


def place(row: SiteRow) -> str:
    """A site for people: `token 2 (osse | iffel)`."""
    if isinstance(row.position, str):
        return "all tokens together" if row.position == "together" else f"the {row.position.replace('_', ' ')} token"
    clean, corrupt = (
        row.clean_token.strip() or repr(row.clean_token),
        row.corrupt_token.strip() or repr(row.corrupt_token),
    )
    shown = clean if row.clean_token == row.corrupt_token else f"{clean} | {corrupt}"
    return f"the last token ({shown})" if row.role == "last" else f"token {row.position} ({shown})"


def site_name(row: SiteRow) -> str:
    """A site's component, layer and unit for people: `z layer 3 head 1`."""
    if row.unit is None:
        return f"{row.component} layer {row.layer}"
    if row.component == "neurons":
        return f"neuron {row.unit} of layer {row.layer}"
    return f"{row.component} layer {row.layer} head {row.unit}"


def with_share(effect: float | None, fraction: float | None) -> str:
    """An effect with its share of the total effect, for people; a dash where it was not measured."""
    if effect is None:
        return "–"
    return number(effect) + (f" ({percent(fraction)})" if fraction is not None else "")


def _unit_dim(found: xr.Dataset) -> str:
    return next(name for name in UNITS if name in found.dims)


def _shown(found: xr.Dataset) -> str:
    return "restoration" if "restoration" in found else "disruption"


def _row(found: xr.Dataset, component: str, layer: int, position: int | str, unit: int | None = None) -> SiteRow:
    cell = found.sel(component=component, layer=layer, position=position)
    cell = cell if unit is None else cell.sel({_unit_dim(found): unit})

    def value(name: str) -> float | None:
        return float(cell[name]) if name in cell and np.isfinite(cell[name].item()) else None

    position = int(position) if str(position).isdigit() else str(position)
    tokens = {"clean_token": "", "corrupt_token": "", "clean_role": str(position)}
    if isinstance(position, int):
        tokens = {name: str(found[name].values[position]) for name in tokens}
    restored, lost = value("restored_fraction"), value("lost_fraction")
    return SiteRow(
        component=str(component),
        layer=int(layer),
        unit=None if unit is None else int(unit),
        position=position,
        clean_token=tokens["clean_token"],
        corrupt_token=tokens["corrupt_token"],
        role=tokens["clean_role"],
        restoration=value("restoration"),
        disruption=value("disruption"),
        interaction=value("interaction"),
        restored_fraction=restored,
        lost_fraction=lost,
        pattern=pattern(restored, lost),
    )


def _headline(measurements: Measurements, data: xr.Dataset) -> str:
    foil = data.foil.item()
    if measurements.provenance.get("noise"):
        return f"{data.clean_prompt.item()} →{data.answer.item()}   against   the same with noise on its subject"
    corrupt = data.corrupt_prompt.item() + (f" →{foil}" if foil else "")
    return f"{data.clean_prompt.item()} →{data.answer.item()}   against   {corrupt}"


def _total(found: xr.Dataset) -> str:
    clean, corrupt, total = (found[name].item() for name in ("clean", "corrupt", "total_effect"))
    if np.isnan(total):
        return f"total effect undefined: {found.reason.item()}"
    return f"total effect {number(total)} {found.unit.item()} (clean {number(clean)}, corrupt {number(corrupt)})"


def _run(measurements: Measurements) -> str:
    record = measurements.provenance
    worlds = record["worlds"] - record["worlds_skipped"]
    words = f"{worlds:,} worlds in {record['seconds']:.0f} s"
    return " · ".join([record["model"], record["dtype"], record["engine"], words])


def _noise(measurements: Measurements, found: xr.Dataset) -> Iterator[str]:
    """What corrupted the prompt, and how far the draws are apart."""
    noise = measurements.provenance.get("noise")
    if not noise:
        return
    number_of_pair = measurements.data.pair.values.tolist().index(found.pair.item())
    sigma, positions = noise["sigmas"][number_of_pair], noise["positions"][number_of_pair]
    data = measurements.data.sel(pair=found.pair.item(), metric=found.metric.item())
    tokens = ", ".join(repr(str(found.clean_token.values[position])) for position in positions)
    yield (
        f"The corrupt run is the same prompt with Gaussian noise of {number(noise['scale'] * sigma)} "
        f"({number(noise['scale'])} times σ = {number(sigma)}) on the embeddings of {tokens}: means of "
        f"{noise['draws']} draws, the same for every cell. Its {found.metric.item()} varies by "
        f"{number(data.corrupt_deviation.item())} over draws (standard deviation)."
    )
    if noise["rome"]:
        yield (
            "ROME's conventions (its code's, not its paper's): σ over all subjects tokenised alone, one set of draws "
            "for all prompts, windows of 10 layers for attention and MLPs from 5 before to 4 behind, cut at the edges."
        )


def _carried(found: xr.Dataset) -> Iterator[str]:
    """Which position has the largest effect in the residual stream, as stretches of layers with their range."""
    component = next((name for name in ("resid_post", "resid_pre", "resid_mid") if name in found.component), None)
    if component is None or len(found.position) < 2 or len(found.layer) < 2:
        return
    stream = found.sel(component=component)
    effect = stream[_shown(found)].where(stream.status.isin(["ok", "cut"]))
    layers = [layer for layer in found.layer.values.tolist() if effect.sel(layer=layer).max() > 0]
    peaks = [(layer, _peak(effect.sel(layer=layer))) for layer in layers]
    parts = []
    for position, group in groupby(peaks, key=lambda peak: peak[1]):
        stretch = [layer for layer, _ in group]
        span = f"layers {stretch[0]} to {stretch[-1]}" if len(stretch) > 1 else f"layer {stretch[0]}"
        where = place(_row(found, component, stretch[0], position))
        here = stream.sel(position=position, layer=stretch)
        parts.append(f"on {where} in {span}{_range(here, found.unit.item())}")
    if parts:
        listed = ", ".join(parts[:-1]) + f", and {parts[-1]}" if len(parts) > 1 else parts[0]
        yield f"In the residual stream ({component}), the difference rides most strongly {listed}."


def _peak(effect: xr.DataArray) -> int | str:
    """The position with the largest effect."""
    return effect.position.values.tolist()[int(effect.fillna(-np.inf).argmax("position"))]


def _range(here: xr.Dataset, unit: str) -> str:
    """What one layer at a time brings back (or loses) in a stretch of layers, cuts left out."""
    values = here[_shown(here)].where(here.status == "ok")
    if not values.notnull().any():
        return ""
    low, high = number(values.min().item()), number(values.max().item())
    verb = "restoring a layer there brings back" if _shown(here) == "restoration" else "disrupting a layer there loses"
    return f" ({verb} {low if low == high else f'{low} to {high}'} {unit})"


def _best(found: xr.Dataset) -> Iterator[str]:
    """The strongest site of each component, with its numbers."""
    for component in found.component.values:
        rows = strongest(found, 1, component=component)
        if rows and rows[0].position != "together":
            yield _site_sentence(rows[0], found.unit.item()) + _beside(found, rows[0])


def _beside(found: xr.Dataset, row: SiteRow) -> str:
    """What belongs to a cell's number: its window and the sum of single layers, the spread over draws, what severing
    leaves."""
    cell, unit, parts = (
        found.sel(component=row.component, layer=row.layer, position=row.position),
        found.unit.item(),
        [],
    )
    if "window_first" in cell and cell.window_last > cell.window_first:
        parts.append(f"It is layers {cell.window_first.item()} to {cell.window_last.item()} patched together")
        if f"{_shown(found)}_sum" in cell and np.isfinite(cell[f"{_shown(found)}_sum"]):
            parts[-1] += f"; one at a time they add up to {number(cell[f'{_shown(found)}_sum'].item())} {unit}"
    if "restoration_deviation" in cell and np.isfinite(cell.restoration_deviation):
        parts.append(f"Over draws it varies by {number(cell.restoration_deviation.item())} (standard deviation)")
    for part, named in (("attn_out", "attention"), ("mlp_out", "the MLPs")):
        if f"severed_{part}" in cell and np.isfinite(cell[f"severed_{part}"]):
            left = number(cell[f"severed_{part}"].item())
            parts.append(f"With {named} behind it frozen at this token, {left} {unit} come back")
    return "".join(f" {part}." for part in parts)


def _site_sentence(row: SiteRow, unit: str) -> str:
    parts = []
    for verb, effect, fraction in (
        ("restoring it brings back", row.restoration, row.restored_fraction),
        ("disrupting it takes away", row.disruption, row.lost_fraction),
    ):
        if effect is not None:
            share = f" ({percent(fraction)} of the total effect)" if fraction is not None else ""
            parts.append(f"{verb} {number(effect)} {unit}{share}")
    meaning = f": {row.pattern}" if row.pattern else ""
    return f"Strongest {_kind(row)}: {_address(row)} at {place(row)}; {'; '.join(parts)}{meaning}."


def _kind(row: SiteRow) -> str:
    if row.unit is None:
        return f"{row.component} site"
    return "neuron" if row.component == "neurons" else f"head by its {row.component}"


def _address(row: SiteRow) -> str:
    if row.unit is None:
        return f"layer {row.layer}"
    return f"{'neuron' if row.component == 'neurons' else 'head'} {row.unit} of layer {row.layer}"


def _together(found: xr.Dataset) -> Iterator[str]:
    """MLP against attention where whole layers were patched; whole layers of the stream are cuts, and said to be."""
    if "together" not in found.position.values:
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


def _units(parts: Sequence[xr.Dataset]) -> Iterator[str]:
    """The strongest head of each component, the strongest neuron, and how few carry how much."""
    for found in parts:
        for component in found.component.values:
            for row in strongest(found, 1, component=component):
                yield _site_sentence(row, found.unit.item()) + _readers(found, row)


def _readers(found: xr.Dataset, row: SiteRow) -> str:
    """Which query heads read a head of keys or values."""
    if row.component not in ("k", "v"):
        return ""
    return f" (It is read by query heads {found.readers.sel(component=row.component, head=row.unit).item()}.)"


def _usual(found: xr.Dataset) -> Iterator[str]:
    """The usual picture of factual recall, held against the map; only where every token has its own column."""
    roles = [str(role) for role in found.clean_role.values if role]
    component = next((name for name in ("resid_post", "resid_pre") if name in found.component), None)
    by_token = all(str(position).isdigit() for position in found.position.values)
    if "subject_last" not in roles or component is None or not by_token or len(found.layer) < 3:
        return
    stream = found.sel(component=component)
    effect = stream[_shown(found)].where(stream.status == "ok")
    seen = []
    usual = (("early", ("subject",)), ("middle", ("subject_last",)), ("late", ("last",)))
    for (part, expected), layers in zip(usual, np.array_split(found.layer.values, 3), strict=True):
        mean = effect.sel(layer=layers).mean("layer")
        if not (mean > 0).any():
            continue
        role = str(found.clean_role.values[int(_peak(mean))])
        fits = any(role == name or role.startswith(f"{name}_") for name in expected)
        seen.append(f"{part} layers: {role.replace('_', ' ')} token ({'as usual' if fits else 'not as usual'})")
    if seen:
        yield (
            "The usual picture of factual recall is early layers at the subject, middle layers at its last token, late "
            f"layers at the last token. Here the strongest tokens are, on average over each third, {'; '.join(seen)}. "
            "One pair, so without an interval."
        )


def _warnings(measurements: Measurements, data: xr.Dataset, found: xr.Dataset) -> Iterator[str]:
    first, answer = data.clean_top.values[0], data.answer.item()
    if first != answer:
        yield f"The clean run's first choice is {first!r}, not the answer {answer!r}."
    if found.fraction_reason.item():
        yield f"Fractions are undefined: {found.fraction_reason.item()}."
    difference = measurements.provenance["spot_checks"]["largest_difference"]
    if difference is not None and difference > LARGE_SPOT_DIFFERENCE:
        yield f"Cells that were run again alone differ by up to {difference:.2g}: do not trust digits beyond that."
    if measurements.provenance["dtype"] in ("bfloat16", "float16"):
        yield (
            f"The model ran in {measurements.provenance['dtype']}: repeats of the unedited runs differ by "
            f"{data.spread.sel(metric=found.metric.item()).item():.2g} {found.unit.item()} (standard deviation)."
        )
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


def _one_prompt(measurements: Measurements) -> Iterator[str]:
    yield "One pair of prompts is an anecdote: nothing here says how other prompts behave, and there is no interval."
