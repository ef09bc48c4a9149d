"""From many pairs to estimates with intervals, for a whole map of sites at once.

What counts once is a cluster: the pairs of one fact, or a pair alone. What crosses the functions below is
`[cluster, *map]`, float64 inside; NaN means that the cluster has no such cell.

1. Pairs to clusters: a cluster's value is the mean of its pairs, and the estimate is the mean over clusters, each
   counted once however many pairs it has. Clusters are in the order of their names, so that of pairs changes nothing.
2. Intervals: clusters are drawn with replacement, the same draws for every cell; BCa (Efron 1987, "Better bootstrap
   confidence intervals"; Efron & Tibshirani 1993, 14.3). Means and ratios of means are one case: Σ top / Σ bottom.

Tests: `permutation.py`. Peaks: `peaks.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.special import ndtr, ndtri

from causal_tracing import validation
from causal_tracing.errors import InvalidOption

FEWEST = 8  # clusters: with fewer there are values, and no interval
AT_ONCE = 2**22  # numbers held at once: resamples or flips, times cells
ROWS = 128  # of resamples that are copied together
SAMPLED = 20  # one number of so many tells about where a rank lies
ROUNDING = 1e-12  # sums in another order are the same number: ties are ties


class Reason(StrEnum):
    """Why a number or its interval is undefined; of a difference of two ratios, by which denominator."""

    TOO_FEW = f"fewer than {FEWEST} clusters"
    NEAR_ZERO = "the interval of the denominator contains 0"
    ZERO = "the mean of the denominator is 0"
    FIRST_NEAR_ZERO = f"first: {NEAR_ZERO}"
    FIRST_ZERO = f"first: {ZERO}"
    SECOND_NEAR_ZERO = f"second: {NEAR_ZERO}"
    SECOND_ZERO = f"second: {ZERO}"


TOO_FEW, NEAR_ZERO, ZERO = Reason.TOO_FEW, Reason.NEAR_ZERO, Reason.ZERO
OF_SIDE = {  # what makes one ratio undefined, as the reason of a difference of two
    "first": {NEAR_ZERO: Reason.FIRST_NEAR_ZERO, ZERO: Reason.FIRST_ZERO},
    "second": {NEAR_ZERO: Reason.SECOND_NEAR_ZERO, ZERO: Reason.SECOND_ZERO},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate for each cell with its interval, in the unit of the values; NaN where `reason` says why."""

    estimate: Float[np.ndarray, "*map"]
    low: Float[np.ndarray, "*map"]
    high: Float[np.ndarray, "*map"]
    reason: Shaped[np.ndarray, "*map"]
    level: float


def cluster_codes(names: Sequence[str] | Sequence[tuple[str, str]]) -> Int[np.ndarray, " pair"]:
    """Each pair's cluster as a number from 0, in the alphabetical order of the clusters' names."""
    number = {name: code for code, name in enumerate(sorted(set(names)))}
    return np.array([number[name] for name in names], dtype=np.int64)


def cluster_means(
    values: Float[np.ndarray, "pair *map"], codes: Int[np.ndarray, " pair"]
) -> Float[np.ndarray, "cluster *map"]:
    """Each cluster's mean over its pairs that have the cell, in the unit of the values; NaN where none has it."""
    require_values(values)
    means = np.full((int(codes.max()) + 1, *values.shape[1:]), np.nan)
    for code in np.unique(codes):
        # Sorted, so that the order of pairs does not change the last bit of their sum.
        means[code] = means_over_clusters(np.sort(values[codes == code].astype(np.float64), axis=0))
    return means


def means_over_clusters(values: Float[np.ndarray, "cluster *map"]) -> Float[np.ndarray, "*map"]:
    """The mean of each cell over the clusters that have it, in the unit of the values; NaN where none has it."""
    present = ~np.isnan(values)
    return _divided(np.asarray(np.where(present, values, 0.0).sum(0)), np.asarray(present.sum(0)))


