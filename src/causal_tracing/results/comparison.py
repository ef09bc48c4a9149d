"""Where two traces of the same pairs differ: the first minus the second, pair by pair, over the cells that both have.

Each kind of site (`of`) is a map of its own.

1. Pairs: those that both have, by id, with a number by each one's metric. Pairs of one cluster in either are one.
2. Cells: components, layers and columns that both have. Columns mean the same in every pair of both (`means.py`).
3. Means of the paired differences with intervals and tests, as for one trace; differences of the restored and lost
   fractions, each a ratio of means, with all four means drawn together (`statistics/bootstrap.py`).

What is known beforehand in both (structural zeros, cuts) is in no test. What only one of them has is listed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.errors import InvalidOption, nearest, some_of
from causal_tracing.results.columns import columns_of, labelled, tokens_among
from causal_tracing.results.effects import AVERAGED, FRACTIONS, OF_ENDS, effects
from causal_tracing.results.means import (
    LEVEL,
    RESAMPLES,
    MeanMap,
    by_position,
    by_role,
    clusters_of,
    require_finite,
    roles_differ,
    status_over_pairs,
    tested,
)
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.site_kinds import KINDS, kind_of, plural
from causal_tracing.results.statistics.bootstrap import (
    Interval,
    cluster_codes,
    cluster_means,
    mean_interval,
    means_over_clusters,
    ratio_difference_interval,
)

KNOWN = ("structural_zero", "cut")
LISTED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two that are compared: its model, metric and unit, and its mean total effect."""

    model: str
    metric: str
    unit: str
    total: Interval


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Differences(MeanMap):
    """The first trace minus the second, on the pairs and cells that both have, by one metric of each.

    `cells` holds the means of the paired differences as of any map, both means as `_first` and `_second`, and the
    differences of fractions with `_low`, `_high` and `_reason`; `total` is the mean difference of the total effects.
    Where the units differ, effects have no difference (NaN), and `reason` says so. `only_first` and `only_second` list
    what one alone has, by kind; `differing` what the two records say differently.
    """

    first: Side
    second: Side
    only_first: Mapping[str, tuple[Any, ...]]
    only_second: Mapping[str, tuple[Any, ...]]
    differing: Mapping[str, tuple[Any, Any]]
    warnings: tuple[str, ...]
    reason: str
    seed: int

    @property
    def sides(self) -> dict[str, Side]:
        """Both, by name."""
        return {"first": self.first, "second": self.second}


def differences(
    first: Measurements,
    second: Measurements,
    *,
    metric: str | None,
    second_metric: str | None,
    seed: int,
    of: str | None,
) -> Differences:
    """Both compared. Raises InvalidOption where fewer than two pairs, or no cells, are in both."""
    metric, of = metric or first.metric, of or first.kind()
    tables = _chosen(first, metric, "first", of), _chosen(second, second_metric or metric, "second", of)
    ids, undefined = _shared_pairs(*tables)
    one, other = (found.sel(pair=ids) for found in tables)
    for found in (one, other):
        require_finite(found)
    codes = _clusters(first, second, ids)
    both, labels = _shared_cells(*_columns(one, other))
    sides = [_side(measured, found, codes, seed) for measured, found in ((first, one), (second, other))]
    units = [side.unit for side in sides]
    reason = "" if units[0] == units[1] else f"the first is in {units[0]}, the second in {units[1]}"
    totals = one.total_effect.values, other.total_effect.values
    cells, least = _cells(both, totals, codes, reason, seed)
    return Differences(
        kind=of,
        metric=metric,
        unit=units[0],
        shown=next(name for name in AVERAGED if name in cells) + KINDS[of].shown,
        ids=tuple(ids),
        undefined=tuple(undefined),
        clusters=int(codes.max()) + 1,
        cells=cells,
        total=_total(totals, codes, reason, seed),
        smallest_p=least,
        first=sides[0],
        second=sides[1],
        only_first=_only(_ids(tables[0]), _ids(tables[1]), labels[0], labels[1]),
        only_second=_only(_ids(tables[1]), _ids(tables[0]), labels[1], labels[0]),
        differing=_differing(first, second, ids),
        warnings=tuple(_warnings(first, second, one, other)),
        reason=reason,
        seed=seed,
    )


