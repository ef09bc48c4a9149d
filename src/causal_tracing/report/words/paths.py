"""Paths to the logits, in words: what reaches them through the stream alone, and where a map hides it."""

from collections.abc import Iterator

import numpy as np
import xarray as xr

from causal_tracing.report.labels import number, place
from causal_tracing.results.arms import DIRECT, DIRECT_ARMS, DIRECTIONS, Arm
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.select import SiteRow, shown_first, strongest
from causal_tracing.results.site_kinds import KINDS, kind_of

LEAST = 0.05  # of the total effect: less is not worth a sentence of its own
_THROUGH = {"mlps_frozen": "through the residual stream alone", "mlps_live": "through the stream and later MLPs"}
HELD = {
    "mlps_frozen": "all later attention and MLPs are held as in the unedited run: what is left goes through the "
    "residual stream alone",
    "mlps_live": "all later attention is held as in the unedited run, and later MLPs are live: what is left goes "
    "through the stream and those MLPs",
}
NORMS = {
    "live": "The final norm is live.",
    "frozen": "The final norm is frozen: it divides by what it divides by in the unedited run.",
}
READ = (
    "A direct path ({names}): a site is patched, and at the token that is read {held}. So only what is patched at that "
    "token counts, and keys and values that it reads. {norm}"
)
NOT_SHOWN = (
    "Direct paths and the rest of an effect do not add up site by site: what is held behind a site would have answered "
    "to it, and may answer otherwise where others are patched too."
)


def through(direct: str, norm: str) -> str:
    """Which way a direct path goes, with its final norm where that is frozen."""
    return _THROUGH[direct] + (", the final norm frozen," if norm == "frozen" else "")


def measured_paths(measurements: Measurements) -> list[str]:
    """Which direct paths were measured, in any map."""
    measured = {name for each in measurements.maps.values() for name in each.variables}
    return [direct for direct in DIRECT if {arm.raw for arm in _arms(direct)} & measured]


def paths_read(measurements: Measurements) -> Iterator[str]:
    """What the numbers of direct paths are."""
    measured = {name for each in measurements.maps.values() for name in each.variables}
    for direct in measured_paths(measurements):
        names = ", ".join(arm.name for arm in _arms(direct) if arm.raw in measured)
        yield READ.format(names=names, held=HELD[direct], norm=NORMS[measurements.direct_norm])


def paths_not_shown(measurements: Measurements) -> tuple[str, ...]:
    """What direct paths do not show, where some were measured."""
    return (NOT_SHOWN,) if measured_paths(measurements) else ()


def path_sentences(found: xr.Dataset) -> Iterator[str]:
    """For each component of one pair's map its strongest direct path, and the strongest that the map hides.

    Hidden is one that is worth a sentence where the whole effect is less than half of it, or goes the other way.
    """
    if not kind_of(found).layered:  # what is patched together has no direct paths
        return
    shown = shown_first(found)
    for direct in DIRECT:
        name = DIRECT_ARMS[direct, shown].name
        for component in found.component.values if name in found else ():
            rows = strongest(found, 1, by=name, component=component)
            if rows and getattr(rows[0], name):
                yield f"{_site('Strongest direct path', rows[0])}; {_both(rows[0], direct, shown, found)}."
            hidden = strongest(found.assign(hidden=_hidden(found, name, shown)), 1, by="hidden", component=component)
            if hidden:
                yield f"{_site('Hidden in the map', hidden[0])}; {_rest(hidden[0], direct, shown, found)}."
        if name in found:
            return  # of both, that through the stream alone is told: the other stands in the tables


def path_beside(row: SiteRow, unit: str) -> Iterator[str]:
    """What belongs to a site's effect: how much of it goes the direct way."""
    for direct in DIRECT:
        for arm in _arms(direct):
            value = getattr(row, arm.name)
            if value is not None and (arm.restores or row.restoration is None):
                yield f"T{_THROUGH[direct][1:]} it {verb_of(_direction(arm.restores))} {number(value)} {unit}"


def _arms(direct: str) -> tuple[Arm, ...]:
    return tuple(DIRECT_ARMS[direct, name] for name in DIRECTIONS)


def _direction(restores: bool) -> str:
    return "restoration" if restores else "disruption"


def verb_of(shown: str) -> str:
    """What an effect in this direction does."""
    return "brings back" if shown == "restoration" else "takes away"


def _site(what: str, row: SiteRow) -> str:
    kind = KINDS[row.kind]
    names = {"component": row.component, "layer": row.layer, "part": row.part}
    return f"{what} of {kind.called.format(**names)}: {kind.address.format(**names)} at {place(row)}"


def _both(row: SiteRow, direct: str, shown: str, found: xr.Dataset) -> str:
    """The direct effect, and the whole one beside it."""
    alone, whole = (getattr(row, name) for name in (DIRECT_ARMS[direct, shown].name, shown))
    way = through(direct, found.attrs["direct_norm"])
    return f"{way} it {verb_of(shown)} {number(alone)} {found.unit.item()}, in all {number(whole)}"


def _rest(row: SiteRow, direct: str, shown: str, found: xr.Dataset) -> str:
    """The same, with what the rest of the model makes of it."""
    alone, whole = (getattr(row, name) for name in (DIRECT_ARMS[direct, shown].name, shown))
    later = ["later attention", *(["later MLPs"] if direct == "mlps_frozen" else [])]
    later += ["the final norm"] if found.attrs["direct_norm"] == "frozen" else []
    return (
        f"{_both(row, direct, shown, found)}: with {' and '.join(later)} live, {number(alone - whole)} of it is undone"
    )


def _hidden(found: xr.Dataset, name: str, shown: str) -> xr.DataArray:
    """The direct effects of such cells, NaN elsewhere."""
    alone, whole = found[name], found[shown]
    hidden = (abs(alone) >= LEAST * abs(found.total_effect)) & (whole * np.sign(alone) < abs(alone) / 2)
    return alone.where(hidden)