def resample_counts(clusters: int, resamples: int, seed: int) -> Float[np.ndarray, "resample cluster"]:
    """How often each cluster is drawn in each resample: every row adds up to the number of clusters."""
    validation.whole("The number of resamples", resamples, least=1)
    validation.whole("The seed", seed, least=0)
    generator = np.random.default_rng(seed)
    return generator.multinomial(clusters, np.full(clusters, 1 / clusters), size=resamples).astype(np.float64)


def mean_interval(
    values: Float[np.ndarray, "cluster *map"], *, level: float = 0.95, resamples: int = 10_000, seed: int
) -> Interval:
    """The mean over clusters and its BCa interval for each cell, in the unit of the values.

    A resample's mean is over the clusters in it that have the cell. NaN (the interval) with fewer than 8 of them.
    Where all of them are equal, which BCa does not define, low = high = the estimate. Raises InvalidOption.
    """
    require_values(values)
    top, present, shape = *filled(values), values.shape[1:]
    counts = resample_counts(len(top), resamples, seed)
    reason = np.where(present.sum(0) < FEWEST, TOO_FEW, "").astype(object)
    found = (*_intervals(top, present.astype(np.float64), present, level, counts), reason)
    estimate, low, high, reason = (each.reshape(shape) for each in found)
    return Interval(estimate=estimate, low=low, high=high, reason=reason, level=level)


def ratio_interval(
    numerator: Float[np.ndarray, "cluster *map"],
    denominator: Float[np.ndarray, "cluster ..."],
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int,
) -> Interval:
    """Mean numerator / mean denominator, and its BCa interval for each cell: a fraction, never clipped.

    The denominator is one number a cluster, or one a cluster and cell. Both means are over the clusters that have both,
    and are drawn together. NaN where the denominator's own interval contains 0, or its mean is 0; with fewer than 8
    clusters only the interval is NaN. Of clusters in which some pairs lack the cell, give the denominator by cell,
    with NaN for those pairs: else a fraction of 1 is not 1. Raises InvalidOption.
    """
    require_values(numerator)
    require_values(denominator)
    if denominator.shape not in (numerator.shape, numerator.shape[:1]):
        raise InvalidOption(
            f"The denominator must be one number a cluster {numerator.shape[:1]}, or one a cluster and cell "
            f"{numerator.shape}; it has the shape {denominator.shape}."
        )
    bottom = np.broadcast_to(denominator.reshape(len(denominator), -1), (len(numerator), numerator[0].size))
    missing = np.isnan(numerator.reshape(bottom.shape)) | np.isnan(bottom)
    top, bottom = (np.where(missing, 0.0, each) for each in (numerator.reshape(bottom.shape), bottom))
    counts = resample_counts(len(top), resamples, seed)
    reason = _denominator_reasons(bottom, ~missing, level, counts)
    estimate, low, high = _intervals(top, bottom, ~missing & (reason == ""), level, counts)
    # With too few clusters the estimate stands, without an interval.
    estimate[(reason == NEAR_ZERO) | (reason == ZERO)] = np.nan
    estimate, low, high, reason = (each.reshape(numerator.shape[1:]) for each in (estimate, low, high, reason))
    return Interval(estimate=estimate, low=low, high=high, reason=reason, level=level)