def _side(measured: Measurements, found: xr.Dataset, codes: np.ndarray, seed: int) -> Side:
    return Side(
        model=str(measured.provenance.get("model", "")),
        metric=str(found.metric.item()),
        unit=str(found.unit.item()),
        total=_mean(cluster_means(found.total_effect.values, codes), seed),
    )


def _total(totals: tuple[np.ndarray, np.ndarray], codes: np.ndarray, reason: str, seed: int) -> Interval:
    """The mean difference of the total effects; undefined where there is a reason why there is none."""
    found = _mean(cluster_means(totals[0] - totals[1], codes) * (np.nan if reason else 1.0), seed)
    return replace(found, reason=np.array(reason, dtype=object)) if reason else found


def _chosen(measurements: Measurements, metric: str, which: str, of: str) -> xr.Dataset:
    """The effects by one metric. Raises InvalidOption."""
    if of in KINDS and of not in measurements.kinds:  # another message than a single trace's
        raise InvalidOption(f"The {which} trace has no {of}. It has {', '.join(measurements.kinds)}.")
    found = effects(measurements, of)
    names = [str(name) for name in found.metric.values]
    if metric not in names:
        raise InvalidOption(f"There is no metric {metric!r} in the {which} trace. {nearest(metric, names)}")
    return found.sel(metric=metric)


def _ids(found: xr.Dataset) -> list[str]:
    return [str(id) for id in found.pair.values]


def _shared_pairs(first: xr.Dataset, second: xr.Dataset) -> tuple[list[str], list[str]]:
    """The ids of pairs that both have, with effects and without any, in their order. Raises InvalidOption."""
    shared = sorted({*_ids(first)} & {*_ids(second)})
    there = [id for id in shared if all(found.reason.sel(pair=id) == "" for found in (first, second))]
    undefined = [id for id in shared if id not in there]
    if len(shared) >= 2 > len(there):
        lacking = next(found for found in (first, second) if found.reason.sel(pair=undefined[0]) != "")
        raise InvalidOption(
            f"Of the {len(shared)} pairs that both traces have, {len(there)} have a number by these metrics; two at "
            f"least are needed. Of {undefined[0]}, {lacking.metric.item()} is undefined "
            f"({lacking.reason.sel(pair=undefined[0]).item()}). Choose another metric=."
        )
    if len(there) < 2:
        without = f" Without a number by the metric: {some_of(undefined, LISTED)}." if undefined else ""
        raise InvalidOption(
            f"Two traces are compared on the pairs that both have, at least two; these share {len(there)}."
            f"\n  the first has   {some_of(_ids(first), LISTED)}\n  the second has  {some_of(_ids(second), LISTED)}\n"
            f"Give the same pairs the same id= in both.{without}"
        )
    return there, undefined


def _clusters(first: Measurements, second: Measurements, ids: Sequence[str]) -> np.ndarray:
    """Each pair's cluster as a number: pairs that share a cluster in either trace are one."""
    cluster = {id: id for id in ids}
    for measurements in (first, second):
        members: dict[tuple[str, str], list[str]] = {}
        for id, name in zip(ids, clusters_of(measurements, ids), strict=True):
            members.setdefault(name, []).append(id)
        # Two clusters that share a pair by the other trace's names become one, whatever they are called.
        for named in members.values():
            together = {cluster[id] for id in named}
            if len(together) > 1:
                cluster = {id: min(together) if its in together else its for id, its in cluster.items()}
    return cluster_codes([cluster[id] for id in ids])


