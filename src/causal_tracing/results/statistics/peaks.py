"""Where a map is strongest, and how far that may be believed: the largest of many is too large, and may be elsewhere.

The peak is the eligible cell with the largest mean in size. Cells that fewer than 8 clusters have where others have
more are not eligible, nor should cuts and structural zeros be. `values` is `[cluster, *map]`, as in `bootstrap.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from causal_tracing import validation
from causal_tracing.errors import InvalidOption
from causal_tracing.results.statistics.bootstrap import (
    FEWEST,
    ROUNDING,
    TOO_FEW,
    filled,
    means_over_clusters,
    require_values,
    resample_counts,
    slices,
)

NOWHERE = "no cell is eligible"


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitHalfPeak:
    """The peak of all clusters, and what a peak is worth in clusters that did not choose it.

    `held_out` and `in_sample` are in the unit of the values: means over splits, where the other half and where the
    same half is measured at the peak that a half chose. `chosen` is the share of halves that chose the peak at `index`.
    """

    index: tuple[int, ...] | None
    held_out: float
    in_sample: float
    chosen: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakStability:
    """The peak of all clusters, and the shares of resamples with their peak there, or within one layer of it."""

    index: tuple[int, ...] | None
    same: float
    within_one_layer: float
    reason: str


def split_half_peak(
    values: Float[np.ndarray, "cluster *map"], eligible: Bool[np.ndarray, "*map"], *, halves: int = 100, seed: int
) -> SplitHalfPeak:
    """What the peak's effect is when one half of the clusters chooses it and the other measures it, both ways.

    `halves` is the number of random splits. NaN with fewer than 8 clusters, or where nothing is eligible. The sites
    that halves choose may differ: `held_out` is the effect that choosing a peak so finds. Raises InvalidOption.
    """
    validation.whole("The number of splits", halves, least=1)
    validation.whole("The seed", seed, least=0)
    columns, present, cells = _candidates(values, eligible)
    index, reason = _peak(columns, present, cells, eligible.shape)
    if reason:
        return SplitHalfPeak(index=index, held_out=np.nan, in_sample=np.nan, chosen=np.nan, reason=reason)
    generator = np.random.default_rng(seed)
    first = np.arange(len(values)) < len(values) // 2
    halved = np.stack([generator.permutation(first) for _ in range(halves)])
    # Both ways round: each half chooses once and measures once.
    choosing = np.concatenate([halved, ~halved]).astype(np.float64)
    chosen = _peaks(choosing, columns, present)
    inside, outside = (_means_at(weights, columns, present, chosen) for weights in (choosing, 1 - choosing))
    return SplitHalfPeak(
        index=index,
        held_out=float(means_over_clusters(outside)),
        in_sample=float(means_over_clusters(inside)),
        chosen=float(np.mean(chosen == _peaks(np.ones((1, len(values))), columns, present))),
        reason="",
    )


def peak_stability(
    values: Float[np.ndarray, "cluster *map"],
    eligible: Bool[np.ndarray, "*map"],
    *,
    layer_axis: int,
    layers: Sequence[int] | None = None,
    resamples: int = 10_000,
    seed: int,
) -> PeakStability:
    """The share of resamples in which the peak is at most one layer away, everything else (position, head) equal.

    `layer_axis` is an axis of the map; `layers` are the layers along it, where they are not 0, 1, 2 and so on. NaN
    with fewer than 8 clusters, or where nothing is eligible. Raises InvalidOption.
    """
    shape = eligible.shape
    if not -len(shape) <= layer_axis < len(shape):
        raise InvalidOption(f"The map has {len(shape)} axes; the axis of layers cannot be {layer_axis}.")
    numbers = np.arange(shape[layer_axis]) if layers is None else np.asarray(layers)
    if numbers.shape != (shape[layer_axis],):
        raise InvalidOption(f"The map has {shape[layer_axis]} layers; {len(numbers)} were named.")
    columns, present, cells = _candidates(values, eligible)
    index, reason = _peak(columns, present, cells, shape)
    if reason or index is None:
        return PeakStability(index=index, same=np.nan, within_one_layer=np.nan, reason=reason)
    counts = resample_counts(len(values), resamples, seed)
    drawn = np.stack(np.unravel_index(cells[_peaks(counts, columns, present)], shape))
    away = drawn != np.array(index)[:, None]
    layer = layer_axis % len(shape)
    far = np.abs(numbers[drawn[layer]] - numbers[index[layer]]) > 1
    same, near = ~away.any(0), ~np.delete(away, layer, axis=0).any(0) & ~far
    return PeakStability(index=index, same=float(same.mean()), within_one_layer=float(near.mean()), reason="")


def _candidates(
    values: Float[np.ndarray, "cluster *map"], eligible: Bool[np.ndarray, "*map"]
) -> tuple[Float[np.ndarray, "cluster cell"], Bool[np.ndarray, "cluster cell"], Int[np.ndarray, " cell"]]:
    """The cells that may be the peak: their values, who has them, and where they are in the flat map."""
    require_values(values)
    columns, present = filled(values)
    cells = np.flatnonzero(eligible.reshape(-1) & (present.sum(0) >= min(len(values), FEWEST)))
    return columns[:, cells], present[:, cells], cells


def _peak(
    columns: Float[np.ndarray, "cluster cell"],
    present: Bool[np.ndarray, "cluster cell"],
    cells: Int[np.ndarray, " cell"],
    shape: tuple[int, ...],
) -> tuple[tuple[int, ...] | None, str]:
    """The peak's place in the map, if there is one, and why nothing more can be said of it ("" where it can)."""
    if not len(cells):
        return None, NOWHERE
    best = cells[_peaks(np.ones((1, len(columns))), columns, present)[0]]
    index = tuple(int(at) for at in np.unravel_index(best, shape))
    return index, TOO_FEW if len(columns) < FEWEST else ""


def _peaks(
    weights: Float[np.ndarray, "row cluster"],
    columns: Float[np.ndarray, "cluster cell"],
    present: Bool[np.ndarray, "cluster cell"],
) -> Int[np.ndarray, " row"]:
    """The cell with the largest mean in size, for each weighting of the clusters; the first of those that are equal."""
    found = np.empty(len(weights), dtype=np.int64)
    # Mostly every cluster has every cell: then a row's clusters are counted once, and not for each cell.
    there = np.ones((len(columns), 1)) if present.all() else present.astype(np.float64)
    for some in slices(len(weights), columns.shape[1]):
        held = weights[some] @ there
        size = np.abs(weights[some] @ columns) / np.maximum(held, 1.0)
        if not held.all():
            size = np.where(held > 0, size, -1.0)
        # Up to rounding, or which of two equal cells is the peak would depend on the order of a sum.
        found[some] = (size >= size.max(1, keepdims=True) * (1 - ROUNDING)).argmax(1)
    return found


def _means_at(
    weights: Float[np.ndarray, "row cluster"],
    columns: Float[np.ndarray, "cluster cell"],
    present: Bool[np.ndarray, "cluster cell"],
    chosen: Int[np.ndarray, " row"],
) -> Float[np.ndarray, " row"]:
    """Each weighting's mean at the cell that was chosen for it; NaN where none of its clusters has that cell."""
    held = (weights.T * present[:, chosen]).sum(0)
    total = (weights.T * columns[:, chosen]).sum(0)
    return np.where(held > 0, total / np.maximum(held, 1.0), np.nan)
