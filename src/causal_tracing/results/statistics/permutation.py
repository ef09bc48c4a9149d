"""Whether effects differ from 0 over many pairs, for a whole map of sites at once.

1. Whole clusters' signs are flipped, the same flips for every cell: under a symmetric null, all are equally likely.
2. Alone: the share of flips whose |t| is at least the cell's.
3. Over the map: the family-wise error by step-down max-T (Westfall & Young 1993, algorithm 4.1; Ge, Dudoit & Speed
   2003, box 2), and the false discovery rate (Benjamini & Hochberg 1995).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy.stats import false_discovery_control

from causal_tracing import validation
from causal_tracing.results.statistics.bootstrap import FEWEST, ROUNDING, TOO_FEW, filled, require_values, slices

EXACT = 12  # clusters: up to here every flip is enumerated
OUTSIDE = "not in the family"


@dataclass(frozen=True, slots=True, kw_only=True)
class SignFlip:
    """Two-sided p for each cell, alone and adjusted for the map, and q; NaN where `reason` says why.

    `smallest_p` is the smallest p that so many clusters can reach; `exact` says that every flip was enumerated.
    """

    p: Float[np.ndarray, "*map"]
    p_adjusted: Float[np.ndarray, "*map"]
    q: Float[np.ndarray, "*map"]
    reason: Shaped[np.ndarray, "*map"]
    smallest_p: float
    exact: bool


def smallest_p(clusters: int, permutations: int = 10_000) -> float:
    """The smallest two-sided p that so many clusters can reach: 2^(1−n) where all flips are enumerated (n ≤ 12).

    So 5 clusters cannot reach .05 (.0625), and 6 can (.031).
    """
    validation.whole("The number of clusters", clusters, least=1)
    return 2.0 ** (1 - clusters) if clusters <= EXACT else 1 / (1 + permutations)


def sign_flip(
    values: Float[np.ndarray, "cluster *map"],
    family: Bool[np.ndarray, "*map"],
    *,
    permutations: int = 10_000,
    seed: int,
) -> SignFlip:
    """Whether each cell's values are symmetric about 0: two-sided p, p adjusted for the family (max-T), and q (BH).

    The statistic is |t|, the studentised mean; it is infinite where a flip makes all values equal, and 0 where all are
    0. Up to 12 clusters every flip is enumerated (`permutations` is then not used); else p = (1 + count) / (1 + flips).
    A cluster without the cell has no weight in it. NaN outside the family, and for cells that fewer than 8 clusters
    have where others have more: their few flips would be the largest |t| of too many maps. Raises InvalidOption.
    """
    require_values(values)
    validation.whole("The number of permutations", permutations, least=1)
    validation.whole("The seed", seed, least=0)
    columns, present = filled(values)
    inside, enough = family.reshape(-1), present.sum(0) >= min(len(values), FEWEST)
    tested = inside & enough
    p, adjusted, q = (np.full(tested.shape, np.nan) for _ in range(3))
    if tested.any():
        flips = _flips(len(values), permutations, seed)
        p[tested], adjusted[tested] = _flip_p_values(columns[:, tested], present[:, tested], flips)
        q[tested] = false_discovery_control(p[tested], method="bh")
    reason = np.where(inside, np.where(enough, "", TOO_FEW), OUTSIDE).astype(object)
    p, adjusted, q, reason = (each.reshape(family.shape) for each in (p, adjusted, q, reason))
    least, exact = smallest_p(len(values), permutations), len(values) <= EXACT
    return SignFlip(p=p, p_adjusted=adjusted, q=q, reason=reason, smallest_p=least, exact=exact)


def _flips(clusters: int, permutations: int, seed: int) -> Float[np.ndarray, "flip cluster"]:
    """Signs of the clusters: all of them up to a common sign, which |t| does not see, or so many at random."""
    if clusters <= EXACT:
        bits = np.arange(2 ** (clusters - 1))[:, None] >> np.arange(clusters) & 1  # the last cluster is never flipped
        return 1.0 - 2.0 * bits
    return 1.0 - 2.0 * np.random.default_rng(seed).integers(0, 2, size=(permutations, clusters))


def _flip_p_values(
    columns: Float[np.ndarray, "cluster cell"],
    present: Bool[np.ndarray, "cluster cell"],
    flips: Float[np.ndarray, "flip cluster"],
) -> tuple[Float[np.ndarray, " cell"], Float[np.ndarray, " cell"]]:
    """p alone and by step-down max-T, for cells that are all in the family."""
    clusters, number = len(columns), present.sum(0)
    # |t| grows with the cosine between a cell's values and the flip, so that one product does for all cells and flips.
    length = np.sqrt(number * (columns**2).sum(0))
    columns = columns / np.where(length > 0, length, 1.0)
    freedom = np.maximum(number - 1, 1) / max(clusters - 1, 1)
    # From the weakest cell to the strongest: step-down compares each with the largest of those no stronger.
    order = np.argsort(_size(columns.sum(0)[None], freedom)[0], kind="stable")
    columns, freedom = columns[:, order], freedom[order]
    reached = _size(columns.sum(0)[None], freedom)[0] - ROUNDING
    alone, jointly = np.zeros(len(order)), np.zeros(len(order))
    for some in slices(len(flips), len(order)):
        size = _size(flips[some] @ columns, freedom)
        alone += np.count_nonzero(size >= reached, axis=0)
        np.maximum.accumulate(size, axis=1, out=size)  # the largest of the cells no stronger than this one
        jointly += np.count_nonzero(size >= reached, axis=0)
    extra = 0 if clusters <= EXACT else 1  # an enumeration holds the unflipped values already
    p, adjusted = np.empty(len(order)), np.empty(len(order))
    p[order] = (extra + alone) / (extra + len(flips))
    # A stronger cell's p is never above a weaker one's.
    adjusted[order] = np.maximum.accumulate(((extra + jointly) / (extra + len(flips)))[::-1])[::-1]
    return p, adjusted


def _size(
    cosine: Float[np.ndarray, "flip cell"], freedom: Float[np.ndarray, " cell"]
) -> Float[np.ndarray, "flip cell"]:
    """t² / (t² + n − 1), which grows with |t| and stays finite: 1 where all flipped values are equal.

    For a cell that all n clusters have it is mean² / mean square; `freedom` is (clusters with the cell − 1) / (n − 1).
    """
    square = np.minimum(np.square(cosine), 1.0)
    if (freedom == 1).all():  # mostly: of every flip of a large map this is the same number at a third of the time
        return square
    return freedom * square / (1 - (1 - freedom) * square)
