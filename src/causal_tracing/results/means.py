"""From many pairs to one map: means over pairs with their intervals and tests, and how far their peak can be trusted.

1. Columns: token positions where all pairs have the same roles in the same places, roles else; a pair's cells of one
   role are averaged first, and a role that it lacks is missing, never 0. Columns that are roles stay what they are.
2. Clusters: pairs of one cluster count once (`statistics/bootstrap.py`).
   Maps of single heads and neurons have an axis for them between layer and position, and are maps of their own.
3. Means with intervals, sign-flip tests over the map, and the peak (`statistics/`). What is known beforehand
   (structural zeros, cuts), and what stands beside a map (its margin), is in no test, no ranking and no peak.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.errors import InvalidOption
from causal_tracing.prompts.tokens import ROLES
from causal_tracing.results.arms import DIRECT_ARMS
from causal_tracing.results.columns import among_others, columns_of, is_token, labelled, tokens_among
from causal_tracing.results.effects import AVERAGED, FRACTIONS, OF_ENDS, effects
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.once import once
from causal_tracing.results.site_kinds import kind_of
from causal_tracing.results.statistics.bootstrap import (
    Interval,
    cluster_codes,
    cluster_means,
    mean_interval,
    ratio_interval,
)
from causal_tracing.results.statistics.peaks import PeakStability, SplitHalfPeak, peak_stability, split_half_peak
from causal_tracing.results.statistics.permutation import sign_flip

LEVEL, RESAMPLES = 0.95, 10_000
DIRECT = frozenset(arm.name for arm in DIRECT_ARMS.values())


class NoMean(InvalidOption):
    """There is no number that means the same in each of these pairs."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MeanMap:
    """Means over pairs of one kind's map, by one metric; or (`comparison.py`) of the paired differences of two.

    `cells` holds over the kind's axes each effect's mean with `_low` and `_high` (95 %), `_p`, `_p_adjusted` (max-T
    over the map) and `_q`; fractions as ratios of means, with their intervals; `clusters`, how many have the cell;
    `status`. `total` is the mean total effect with its interval. `shown` is the effect that comes first. `pairs` and
    `clusters` say how many there are, `undefined` which pairs have no number by this metric, `smallest_p` the smallest
    p that so many clusters can reach. `peaks` has, by component, the peak's honest size and stability.
    """

    kind: str
    metric: str
    unit: str
    shown: str
    ids: tuple[str, ...]
    undefined: tuple[str, ...]
    clusters: int
    cells: xr.Dataset
    total: Interval
    smallest_p: float
    peaks: Mapping[str, tuple[SplitHalfPeak, PeakStability]] = field(default_factory=dict)

    @property
    def pairs(self) -> int:
        """How many pairs these are the means of."""
        return len(self.ids)

    @property
    def title(self) -> str:
        """How many pairs and clusters these are the means of, in words."""
        return self.titled("mean")

    def titled(self, what: str, *, of: int | None = None) -> str:
        """The same of something else, or with how many pairs were asked for."""
        pairs = f"{self.pairs} of {of}" if of is not None else f"{self.pairs}"
        clusters = "" if self.clusters == self.pairs else f" in {self.clusters} clusters"
        return f"{what} over {pairs} pairs{clusters}"

    def peak(self, component: str) -> xr.Dataset | None:
        """The cell where a component's map is strongest; None where no cell can be."""
        half, _ = self.peaks[component]
        if half.index is None:
            return None
        dims = [name for name in self.cells.status.dims if name != "component"]
        return self.cells.sel(component=component).isel(dict(zip(dims, half.index, strict=True)))


def mean_map(measurements: Measurements, *, metric: str | None = None, seed: int = 0, of: str | None = None) -> MeanMap:
    """What all pairs say together of one kind of site (default: the trace's first), by one metric (default: the first).

    The interval of a mean needs 8 clusters; with fewer there are values alone. Raises InvalidOption.
    """
    measurements.kinds_by(metric)  # says which metrics there are, where this is none
    return _mean_map(measurements, measurements.kind(of), metric or measurements.metric, seed)


# Asked for by its defaults or by name it is the same map, which is made once.
@once  # thousands of resamples
def _mean_map(measurements: Measurements, of: str, metric: str, seed: int) -> MeanMap:
    found = effects(measurements, of, metrics=[metric])
    chosen = defined(found.sel(metric=metric))
    ids = tuple(str(id) for id in chosen.pair.values)
    codes = cluster_codes(clusters_of(measurements, ids))
    averaged = by_column(chosen)
    by_cluster = {name: cluster_means(averaged[name].values, codes) for name in AVERAGED if name in averaged}
    totals = chosen.total_effect.values
    status = status_over_pairs(averaged)
    first = next(iter(by_cluster)) + kind_of(found).shown
    means, least = tested(by_cluster, status, seed)
    cells = means | _fractions(by_cluster, averaged, totals, codes, status.dims, seed)
    cells["clusters"] = (status.dims, (~np.isnan(by_cluster[first])).sum(0))
    return MeanMap(
        kind=of,
        metric=str(chosen.metric.item()),
        unit=str(chosen.unit.item()),
        shown=first,
        ids=ids,
        undefined=tuple(str(id) for id in found.pair.values if str(id) not in {*ids}),
        clusters=int(codes.max()) + 1,
        cells=xr.Dataset(cells | {"status": status.drop_vars(["metric", "unit"], errors="ignore")}),
        total=mean_interval(cluster_means(totals, codes), level=LEVEL, resamples=RESAMPLES, seed=seed),
        peaks=dict(_peaks(by_cluster[first], status, seed)),
        smallest_p=least,
    )