def _columns(first: xr.Dataset, second: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    """Both with columns that mean the same in every pair of both. Raises InvalidOption where there are none."""
    tokens, columns = ([many(found) for found in (first, second)] for many in (tokens_among, columns_of))
    numbered = [len(some) == len(every) for some, every in zip(tokens, columns, strict=True)]
    if numbered[0] != numbered[1] and not all(tokens):
        kinds = ["token positions" if each else f"roles ({some_of(every, LISTED)})"
                 for each, every in zip(numbered, columns, strict=True)]  # fmt: skip
        raise InvalidOption(
            f"The columns of the first trace are {kinds[0]}, those of the second {kinds[1]}: they do not mean the "
            "same. Trace both with the same positions=."
        )
    alike = np.array_equal(_roles(first), _roles(second))
    if all(tokens) and (not alike or roles_differ(first) or roles_differ(second)):
        return by_role(first), by_role(second)
    return by_position(first), by_position(second)


def _roles(found: xr.Dataset) -> np.ndarray:
    """The roles of each pair's tokens, as far as the longest prompt goes: pairs that are left out may be longer."""
    roles = found.clean_role.transpose("pair", "token").values
    return roles[:, : np.flatnonzero((roles != "").any(0)).max(initial=-1) + 1]


def _shared_cells(
    first: xr.Dataset, second: xr.Dataset
) -> tuple[tuple[xr.Dataset, xr.Dataset], tuple[dict[str, list[Any]], dict[str, list[Any]]]]:
    """Both on the cells and effects that both have; and what each has, by kind. Raises InvalidOption without any."""
    dims = {plural(axis): axis for axis in kind_of(first).ranked_axes}
    labels = tuple(
        {kind: _measured(found, dim) for kind, dim in dims.items()}
        | {"effects": [name for name in AVERAGED if name in found]}
        for found in (first, second)
    )
    shared = {kind: [each for each in labels[0][kind] if each in labels[1][kind]] for kind in labels[0]}
    for kind, names in shared.items():
        if not names:
            one, other = (some_of(each[kind], LISTED) for each in labels)
            raise InvalidOption(
                f"The two traces have no {kind} in common: the first has {one}, the second {other}. Trace both with "
                f"the same {'directions' if kind == 'effects' else kind}=."
            )
    column = kind_of(first).column
    at = {dim: shared[kind] for kind, dim in dims.items()} | {column: labelled(shared[f"{column}s"])}
    both = (first.sel(at)[[*shared["effects"], "status"]], second.sel(at)[[*shared["effects"], "status"]])
    return both, (labels[0], labels[1])


def _measured(found: xr.Dataset, dim: str) -> list[Any]:
    """The labels along a dimension; of parts, which have room for all, those that were measured."""
    labels = found[dim].values.tolist()
    if dim != kind_of(found).part:
        return labels
    there = (found.status != "unpaired").any([name for name in found.status.dims if name != dim]).values
    return [label for label, measured in zip(labels, there, strict=True) if measured]


def _cells(
    both: tuple[xr.Dataset, xr.Dataset],
    totals: tuple[np.ndarray, np.ndarray],
    codes: np.ndarray,
    reason: str,
    seed: int,
) -> tuple[xr.Dataset, float]:
    """Each effect's paired difference with its tests, and of fractions; and the smallest p of so many clusters."""
    first, second = both
    status = _status(status_over_pairs(first), status_over_pairs(second))
    names = [name for name in AVERAGED if name in first]
    # A difference is of the same pairs on both sides: what one lacks is left out of the other's mean too.
    values = {name: _both_present(first[name].values, second[name].values) for name in names}
    apart = {name: one - other for name, (one, other) in values.items()}
    if reason:
        apart = {name: np.full_like(each, np.nan) for name, each in apart.items()}
    cells, least = tested({name: cluster_means(each, codes) for name, each in apart.items()}, status, seed)
    for name, pair in values.items():
        for which, each in zip(("first", "second"), pair, strict=True):
            cells[f"{name}_{which}"] = (status.dims, means_over_clusters(cluster_means(each, codes)))
    for fraction, effect in FRACTIONS.items():
        if effect in values:
            one, other = values[effect]
            wholes = (one[..., -1:], other[..., -1:]) if effect in OF_ENDS else totals
            cells |= _fraction(fraction, values[effect], wholes, codes, status.dims, seed)
    held = cluster_means(values[names[0]][0], codes)
    cells["clusters"] = (status.dims, (~np.isnan(held)).sum(0))
    return xr.Dataset(cells | {"status": status}), least


def _both_present(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both, NaN where either is missing."""
    missing = np.isnan(first) | np.isnan(second)
    return np.where(missing, np.nan, first), np.where(missing, np.nan, second)


def _fraction(
    name: str,
    values: tuple[np.ndarray, np.ndarray],
    totals: tuple[np.ndarray, np.ndarray],
    codes: np.ndarray,
    dims: tuple[Any, ...],
    seed: int,
) -> dict[str, Any]:
    """The difference of two ratios of means: each mean effect over the mean total effect of the pairs with the cell.

    Of circuits it is over what all nodes have, in the place of the total effect.
    """
    ratios = []
    for effect, total in zip(values, totals, strict=True):
        each = total if total.ndim == effect.ndim else total.reshape(-1, *[1] * (effect.ndim - 1))
        whole = np.where(np.isnan(effect), np.nan, each)
        ratios.append((cluster_means(effect, codes), cluster_means(whole, codes)))
    found = ratio_difference_interval(*ratios, level=LEVEL, resamples=RESAMPLES, seed=seed)
    parts = {"": found.estimate, "_low": found.low, "_high": found.high, "_reason": found.reason}
    return {f"{name}{part}": (dims, numbers) for part, numbers in parts.items()}


def _status(first: xr.DataArray, second: xr.DataArray) -> xr.DataArray:
    """Of cells in both: what they share; a cut where each is known beforehand; ok where one of them is open."""
    kept = [each.drop_vars(["metric", "unit"], errors="ignore") for each in (first, second)]
    one, other = (each.values for each in kept)
    # A zero in one and a cut in the other differ by what is known of both, so that there is nothing to test.
    known = np.isin(one.astype(str), KNOWN) & np.isin(other.astype(str), KNOWN)
    status = np.where(one == other, one, np.where(known, "cut", "ok"))
    status = np.where((one == "unpaired") | (other == "unpaired"), "unpaired", status)
    return kept[0].copy(data=status.astype(object))


def _mean(values: np.ndarray, seed: int) -> Interval:
    return mean_interval(values, level=LEVEL, resamples=RESAMPLES, seed=seed)


def _only(
    ids: Sequence[str], others: Sequence[str], mine: Mapping[str, list[Any]], its: Mapping[str, list[Any]]
) -> dict[str, tuple[Any, ...]]:
    """What one has and the other has not, by kind; kinds without any are left out."""
    kinds = {"pairs": ([*ids], [*others])} | {kind: (mine[kind], its[kind]) for kind in mine}
    found = {kind: tuple(each for each in here if each not in there) for kind, (here, there) in kinds.items()}
    return {kind: names for kind, names in found.items() if names}


def _differing(first: Measurements, second: Measurements, ids: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """What the two records say differently of model and options, and an example of prompts that differ."""
    found: dict[str, tuple[Any, Any]] = {}
    records = [dict(each.provenance) for each in (first, second)]
    options = [dict(record.get("options", {})) for record in records]
    for parts, names in (
        (records, ("model", "source", "dtype", "engine")),
        (options, sorted({*options[0], *options[1]})),
    ):
        for name in names:
            values = tuple(part.get(name) for part in parts)
            if values[0] != values[1]:
                found[name] = (values[0], values[1])
    one, other = (each.pairs.sel(pair=list(ids)) for each in (first, second))
    for name in ("clean_prompt", "corrupt_prompt", "answer", "foil"):
        apart = np.flatnonzero(one[name].values != other[name].values)
        if len(apart):
            at = int(apart[0])
            what = f"{name.replace('_', ' ')} of {len(apart)} of {len(ids)} pairs, as of {ids[at]}"
            found[what] = (str(one[name].values[at]), str(other[name].values[at]))
    return found


def _warnings(first: Measurements, second: Measurements, one: xr.Dataset, other: xr.Dataset) -> list[str]:
    """What makes the same name mean something else in the two."""
    found, ids = [], _ids(one)
    layers, family = ([each.provenance.get(name) for each in (first, second)] for name in ("layers", "family"))
    if layers[0] != layers[1] or family[0] != family[1]:
        sizes = f" ({layers[0]} and {layers[1]} layers)" if layers[0] != layers[1] else ""
        found.append(f"These are different models{sizes}: layer numbers of different models are not the same place.")
    prompts = [each.pairs.clean_prompt.sel(pair=ids).values for each in (first, second)]
    if (prompts[0] != prompts[1]).any():
        count = int((prompts[0] != prompts[1]).sum())
        found.append(f"{count} of {len(ids)} pairs have the same id and another clean prompt: are they the same pairs?")
    tokens = [each.clean_token.transpose("pair", "token").values for each in (one, other)]
    counts = [(each != "").sum(1) for each in tokens]
    length = min(each.shape[1] for each in tokens)
    apart = (counts[0] != counts[1]) | (tokens[0][:, :length] != tokens[1][:, :length]).any(1)
    if (apart & (prompts[0] == prompts[1])).any():
        found.append("The same prompts are cut into other tokens: a position is not the same text in both.")
    names = [clusters_of(each, ids) for each in (first, second)]
    if names[0] != names[1]:
        found.append("The clusters of some pairs differ: pairs that share one in either trace are one here.")
    return found
