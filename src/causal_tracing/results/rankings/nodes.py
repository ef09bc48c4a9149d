"""A ranking of nodes (heads and MLPs): what a trace says of each of them at all tokens.

A score is the mean over pairs (clusters count once) of the effect of a node at all tokens: patched at all of them
together, or, where tokens were patched one by one or estimated, the sum over them.
"""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from causal_tracing.errors import InvalidOption
from causal_tracing.results.columns import columns_of
from causal_tracing.results.effects import effects
from causal_tracing.results.means import require_finite
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.ranked import has_sum, summed
from causal_tracing.results.rankings.ranking import Ranking, effect_named, over_pairs
from causal_tracing.results.rankings.score_files import write_scores
from causal_tracing.results.site_kinds import BLOCKS, SINGLE_HEADS

WHOLE, HEAD, TOGETHER = ("attn_out", "mlp_out", "mixer_out"), "z", "together"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NodeRanking(Ranking):
    """A ranking of nodes."""

    _written = staticmethod(write_scores)


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
    return NodeRanking(**over_pairs(measurements, scores, parts[0][1], metric))


def _of_kind(
    measurements: Measurements, kind: str, effect: str | None, metric: str
) -> tuple[dict[str, np.ndarray], str]:
    """Each node's effect by pair, and what it is in words."""
    found = effects(measurements, kind, metrics=[metric]).sel(metric=metric)
    require_finite(found)
    name = effect_named(measurements, found, effect)
    at, how = _at_all_tokens(found, name)
    scores = {}
    for component in map(str, found.component.values):
        # The axes have all layers, and the most heads that any of them has.
        there = (found.status.sel(component=component) != "unpaired").any(("pair", "position"))
        if component in WHOLE:
            here = at.sel(component=component).transpose("pair", "layer")
            scores |= {
                f"{component} {layer}": here.sel(layer=layer).values
                for layer in here.layer.values
                if there.sel(layer=layer)
            }
        elif component == HEAD:
            here = at.sel(component=component).transpose("pair", "layer", "head")
            scores |= {
                f"{component} {layer}.{head}": here.sel(layer=layer, head=head).values
                for layer in here.layer.values
                for head in here["head"].values
                if there.sel(layer=layer, head=head)
            }
    said = "estimated effect of each node" if name == "estimated" else f"exact {name} of each node alone"
    return scores, f"{said}, {how}"


def _at_all_tokens(found: xr.Dataset, name: str) -> tuple[xr.DataArray, str]:
    """An effect at all tokens. Raises InvalidOption where some alone were patched."""
    if columns_of(found) == [TOGETHER]:
        return found[name].sel(position=TOGETHER), "at all tokens together"
    lengths = (found.clean_token != "").sum("token").values
    # Sums over tokens are of all of them: one that was not patched may be the one that matters.
    if not has_sum(found) or found.sizes["position"] < max(lengths):
        raise InvalidOption(
            "This trace has nodes at some tokens, and a circuit's are patched at all of them: trace with "
            "positions='together' and head_positions='together'."
        )
    known = found[[name, "status"]]
    if name == "estimated":  # of what was not patched, too
        known = known.assign(status=known.status.where(known.status != "not_patched", "ok"))
    return summed(known, name)[name], "added up over tokens"