def ratio_difference_interval(
    first: tuple[Float[np.ndarray, "cluster *map"], Float[np.ndarray, "cluster *map"]],
    second: tuple[Float[np.ndarray, "cluster *map"], Float[np.ndarray, "cluster *map"]],
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int,
) -> Interval:
    """The first ratio of means minus the second, and its BCa interval for each cell: all four means drawn together.

    Each is (numerator, denominator), both one number a cluster and cell; the means are over the clusters that have all
    four. NaN as for `ratio_interval`, by either denominator: `reason` says which. Raises InvalidOption.
    """
    parts, shape = (*first, *second), first[0].shape[1:]
    for part in parts:
        require_values(part)
    present = ~np.isnan(np.stack(parts)).any(0).reshape(len(parts[0]), -1)
    top, bottom, other, base = (np.where(present, part.reshape(present.shape), 0.0) for part in parts)
    counts = resample_counts(len(top), resamples, seed)
    both = [_denominator_reasons(each, present, level, counts) for each in (bottom, base)]
    first_bad, second_bad = (np.isin(each, (NEAR_ZERO, ZERO)) for each in both)
    named = [np.array([names.get(one, one) for one in each], dtype=object)
             for names, each in zip(OF_SIDE.values(), both, strict=True)]  # fmt: skip
    reason = np.where(first_bad, named[0], np.where(second_bad, named[1], both[0]))
    ratios = [(_divided(each.sum(0), whole.sum(0)), each, whole) for each, whole in ((top, bottom), (other, base))]
    estimate = ratios[0][0] - ratios[1][0]
    low, high = np.full_like(estimate, np.nan), np.full_like(estimate, np.nan)
    enough = np.flatnonzero((present.sum(0) >= FEWEST) & (reason == ""))
    for some in slices(len(enough), len(counts)):
        cells = enough[some]
        one, two = (
            _resampled(ratio[cells], each[:, cells], whole[:, cells], present[:, cells], counts)
            for ratio, each, whole in ratios
        )
        low[cells], high[cells] = _bca(one - two, present[:, cells], level)
    estimate[first_bad | second_bad] = np.nan
    estimate, low, high, reason = (each.reshape(shape) for each in (estimate, low, high, reason))
    return Interval(estimate=estimate, low=low, high=high, reason=reason, level=level)


