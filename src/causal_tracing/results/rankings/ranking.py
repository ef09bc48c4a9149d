"""A ranking of nodes or edges by score, and how stable its top is.

1. A score is a mean over pairs, of which clusters count once.
2. Stability: clusters are drawn again, the mean is ranked again, and the first k are compared with those of all pairs
   by the Jaccard index, the share of items in both among those in either (2510.00845).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xarray as xr

from causal_tracing import validation
from causal_tracing.errors import InvalidOption, nearest
from causal_tracing.results.means import clusters_of
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.rankings.score_files import Shape
from causal_tracing.results.statistics.bootstrap import (
    cluster_codes,
    cluster_means,
    means_over_clusters,
    resample_counts,
)

RESAMPLES = 1000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranking:
    """Nodes or edges with their scores, in the metric's unit (positive: supports the clean behaviour).

    `scores` is by name ("z 3.1", "mlp_out 0", "z 3.1 -> mlp_out 4"). `source` says in words where they come from.
    `by_cluster` holds them cluster by cluster, [cluster, item]; None where only their means are known.
    """

    scores: Mapping[str, float]
    source: str
    by_cluster: np.ndarray | None = None
    _written: ClassVar[Callable[..., Path]]  # how a score file of such items is made

    def first(self, count: int, *, by: str = "size") -> tuple[str, ...]:
        """The names of the first so many: by the size of their scores, or by "sign", the most positive first."""
        validation.one_of("way to rank", by, ("size", "sign"))
        order = np.argsort(-_key(np.array([*self.scores.values()]), by), kind="stable")
        return tuple(np.array([*self.scores], dtype=object)[order[:count]])

    def write(
        self,
        path: str | Path,
        *,
        width: int,
        parallel: bool,
        size: int,
        by: str = "size",
        shape: Shape | None = None,
    ) -> Path:
        """Writes a score file as EAP-IG and MIB read it, with the first `size` items, by `by`, in the graph.

        `width` is the model's d_model, and `parallel` whether attention and MLP of a layer read the same stream; its
        `shape` is needed where layers differ in what they have. Of nodes, the edges among those in the graph are in it
        too: a file must have a score for each edge, and it is that of the node where the edge begins. Of edges, keys
        and values that several heads share are an edge for each of these there, with equal shares of the score. Raises
        InvalidOption where there are no single heads, MachineError.

        Example:
            found.edges().write("graph.json", width=768, parallel=False, size=400)
        """
        kept = self.first(size, by=by)
        return self._written(Path(path), self.scores, kept, width=width, parallel=parallel, shape=shape)

    def stability(self, count: int, *, by: str = "size", seed: int = 0, resamples: int = RESAMPLES) -> float:
        """How stable the first so many are: the mean Jaccard index with those of resamples, from 0 to 1 (the same).

        NaN of fewer than two clusters, or where the scores of single pairs are not known. Raises InvalidOption.
        """
        validation.whole("The number of nodes", count, least=1, most=len(self.scores))
        validation.one_of("way to rank", by, ("size", "sign"))
        if self.by_cluster is None or len(self.by_cluster) < 2:
            return np.nan
        counts = resample_counts(len(self.by_cluster), resamples, seed)
        first = _first(_key(np.array([*self.scores.values()]), by), count)
        shared = [int((first & _first(_key(drawn @ self.by_cluster, by), count)).sum()) for drawn in counts]
        return float(np.mean([same / (2 * count - same) for same in shared]))


def _key(scores: np.ndarray, by: str) -> np.ndarray:
    """What is larger of what comes first."""
    return abs(scores) if by == "size" else scores


def _first(key: np.ndarray, count: int) -> np.ndarray:
    """Which are the first so many; of equal ones the first come first."""
    # Not sorted: a thousand resamples of tens of thousands of edges are asked for their first few.
    least = np.partition(key, len(key) - count)[len(key) - count]
    found, equal = key > least, np.flatnonzero(key == least)
    found[equal[: count - int(found.sum())]] = True
    return found


def over_pairs(measurements: Measurements, by_pair: Mapping[str, np.ndarray], said: str, metric: str) -> dict[str, Any]:
    """What a ranking holds, of scores pair by pair: their means, of the pairs that have a number for every item.

    Raises InvalidOption where no pair has.
    """
    ids = [str(id) for id in measurements.pairs.pair.values]
    # Pairs that have a number for every item, or items would be ranked by means over different pairs.
    numbers = np.stack([*by_pair.values()], axis=1)
    there = np.flatnonzero(~np.isnan(numbers).any(1)).tolist()
    if not there:
        raise InvalidOption(f"No pair has a number by {metric} for all of them: some failed, or it is undefined.")
    codes = cluster_codes(clusters_of(measurements, [ids[n] for n in there]))
    by_cluster = cluster_means(numbers[there], codes)
    means = means_over_clusters(by_cluster).tolist()
    over = f"mean over {len(there)} pairs" if len(there) > 1 else "one pair"
    return {
        "scores": dict(zip(by_pair, means, strict=True)),
        "source": f"{said} by {metric}, {over}",
        "by_cluster": by_cluster,
    }


def effect_named(measurements: Measurements, found: xr.Dataset, effect: str | None) -> str:
    """The effect to rank by: the one asked for, or the estimate where there is one, else the first that was measured.

    Raises InvalidOption.
    """
    usual = [name for name in ("estimated", *measurements.directions) if name in found]
    name = effect or usual[0]
    if name not in usual:
        raise InvalidOption(f"Nothing can be ranked by {name!r} here. {nearest(name, usual)}")
    return name
