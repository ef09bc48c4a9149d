"""Circuits in numbers: how faithful sets of growing size are, and whether one of them is complete and minimal.

1. f(C) = (m(C) − m(empty)) / (m(N) − m(empty)): means over pairs first (clusters count once), then the ratio. Both ends
   were measured, so that the empty set has 0 and everything has 1.
2. CMD = ∫ |1 − f| and CPR = ∫ f over the share of nodes or edges, by the trapezoid rule (MIB: Mueller et al. 2025,
   2504.13151).
3. Completeness: |F(C\\K) − F(M\\K)| is small for every K. Minimality: for each item v of C there is a K with
   |F(C\\(K+v)) − F(C\\K)| of at least 1 % of F(M) (Wang et al. 2022, 2211.00593). F is the mean metric.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from causal_tracing.errors import InvalidOption
from causal_tracing.results.effects import FRACTIONS, OF_ENDS, effects
from causal_tracing.results.means import LEVEL, RESAMPLES, clusters_of, require_finite
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.once import once
from causal_tracing.results.select import known
from causal_tracing.results.site_kinds import CIRCUIT_TESTS, CIRCUITS
from causal_tracing.results.statistics.bootstrap import (
    Interval,
    area_interval,
    cluster_codes,
    cluster_means,
    mean_interval,
    means_over_clusters,
    ratio_interval,
)

MIB_SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
NOTHING = "nothing"  # as what is taken out of a set
LEAST = 0.01  # of F(M): what a node of a minimal set moves
NO_WHOLE = "everything and nothing differ by too little to divide by"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Area:
    """The area under a curve over the share of nodes (or edges), with its 95 % interval; NaN where `reason` says why.

    `shares` are the points of the curve; `of_mib` says whether they are the ten of the benchmark.
    """

    estimate: float
    low: float
    high: float
    reason: str
    shares: tuple[float, ...]
    of_mib: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Circuits:
    """Sets of growing size by one metric: the mean over these pairs, or one pair.

    `of` is "nodes" or "edges", and `items` how many of them there are; `how` is "kept" or "restored", `write` what the
    rest got. `curve` has a row a size: size, share, weighted_size (of nodes the edges among them, each sender's as a
    share of its own; of edges how many are on a way from the embedding to the logits), added (what this size adds),
    metric (the mean of m(C)), faithfulness with its 95 % interval (low, high; NaN for fewer than 8 clusters) and
    reason. `cmd` is ∫ |1 − f|, `cpr` is ∫ f: 0 and near 1 are what a faithful set has, but f above 1 raises CPR without
    being better. `completeness` has a row for each K that was taken out, `minimality` one for each item of the set that
    was tested, of `tested` items (None: no set was).
    """

    metric: str
    unit: str
    of: str
    how: str
    write: str
    items: int
    pairs: int
    clusters: int
    clean: float
    curve: pd.DataFrame
    cmd: Area
    cpr: Area
    tested: int | None
    completeness: pd.DataFrame
    minimality: pd.DataFrame


def size_of(size: int | float, every: int) -> int:
    """A number of nodes or edges; of a share the nearest one, and at least 1."""
    return int(size) if not isinstance(size, float) else max(1, int(size * every + 0.5))


def subsets_of(size: int) -> int:
    """How many sets of at least two there are of so many items, and not of all of them."""
    return max(0, 2**size - size - 2)


def circuits(
    measurements: Measurements, *, metric: str | None = None, pair: str | None = None, seed: int = 0
) -> Circuits:
    """What was measured of circuits by one metric (default: the first), of all pairs or one. Raises InvalidOption."""
    measurements.kind(CIRCUITS.name)
    measurements.kinds_by(metric)
    if pair is not None:
        known("pair", pair, [str(id) for id in measurements.pairs.pair.values])
    chosen = measurements if pair is None else measurements.of_pair(pair)
    return _circuits(chosen, metric or measurements.metric, seed)


@once
def _circuits(measurements: Measurements, metric: str, seed: int) -> Circuits:
    found = _defined(measurements, metric, CIRCUITS.name).isel(component=0)
    # Sets are measured in one direction alone, and each has a fraction of its own name.
    share = next(name for name, effect in FRACTIONS.items() if name in found and effect in OF_ENDS)
    beyond = found[FRACTIONS[share]].transpose("pair", "size").values
    codes = cluster_codes(clusters_of(measurements, found.pair.values))
    by_cluster = cluster_means(beyond, codes)
    # A single pair has no interval by which a denominator could be told from 0: its own threshold says whether it can.
    ratio = _ratio(by_cluster, seed, undefined=len(beyond) == 1 and bool(found[share].isnull().all()))
    options = measurements.provenance["options"]
    sizes = found["size"].values
    curve = _curve(found, by_cluster, codes, ratio)
    cmd, cpr = _areas(by_cluster, curve, seed, undefined=bool(np.isnan(ratio.estimate).any()))
    tests = [_tested(measurements, metric, seed)] if CIRCUIT_TESTS.name in measurements.maps else []
    completeness, minimality = tests[0] if tests else (pd.DataFrame(), pd.DataFrame())
    return Circuits(
        metric=metric,
        unit=str(found.unit.item()),
        of=str(found.component.item()),
        how=options["circuit_how"],
        write=measurements.write["kind"],
        items=int(sizes[-1]),
        pairs=len(beyond),
        clusters=len(by_cluster),
        clean=float(means_over_clusters(cluster_means(found.clean.values, codes))),
        curve=curve,
        cmd=cmd,
        cpr=cpr,
        tested=len(minimality) if tests else None,
        completeness=completeness,
        minimality=minimality,
    )


def _defined(measurements: Measurements, metric: str, kind: str) -> xr.Dataset:
    """The pairs that have this metric. Raises InvalidOption where none has, or one is infinite."""
    found = effects(measurements, kind, metrics=[metric]).sel(metric=metric)
    kept = found.sel(pair=found.total_effect.notnull())
    if not kept.sizes["pair"]:
        raise InvalidOption(f"No pair has {metric}: {found.reason.values[0] or 'it was not measured'}.")
    require_finite(kept)
    return kept


def _ratio(by_cluster: np.ndarray, seed: int, *, undefined: bool) -> Interval:
    """f of each size."""
    ratio = ratio_interval(by_cluster, by_cluster[:, -1], level=LEVEL, resamples=RESAMPLES, seed=seed)
    if not undefined:
        return ratio
    nothing = np.full_like(ratio.estimate, np.nan)
    return Interval(
        estimate=nothing, low=nothing, high=nothing, reason=np.full(nothing.shape, NO_WHOLE, object), level=LEVEL
    )


def _curve(found: xr.Dataset, by_cluster: np.ndarray, codes: np.ndarray, ratio: Interval) -> pd.DataFrame:
    """A row a size."""
    sizes = found["size"].values
    metric = found.clean - found.disruption if "disruption" in found else found.corrupt + found.restoration
    return pd.DataFrame(
        {
            "size": sizes,
            "share": sizes / sizes[-1],
            "weighted_size": found.weighted_size.values,
            "added": found.added.values.astype(str),
            "metric": means_over_clusters(cluster_means(metric.transpose("pair", "size").values, codes)),
            "beyond_empty": means_over_clusters(by_cluster),
            "faithfulness": ratio.estimate + 0.0,  # no minus before a zero
            "low": ratio.low,
            "high": ratio.high,
            "reason": ratio.reason.astype(str),
        }
    )


def _areas(by_cluster: np.ndarray, curve: pd.DataFrame, seed: int, *, undefined: bool) -> tuple[Area, Area]:
    """CMD and CPR: over MIB's shares where all of their sizes were measured, else over the sizes that were."""
    sizes: list[int] = curve["size"].tolist()
    every = sizes[-1]
    # Areas over other sizes are not comparable with those that the benchmark publishes, and are marked.
    of_mib = {size_of(share, every) for share in MIB_SHARES} <= {*sizes}
    shares = MIB_SHARES if of_mib else tuple(size / every for size in sizes[1:])
    # Between the last ranked item and everything the curve would be a guess.
    reason = "" if of_mib or curve["added"].iloc[-1] else "the ranking does not name all there is"
    if reason or undefined:
        none = Area(estimate=np.nan, low=np.nan, high=np.nan, reason=reason or NO_WHOLE, shares=shares, of_mib=of_mib)
        return none, none
    at = [sizes.index(size_of(share, every)) for share in shares]
    parts = (by_cluster[:, at], by_cluster[:, -1], trapezoid(shares))
    both = [area_interval(*parts, level=LEVEL, resamples=RESAMPLES, seed=seed, distance=each) for each in (True, False)]
    cmd, cpr = (
        Area(
            estimate=float(each.estimate), low=float(each.low), high=float(each.high), reason=str(each.reason),
            shares=shares, of_mib=of_mib,
        )
        for each in both
    )  # fmt: skip
    return cmd, cpr