def mean_maps(measurements: Measurements, *, metric: str | None = None, seed: int = 0) -> dict[str, MeanMap | NoMean]:
    """The same of every kind that was measured, or why there is no mean of it."""
    found: dict[str, MeanMap | NoMean] = {}
    for kind in measurements.kinds:
        if kind not in measurements.kinds_by(metric):
            found[kind] = NoMean(f"they were not measured by {metric}.")
            continue
        try:
            found[kind] = mean_map(measurements, metric=metric, seed=seed, of=kind)
        except NoMean as error:
            found[kind] = error
    return found


def defined(chosen: xr.Dataset) -> xr.Dataset:
    """The pairs that have effects by this metric. Raises NoMean where fewer than two do, or one is infinite."""
    if chosen.sizes["pair"] < 2:
        raise NoMean("One pair has no mean over pairs: ask for its own numbers.")
    kept = chosen.sel(pair=chosen.reason == "")
    if kept.sizes["pair"] < 2:
        raise NoMean(f"fewer than two pairs have {chosen.metric.item()}: {chosen.reason.values[0] or 'not measured'}.")
    require_finite(kept)
    return kept


def require_finite(kept: xr.Dataset) -> None:
    """Raises NoMean where a pair's effect by this metric is infinite."""
    for name in ("total_effect", *AVERAGED):
        if name in kept and np.isinf(kept[name]).any():
            raise NoMean(f"{name} by {kept.metric.item()} is infinite somewhere. Choose another metric.")


def clusters_of(measurements: Measurements, ids: Iterable[Any]) -> list[tuple[str, str]]:
    """Each pair's cluster: ("cluster", the one it names), or ("pair", itself)."""
    said = {pair.get("id"): pair.get("cluster") for pair in measurements.provenance.get("pairs", ())}
    # Named apart, so that a cluster may be called as a pair is.
    return [("cluster", str(said[id])) if said.get(id) else ("pair", id) for id in map(str, ids)]


def by_column(found: xr.Dataset) -> xr.Dataset:
    """The effects with columns that mean the same in every pair: (pair, component, layer, ..., position).

    Token positions where all pairs have the same length and roles; else roles, each pair's tokens of a role averaged.
    """
    return by_role(found) if roles_differ(found) else by_position(found)


def roles_differ(found: xr.Dataset) -> bool:
    """Whether columns are token positions, and the same position has another role in another pair."""
    return bool(tokens_among(found)) and not _same_roles(found)


def _same_roles(found: xr.Dataset) -> bool:
    roles = found.clean_role.transpose("pair", "token").values
    return bool((roles == roles[:1]).all())


def check_queries(found: xr.Dataset) -> None:
    """Raises NoMean where tokens that attend are named by position, and a position is another role in another pair."""
    numbers = [each for each in found["query"].values.tolist() if is_token(each)] if kind_of(found).by_query else []
    if numbers and not _same_roles(found):
        raise NoMean(
            "These prompts have other roles at the same positions: no query means the same in each of them. Name "
            'queries by roles, such as edge_query=["subject_last", "last"].'
        )


def by_position(found: xr.Dataset) -> xr.Dataset:
    """The effects with the columns that were measured."""
    check_queries(found)
    names = [name for name in AVERAGED if name in found]
    kept = found[[*names, "status"]].transpose("pair", *kind_of(found).axes)
    # Where some pairs alone were patched, it was for their strong estimates: their mean would speak for no others.
    chosen = (kept.status == "not_patched").any("pair")
    if not chosen.any():
        return kept
    return kept.assign({name: kept[name].where(~chosen) for name in names if name != "estimated"})


def by_role(found: xr.Dataset) -> xr.Dataset:
    """The effects of token positions by role, each pair's tokens of a role averaged. Raises NoMean without subjects.

    Columns that were measured as roles or spans stay; what single tokens say of the same role is left out beside them.
    """
    kept, roles = by_position(found), found.clean_role.transpose("pair", "token").values
    numbers = tokens_among(found)
    named = [column for column in columns_of(found) if not is_token(column)]
    present = [role for role in ROLES if (roles == role).any()]
    if "subject_last" not in present:
        raise NoMean(
            "These prompts have different lengths and no subjects: no column means the same in each of them. Give the "
            "pairs a subject=, or trace roles (positions=...)."
        )
    tokens, gathered = kept.sel(position=numbers), [role for role in present if role not in named]
    columns = [_role(tokens, roles, role) for role in gathered] + [kept.sel(position=name) for name in named]
    at = xr.DataArray(labelled([*gathered, *named]), dims="position", name="position")
    bare = [column.drop_vars("position", errors="ignore") for column in columns]
    return xr.concat(bare, dim=at).transpose(*kept.dims)


