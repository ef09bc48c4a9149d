"""One pair's effects by one metric, its strongest sites, and one site's numbers as a row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.errors import InvalidOption, nearest
from causal_tracing.results.arms import DIRECT_ARMS, DIRECTIONS, MEMBERS, SEVERED, SUMS
from causal_tracing.results.columns import among_others, is_token
from causal_tracing.results.effects import WINDOW, effects
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.site_kinds import kind_of

HIGH, NEARLY_ZERO = 0.5, 0.1
# What is known of a site where windows, noise, severing or direct paths were asked for.
BESIDE = (
    *WINDOW,
    *(arm.name for arm in (*SUMS.values(), *MEMBERS.values())),
    *(f"{name}_deviation" for name in DIRECTIONS),
    *(arm.name for arm in SEVERED.values()),
    *(arm.name for arm in DIRECT_ARMS.values()),
)
# What follows from a direction, of those kinds alone that are patched together or grow from nothing to everything.
BEYOND = (
    *(f"{name}_beyond_{end}" for end in ("sum", "empty") for name in DIRECTIONS),
    "faithfulness",
    "faithfulness_restored",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRow:
    """One site's numbers, in the metric's unit and as fractions of the total effect (None where undefined).

    `position` is its column, whatever its kind has in the place of a position; `layer` is None where it is of no one
    layer, `query` where not one of several tokens attends. Those with a default behind these belong to windows, sets,
    noise and severing (`BESIDE`): None where not asked for.
    """

    kind: str
    component: str
    layer: int | None
    part: int | str | None
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
    query: int | str | None = None
    query_token: str = ""
    window_first: int | None = None
    window_last: int | None = None
    restoration_sum: float | None = None
    disruption_sum: float | None = None
    restoration_of_members: float | None = None
    disruption_of_members: float | None = None
    restoration_deviation: float | None = None
    disruption_deviation: float | None = None
    severed_attn_out: float | None = None
    severed_mlp_out: float | None = None
    restoration_beyond_sum: float | None = None
    disruption_beyond_sum: float | None = None
    restoration_beyond_empty: float | None = None
    disruption_beyond_empty: float | None = None
    faithfulness: float | None = None
    faithfulness_restored: float | None = None
    direct_path_restoration: float | None = None
    direct_path_disruption: float | None = None
    direct_path_mlps_live_restoration: float | None = None
    direct_path_mlps_live_disruption: float | None = None

    @property
    def window(self) -> str:
        """The layers that are patched together, as `layers 11 to 20`; "" for a single one."""
        if self.window_first is None or self.window_first == self.window_last:
            return ""
        return f"layers {self.window_first} to {self.window_last}"


def pattern(restored: float | None, lost: float | None, *, total: float = 1.0) -> str:
    """What a restored and a lost fraction mean together (AND, OR, SUM, XOR); "" where only the numbers speak.

    Of a negative `total` effect shares below 0 are of effects above it, which support the answer.
    """
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
        return "opposes the clean answer" if total > 0 else "supports the clean answer, against the total effect"
    between = all(NEARLY_ZERO <= value < HIGH for value in (restored, lost))
    if between and abs(restored - lost) < NEARLY_ZERO / 2:
        return "adds its share, independently of the rest (SUM-like)"
    return ""


def measured_directions(found: xr.Dataset) -> tuple[str, ...]:
    """Which of restoration and disruption a map has: kinds of one trace may have others, for keys are hidden in one."""
    return tuple(name for name in DIRECTIONS if name in found)


def shown_first(found: xr.Dataset) -> str:
    """The direction that is shown unless another is asked for; of some kinds what follows from it."""
    return ("restoration" if "restoration" in found else "disruption") + kind_of(found).shown


def site_row(
    found: xr.Dataset,
    component: str,
    layer: int | None,
    position: int | str,
    part: int | str | None = None,
    query: int | str | None = None,
) -> SiteRow:
    """The row of one site of one pair and metric; without a pattern where something else than the donor is written."""
    kind = kind_of(found)
    at = {"component": component, "layer": layer, kind.part: part, "query": query, kind.column: position}
    # One place of the arrays that are told: `sel` takes it out of all of them.
    cell: dict[Any, Any] = {axis: found.get_index(axis).get_loc(at[axis]) for axis in kind.axes}

    def number(name: str) -> float:
        array = found.variables[name]
        return float(array.values[tuple(cell[axis] for axis in array.dims)])

    def value(name: str) -> float | None:
        return number(name) if name in found and np.isfinite(number(name)) else None

    clean, corrupt, role = _at_token(found, position)
    restored, lost = value("restored_fraction"), value("lost_fraction")
    return SiteRow(
        kind=kind.name,
        component=str(component),
        layer=None if layer is None else int(layer),
        part=int(part) if is_token(part) else part,
        position=int(position) if is_token(position) else str(position),
        clean_token=clean,
        corrupt_token=corrupt,
        role=role,
        restoration=value("restoration"),
        disruption=value("disruption"),
        interaction=value("interaction"),
        restored_fraction=restored,
        lost_fraction=lost,
        pattern=pattern(restored, lost, total=number("total_effect")) if found.attrs["write"] == "donor" else "",
        query=int(query) if is_token(query) else query,
        query_token=str(found.clean_token.values[query]) if is_token(query) else "",
        **{name: value(name) for name in (*BESIDE, *BEYOND) if name not in WINDOW},
        **{name: int(number(name)) for name in WINDOW if name in found},
    )


def _at_token(found: xr.Dataset, position: int | str) -> tuple[str, str, str]:
    """The clean and the corrupt token and the role of a row's column, where it is a token's position."""
    if not is_token(position) or kind_of(found).column != "position":
        return "", "", str(position)
    clean, corrupt, role = (
        found[name].values[int(position)] for name in ("clean_token", "corrupt_token", "clean_role")
    )
    return str(clean), str(corrupt), str(role)


def select(
    measurements: Measurements, *, pair: str | None = None, metric: str | None = None, of: str | None = None
) -> xr.Dataset:
    """The effects of one pair by one metric; `of` is the kind of site (default: the trace's first).

    Raises InvalidOption for a name that is not in the trace.
    """
    chosen = {}
    for name, asked in (("pair", pair), ("metric", metric)):
        valid = [str(value) for value in measurements.pairs[name].values]
        chosen[name] = valid[0] if asked is None else known(name, asked, valid)
    found = effects(measurements.of_pair(chosen["pair"]), of, metrics=[chosen["metric"]])  # all take seconds
    return found.sel(chosen)


def known(what: str, asked: Any, valid: Sequence[Any]) -> Any:
    """The name that was asked for, if the trace has it. Raises InvalidOption with the nearest that it has."""
    if asked not in valid:
        raise InvalidOption(f"There is no {what} {asked!r} in this trace. {nearest(str(asked), map(str, valid))}")
    return asked


def strongest(found: xr.Dataset, count: int, *, by: str | None = None, component: str | None = None) -> list[SiteRow]:
    """The sites with the largest effects (by size) of one pair and metric; cuts and structural zeros are left out."""
    kind, numbers = kind_of(found), found.variables
    ranked = (numbers["status"] == "ok") & among_others(found).variable
    if component is not None:
        ranked = ranked & (numbers["component"] == component)
    cells = numbers[by or shown_first(found)].where(ranked).transpose(*kind.ranked_axes)
    order = np.argsort(-abs(cells.values), axis=None, kind="stable")
    order = order[~np.isnan(cells.values.ravel()[order])]
    # Of a mirrored kind (A, B) and (B, A) are one site in two places.
    order = order[: 2 * count if kind.mirrored else count]  # there may be tens of thousands
    labels = [numbers[axis].values.tolist() for axis in kind.ranked_axes]
    places = zip(*np.unravel_index(order, cells.shape), strict=True)
    sites = ({axis: each[n] for axis, each, n in zip(kind.ranked_axes, labels, place, strict=True)} for place in places)
    once = {frozenset(site.values()) if kind.mirrored else n: site for n, site in enumerate(sites)}
    return [_row_at(found, site) for site in [*once.values()][:count]]


def _row_at(found: xr.Dataset, site: Mapping[str, Any]) -> SiteRow:
    kind = kind_of(found)
    part = site[kind.part] if kind.part else None
    return site_row(found, site["component"], site.get("layer"), site[kind.column], part, site.get("query"))