def trapezoid(points: tuple[float, ...]) -> np.ndarray:
    """The weight of each point in the area under a curve through them, by the trapezoid rule."""
    widths = np.diff(points)
    return (np.append(widths, 0) + np.append(0, widths)) / 2


def _tested(measurements: Measurements, metric: str, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Completeness and minimality of the set that was tested."""
    found = _defined(measurements, metric, CIRCUIT_TESTS.name)
    codes = cluster_codes(clusters_of(measurements, found.pair.values))
    left = (found.clean - found.disruption).transpose("pair", "component", "removal")
    by_cluster = cluster_means(left.values, codes)
    names, items = ([*map(str, found[name].values)] for name in ("removal", "removed_nodes"))
    whole = float(means_over_clusters(cluster_means(found.clean.values, codes)))
    return _completeness(by_cluster, names, items, whole, seed), _minimality(by_cluster, names, items, whole)


def _completeness(by_cluster: np.ndarray, names: list[str], items: list[str], whole: float, seed: int) -> pd.DataFrame:
    """A row for each K: F without it of the set and of the model, and how far these are apart."""
    both = [n for n in range(len(names)) if not np.isnan(by_cluster[:, 1, n]).all()]
    gap = mean_interval(by_cluster[:, 0, both] - by_cluster[:, 1, both], level=LEVEL, resamples=RESAMPLES, seed=seed)
    means = means_over_clusters(by_cluster)
    return pd.DataFrame(
        {
            "removed": [names[n] for n in both],
            "items": [items[n] for n in both],
            "circuit": means[0, both],
            "model": means[1, both],
            "gap": gap.estimate,
            "low": gap.low,
            "high": gap.high,
            "distance": abs(gap.estimate),
            "share": abs(gap.estimate) / abs(whole) if whole else np.nan,
        }
    )


def _minimality(by_cluster: np.ndarray, names: list[str], items: list[str], whole: float) -> pd.DataFrame:
    """A row for each item of the set: the K, of those that were tried, beside which taking it out moves F most."""
    left = means_over_clusters(by_cluster)[0]
    sets = [frozenset(each.split("; ")) if each else frozenset() for each in items]
    rows = []
    for item in (items[n] for n in range(len(names)) if len(sets[n]) == 1 and names[n] == items[n]):
        moved = {names[k]: left[n] - left[k] for k, n in _beside(sets, item)}
        most = max(moved, key=lambda name: abs(moved[name]))
        share = abs(moved[most]) / abs(whole) if whole else np.nan
        rows.append((item, most, moved[most], share, bool(share >= LEAST), len(moved)))
    return pd.DataFrame(rows, columns=["item", "beside", "moved", "share", "matters", "tried"])


def _beside(sets: list[frozenset[str]], item: str) -> Iterator[tuple[int, int]]:
    """Which K, and which K with the item beside it, were both taken out."""
    places = {each: n for n, each in enumerate(sets)}
    for n, each in enumerate(sets):
        if item in each and (without := each - {item}) in places:
            yield places[without], n