def _role(kept: xr.Dataset, roles: np.ndarray, role: str) -> xr.Dataset:
    """One column: for each pair the mean over its tokens of a role, and the status that they share."""
    at = roles[:, tokens_among(kept)] == role
    mask = xr.DataArray(at, dims=("pair", "position"))
    # NaN for a pair without such a token: what it lacks is missing, and not 0.
    column = kept.drop_vars("status").where(mask).mean("position")
    shared = xr.full_like(column[next(iter(column.data_vars))], "", dtype=object)
    for n in range(len(at)):
        shared[{"pair": n}] = _shared(kept.status.isel(pair=n).values[..., at[n]])
    return column.assign(status=shared)


def _shared(status: np.ndarray) -> np.ndarray:
    """The status of cells that are averaged: their own if they agree, ok if some can matter, unpaired if none is."""
    if not status.shape[-1]:
        return np.full(status.shape[:-1], "unpaired", dtype=object)
    same = (status == status[..., :1]).all(-1)
    return np.where(same, status[..., 0], "ok").astype(object)


def status_over_pairs(averaged: xr.Dataset) -> xr.DataArray:
    """Over pairs: what is a cut or a structural zero in every pair that has the cell is one; ok else."""
    status = averaged.status
    # Pairs that lack the cell have no say in what it is.
    there = ~status.isin(["unpaired", "failed", "undefined", "no_window"])
    shared = xr.full_like(status.isel(pair=0, drop=True), "ok", dtype=object)
    shared = shared.where(~(status == "not_patched").any("pair"), "not_patched")
    for name in ("structural_zero", "cut"):
        shared = shared.where(((status != name) & there).any("pair") | ~there.any("pair"), name)
    return shared.where(there.any("pair"), "unpaired")


def tested(by_cluster: Mapping[str, np.ndarray], status: xr.DataArray, seed: int) -> tuple[dict[str, Any], float]:
    """Each effect's mean, interval and tests, by name; and the smallest p that so many clusters can reach."""
    dims, family, least = status.dims, eligible_cells(status), np.nan
    cells: dict[str, Any] = {}
    for name, values in by_cluster.items():
        interval = mean_interval(values, level=LEVEL, resamples=RESAMPLES, seed=seed)
        some = family & (values != 0).any(0) if name in DIRECT else family  # no path leads there: a structural zero
        flipped = sign_flip(values, some, permutations=RESAMPLES, seed=seed)
        least = flipped.smallest_p
        found = {
            name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high,
            f"{name}_p": flipped.p, f"{name}_p_adjusted": flipped.p_adjusted, f"{name}_q": flipped.q,
        }  # fmt: skip
        cells |= {each: (dims, numbers) for each, numbers in found.items()}
    return cells, least


def eligible_cells(status: xr.DataArray) -> np.ndarray:
    """The cells that are tested and ranked: those that can have an effect, and stand in no margin."""
    return ((status == "ok") & among_others(status)).transpose(*status.dims).values


def _fractions(
    by_cluster: Mapping[str, np.ndarray],
    averaged: xr.Dataset,
    totals: np.ndarray,
    codes: np.ndarray,
    dims: tuple[Any, ...],
    seed: int,
) -> dict[str, Any]:
    """Ratios of means: the mean effect over the mean total effect (or the whole's) of the pairs that have the cell."""
    cells: dict[str, Any] = {}
    for name, effect in FRACTIONS.items():
        if effect not in by_cluster:
            continue
        values = averaged[effect].values
        of_each = values[..., -1:] if effect in OF_ENDS else totals.reshape(-1, *[1] * (values.ndim - 1))
        # Of the pairs that have the cell alone: else its effect would be a share of other pairs' totals.
        whole = np.where(np.isnan(values), np.nan, of_each)
        ratio = ratio_interval(
            by_cluster[effect], cluster_means(whole, codes), level=LEVEL, resamples=RESAMPLES, seed=seed
        )
        cells |= {name: (dims, ratio.estimate), f"{name}_reason": (dims, ratio.reason)}
        cells |= {f"{name}_low": (dims, ratio.low), f"{name}_high": (dims, ratio.high)}
    return cells


def _peaks(
    values: np.ndarray, status: xr.DataArray, seed: int
) -> Iterator[tuple[str, tuple[SplitHalfPeak, PeakStability]]]:
    """Of each component's map, what its peak is worth."""
    family = eligible_cells(status)
    first = status.dims[1]  # the layers; of sites of no one layer, such that none is the next of another
    layers = status.layer.values.tolist() if first == "layer" else [2 * n for n in range(status.sizes[first])]
    for n, component in enumerate(status.component.values):
        here, eligible = values[:, n], family[n]
        half = split_half_peak(here, eligible, seed=seed)
        stable = peak_stability(here, eligible, layer_axis=0, layers=layers, resamples=RESAMPLES, seed=seed)
        yield str(component), (half, stable)
