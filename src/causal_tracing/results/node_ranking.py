"""A ranking of nodes (heads and MLPs): what a trace says of each of them at all tokens, and how stable its top is.

1. A score is the mean over pairs (clusters count once) of the effect of a node at all tokens: patched at all of them
   together, or, where tokens were patched one by one or estimated, the sum over them.
2. Stability: clusters are drawn again, the mean is ranked again, and the first k nodes are compared with those of all
   pairs by the Jaccard index, the share of nodes in both among those in either (2510.00845).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from causal_tracing import validation
from causal_tracing.errors import InvalidOption, nearest
from causal_tracing.results.columns import columns_of
from causal_tracing.results.effects import effects
from causal_tracing.results.means import clusters_of, require_finite
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.rankings import has_sum, summed
from causal_tracing.results.score_files import write_scores
from causal_tracing.results.site_kinds import BLOCKS, SINGLE_HEADS
from causal_tracing.results.statistics.bootstrap import (
    cluster_codes,
    cluster_means,
    means_over_clusters,
    resample_counts,
)

WHOLE, HEAD, TOGETHER = ("attn_out", "mlp_out", "mixer_out"), "z", "together"
RESAMPLES = 1000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NodeRanking:
    """Nodes with their scores, in the metric's unit (positive: supports the clean behaviour).

    `scores` is by name ("z 3.1", "mlp_out 0"). `source` says in words where they come from. `by_cluster` holds them
    cluster by cluster, [cluster, node]; None where only their means are known.
    """

    scores: Mapping[str, float]
    source: str
    by_cluster: np.ndarray | None = None

    def first(self, count: int, *, by: str = "size") -> tuple[str, ...]:
        """The names of the first so many: by the size of their scores, or by "sign", the most positive first."""
        return tuple(np.array([*self.scores], dtype=object)[_order(np.array([*self.scores.values()]), by)[:count]])

    def stability(self, count: int, *, by: str = "size", seed: int = 0, resamples: int = RESAMPLES) -> float:
        """How stable the first so many are: the mean Jaccard index with those of resamples, from 0 to 1 (the same).

        NaN of fewer than two clusters, or where the scores of single pairs are not known. Raises InvalidOption.
        """
        validation.whole("The number of nodes", count, least=1, most=len(self.scores))
        if self.by_cluster is None or len(self.by_cluster) < 2:
            return np.nan
        counts = resample_counts(len(self.by_cluster), resamples, seed)
        drawn = counts @ self.by_cluster
        first = {*_order(np.array([*self.scores.values()]), by)[:count].tolist()}
        shared = [len(first.intersection(_order(scores, by)[:count].tolist())) for scores in drawn]
        return float(np.mean([same / (2 * count - same) for same in shared]))

    def write(self, path: str | Path, *, width: int, parallel: bool, size: int, by: str = "size") -> Path:
        """Writes a score file as EAP-IG and MIB read it, the first `size` nodes and the edges among them in the graph.

        `width` is the model's d_model, and `parallel` whether attention and MLP of a layer read the same stream. A file
        must have a score for each edge: it is that of the node where the edge begins, and no score of its own. Raises
        InvalidOption where there are no single heads, MachineError.
        """
        return write_scores(Path(path), self.scores, self.first(size, by=by), width=width, parallel=parallel)


def _order(scores: np.ndarray, by: str) -> np.ndarray:
    """Places, first to last; of equal scores the first one comes first."""
    validation.one_of("way to rank", by, ("size", "sign"))
    return np.argsort(-(abs(scores) if by == "size" else scores), kind="stable")


def node_ranking(measurements: Measurements, *, effect: str | None = None, metric: str | None = None) -> NodeRanking:
    """Every head (by z), MLP, attention or mixer that a trace has at all tokens, by one effect and metric.

    `effect` is restoration, disruption or estimated (default: estimated where there are estimates, else the first that
    was measured). Raises InvalidOption where nodes were not patched at all tokens.
    """
    measurements.kinds_by(metric)
    metric = metric or measurements.metric
    kinds = [kind for kind in (BLOCKS.name, SINGLE_HEADS.name) if kind in measurements.maps]
    parts = [_of_kind(measurements, kind, effect, metric) for kind in kinds]
    scores = {name: values for part, _ in parts for name, values in part.items()}
    if not scores:
        raise InvalidOption(
            "This trace has no nodes: trace components=['mlp_out'] and heads=True with positions='together' and "
            "head_positions='together'."
        )
    ids = [str(id) for id in measurements.pairs.pair.values]
    by_pair = np.stack([*scores.values()], axis=1)
    there = np.flatnonzero(~np.isnan(by_pair).any(1)).tolist()
    if not there:
        raise InvalidOption(
            f"No pair has a number by {metric} for every node: some failed, or the metric is undefined."
        )
    codes = cluster_codes(clusters_of(measurements, [ids[n] for n in there]))
    by_cluster = cluster_means(by_pair[there], codes)
    means = means_over_clusters(by_cluster).tolist()
    over = f"mean over {len(there)} pairs" if len(there) > 1 else "one pair"
    said = f"{parts[0][1]} by {metric}, {over}"
    return NodeRanking(scores=dict(zip(scores, means, strict=True)), source=said, by_cluster=by_cluster)


def _of_kind(
    measurements: Measurements, kind: str, effect: str | None, metric: str
) -> tuple[dict[str, np.ndarray], str]:
    """Each node's effect by pair, and what it is in words."""
    found = effects(measurements, kind, metrics=[metric]).sel(metric=metric)
    require_finite(found)
    usual = [name for name in ("estimated", *measurements.directions) if name in found]
    name = effect or usual[0]
    if name not in usual:
        raise InvalidOption(f"Nodes cannot be ranked by {name!r} here. {nearest(name, usual)}")
    at, how = _at_all_tokens(found, name)
    scores = {}
    for component in map(str, found.component.values):
        if component in WHOLE:
            here = at.sel(component=component).transpose("pair", "layer")
            scores |= {f"{component} {layer}": here.sel(layer=layer).values for layer in here.layer.values}
        elif component == HEAD:
            here = at.sel(component=component).transpose("pair", "layer", "head")
            scores |= {
                f"{component} {layer}.{head}": here.sel(layer=layer, head=head).values
                for layer in here.layer.values
                for head in here["head"].values
            }
    said = "estimated effect of each node" if name == "estimated" else f"exact {name} of each node alone"
    return scores, f"{said}, {how}"


def _at_all_tokens(found: xr.Dataset, name: str) -> tuple[xr.DataArray, str]:
    """An effect at all tokens. Raises InvalidOption where some alone were patched."""
    if columns_of(found) == [TOGETHER]:
        return found[name].sel(position=TOGETHER), "at all tokens together"
    lengths = (found.clean_token != "").sum("token").values
    if not has_sum(found) or found.sizes["position"] < max(lengths):
        raise InvalidOption(
            "This trace has nodes at some tokens, and a circuit's are patched at all of them: trace with "
            "positions='together' and head_positions='together'."
        )
    known = found[[name, "status"]]
    if name == "estimated":  # of what was not patched, too
        known = known.assign(status=known.status.where(known.status != "not_patched", "ok"))
    return summed(known, name)[name], "added up over tokens"