def area_interval(
    numerator: Float[np.ndarray, "cluster point"],
    denominator: Float[np.ndarray, " cluster"],
    weights: Float[np.ndarray, " point"],
    *,
    distance: bool,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int,
) -> Interval:
    """Σ weight · f over points, where f = mean numerator / mean denominator; with `distance`, of |1 − f|. BCa.

    All means are drawn together. The interval is NaN for fewer than 8 clusters; nothing may be missing. Raises
    InvalidOption.
    """
    require_values(numerator)
    counts = resample_counts(len(numerator), resamples, seed)

    def area(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
        ratio = _divided(top, bottom[:, None])
        return (abs(1 - ratio) if distance else ratio) @ weights

    # BCa's acceleration is told by what each cluster's absence changes.
    left_out = area(numerator.sum(0) - numerator, denominator.sum() - denominator)[:, None]
    estimate = area(numerator.sum(0)[None], denominator.sum()[None])
    low = high = np.full(1, np.nan)
    if len(numerator) >= FEWEST:
        drawn = area(counts @ numerator, counts @ denominator)[None]
        tie = ROUNDING * (1 + abs(estimate))
        found = _Resampled(estimate=estimate, drawn=drawn, left_out=left_out, tie=tie)
        low, high = _bca(found, np.ones((len(numerator), 1), dtype=bool), level)
    reason = np.array(TOO_FEW if len(numerator) < FEWEST else "", dtype=object)
    return Interval(
        estimate=estimate.reshape(()), low=low.reshape(()), high=high.reshape(()), reason=reason, level=level
    )


def require_values(values: np.ndarray) -> None:
    """Raises InvalidOption where there are no clusters, or an infinite value."""
    if not len(values):
        raise InvalidOption("There are no pairs to take a mean over. Give one at least.")
    if np.isinf(values).any():
        raise InvalidOption("The values hold an infinite number: no mean is defined. Mark it as missing (NaN).")


def filled(values: np.ndarray) -> tuple[Float[np.ndarray, "cluster cell"], Bool[np.ndarray, "cluster cell"]]:
    """The values with 0 for what is missing, and what is there."""
    flat = values.reshape(len(values), -1).astype(np.float64)
    present = ~np.isnan(flat)
    return np.where(present, flat, 0.0), present


def _divided(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """The quotient, NaN where it is not finite."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        quotient = np.asarray(top / bottom)
    finite = np.isfinite(quotient)
    if not finite.all():  # a copy of millions of numbers is not made for nothing
        quotient[~finite] = np.nan
    return quotient


def _denominator_reasons(
    bottom: Float[np.ndarray, "cluster cell"],
    present: Bool[np.ndarray, "cluster cell"],
    level: float,
    counts: np.ndarray,
) -> Shaped[np.ndarray, " cell"]:
    """Why a ratio or its interval is undefined, for each cell; "" where both are defined."""
    columns, where = np.unique(np.concatenate([bottom, present]), axis=1, return_inverse=True)  # mostly a few
    single, there = columns[: len(bottom)], columns[len(bottom) :] > 0
    _, low, high = _intervals(single, there.astype(np.float64), there, level, counts)
    reasons = np.where((low <= 0) & (high >= 0), NEAR_ZERO, "").astype(object)
    reasons[there.sum(0) < FEWEST] = TOO_FEW
    reasons[(np.abs(single.sum(0)) <= ROUNDING * np.abs(single).max(0)) & there.any(0)] = ZERO
    return reasons[where.reshape(-1)]


def _intervals(
    top: Float[np.ndarray, "cluster cell"],
    bottom: Float[np.ndarray, "cluster cell"],
    present: Bool[np.ndarray, "cluster cell"],
    level: float,
    counts: Float[np.ndarray, "resample cluster"],
) -> tuple[Float[np.ndarray, " cell"], Float[np.ndarray, " cell"], Float[np.ndarray, " cell"]]:
    """Σ top / Σ bottom, and both ends of its interval; NaN where fewer than 8 clusters are present."""
    if not 0 < level < 1:
        raise InvalidOption(f"The level of an interval must lie between 0 and 1; it is {level!r}.")
    estimate = _divided(top.sum(0), bottom.sum(0))
    low, high = np.full_like(estimate, np.nan), np.full_like(estimate, np.nan)
    enough = np.flatnonzero(present.sum(0) >= FEWEST)
    for some in slices(len(enough), len(counts)):
        cells = enough[some]
        drawn = _resampled(estimate[cells], top[:, cells], bottom[:, cells], present[:, cells], counts)
        low[cells], high[cells] = _bca(drawn, present[:, cells], level)
    return estimate, low, high


class _Resampled(NamedTuple):
    """An estimate by cell, in each resample, and without each cluster; and how far apart equal numbers may be."""

    estimate: Float[np.ndarray, " cell"]
    drawn: Float[np.ndarray, "cell resample"]
    left_out: Float[np.ndarray, "cluster cell"]
    tie: Float[np.ndarray, " cell"]

    def __sub__(self, other: "_Resampled") -> "_Resampled":
        """The difference of two estimates, resample by resample."""
        parts = (mine - its for mine, its in zip(self[:3], other[:3], strict=True))
        return _Resampled(*parts, tie=self.tie + other.tie)


def _resampled(
    estimate: Float[np.ndarray, " cell"],
    top: Float[np.ndarray, "cluster cell"],
    bottom: Float[np.ndarray, "cluster cell"],
    present: Bool[np.ndarray, "cluster cell"],
    counts: Float[np.ndarray, "resample cluster"],
) -> _Resampled:
    """An estimate, Σ top / Σ bottom of each resample, and without each cluster (NaN for those without the cell)."""
    # Mostly all cells have one denominator: then one product does for all of them.
    shared = bottom[:, :1] if (bottom == bottom[:, :1]).all() else bottom
    left_out = _divided(top.sum(0) - top, bottom.sum(0) - bottom)
    scale = np.abs(top).max(0) + np.abs(estimate) * np.abs(bottom).max(0)
    return _Resampled(
        estimate=estimate,
        drawn=_turned(_divided(counts @ top, counts @ shared)),
        left_out=np.where(present, left_out, np.nan),
        tie=ROUNDING * scale / np.abs(bottom.sum(0) / present.sum(0)),
    )


def _turned(drawn: Float[np.ndarray, "resample cell"]) -> Float[np.ndarray, "cell resample"]:
    """The same numbers cell by cell: some rows at a time, whose cache lines are still there for the next cell."""
    turned = np.empty(drawn.shape[::-1])
    for start in range(0, len(drawn), ROWS):
        turned[:, start : start + ROWS] = drawn[start : start + ROWS].T
    return turned


def _bca(
    found: _Resampled, present: Bool[np.ndarray, "cluster cell"], level: float
) -> tuple[Float[np.ndarray, " cell"], Float[np.ndarray, " cell"]]:
    """BCa as scipy.stats.bootstrap has it (the tests hold it to that), which is one cell at a time and far slower."""
    estimate, drawn, left_out, tie = found  # NaN is a resample without any cluster that has the cell
    defined = np.maximum((~np.isnan(drawn)).sum(1), 1)
    # Counted from both sides of a tie, and halved below: a resample that equals the estimate is half below it.
    below = (drawn < (estimate - tie)[:, None]).sum(1) + (drawn <= (estimate + tie)[:, None]).sum(1)
    # Kept half a resample away from both ends, where the normal quantile is infinite.
    bias = ndtri(np.clip(below / 2, 0.5, defined - 0.5) / defined)
    pull = np.nan_to_num(means_over_clusters(left_out) - left_out)
    alike = np.abs(pull).max(0) * len(present) <= tie
    acceleration = (pull**3).sum(0) / 6 / np.where(alike, 1.0, (pull**2).sum(0)) ** 1.5
    ends = []
    for z in (ndtri((1 - level) / 2), ndtri((1 + level) / 2)):
        moved = bias + z
        share = ndtr(bias + moved / np.maximum(1 - acceleration * moved, np.finfo(float).tiny))
        ends.append(np.where(alike, estimate, _quantile(drawn, share, defined)))
    return ends[0], ends[1]


def _quantile(
    drawn: Float[np.ndarray, "cell resample"], share: Float[np.ndarray, " cell"], defined: Int[np.ndarray, " cell"]
) -> Float[np.ndarray, " cell"]:
    """The quantile of each row's defined part, between two of its numbers linearly."""
    at = share * (defined - 1)
    first = np.floor(at).astype(np.int64)
    ranks = [np.minimum(rank, defined - 1) for rank in (first, first + 1)]
    # From the nearer end: fewer numbers lie below the rank that is sought, and those alone are sorted.
    if np.median(share) <= 0.5:
        before, after = _of_ranks(drawn, ranks[0], ranks[1])
    else:  # from the other end
        after, before = (-each for each in _of_ranks(-drawn, defined - 1 - ranks[1], defined - 1 - ranks[0]))
    return before + (at - first) * (after - before)


def _of_ranks(
    drawn: Float[np.ndarray, "cell resample"], first: Int[np.ndarray, " cell"], second: Int[np.ndarray, " cell"]
) -> tuple[Float[np.ndarray, " cell"], Float[np.ndarray, " cell"]]:
    """The numbers that have these ranks in their rows (0: the smallest), the second not below the first.

    Whole rows would take most of an interval's time to sort. So what is below a guess is sorted alone: every so many of
    a row tell about where the rank is; a row of which they told too little is sorted whole.
    """
    few = np.sort(drawn[:, ::SAMPLED], axis=1)
    about = (second + 1) * few.shape[1] / drawn.shape[1]
    # Four standard deviations of a count, so that a guess is nearly always high enough.
    guess = np.minimum(about + 4 * np.sqrt(about + 1), few.shape[1] - 1).astype(np.int64)
    below = drawn <= few[np.arange(len(few)), guess][:, None]
    counts = below.sum(1)
    ends, values = np.cumsum(counts), drawn[below]
    found = np.empty((2, len(drawn)))
    for row, (end, count) in enumerate(zip(ends.tolist(), counts.tolist(), strict=True)):
        mine = values[end - count : end] if count > second[row] else drawn[row].copy()
        mine.sort()
        found[:, row] = mine[first[row]], mine[second[row]]
    return found[0], found[1]


def slices(count: int, width: int) -> Iterator[slice]:
    """So many rows in slices, each of which holds no more than AT_ONCE numbers of rows of this width."""
    step = max(1, AT_ONCE // width)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))
