"""A ranking of edges: what a map of paths says of each of them, where its senders are single ones at all tokens."""

from dataclasses import dataclass, field

import numpy as np

from causal_tracing.errors import InvalidOption
from causal_tracing.results.effects import effects
from causal_tracing.results.means import require_finite
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.rankings.ranking import Ranking, effect_named, over_pairs
from causal_tracing.results.rankings.score_files import ARROW, write_edge_scores
from causal_tracing.results.site_kinds import PATHS

EVERYWHERE = " @ all"  # as senders end that are patched at all tokens


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EdgeRanking(Ranking):
    """A ranking of edges. `unreached` are pairs of a sender and a receiver that nothing passes between: zero."""

    unreached: frozenset[str] = field(default=frozenset())

    _written = staticmethod(write_edge_scores)


def edge_ranking(measurements: Measurements, *, effect: str | None = None, metric: str | None = None) -> EdgeRanking:
    """Every edge that a map of paths has, by one effect and metric: the mean over pairs, of which clusters count once.

    `effect` is restoration, disruption or estimated (default: estimated where there are estimates, else the first that
    was measured). Raises InvalidOption where there are no paths, or none from single senders at all tokens.
    """
    if PATHS.name not in measurements.maps:
        raise InvalidOption("This trace has no edges: use paths() or attribute(method='reception'), with at='all'.")
    measurements.kinds_by(metric)
    metric = metric or measurements.metric
    found = effects(measurements, PATHS.name, metrics=[metric]).sel(metric=metric, component=PATHS.components[0])
    require_finite(found)
    name = effect_named(measurements, found, effect)
    senders = [str(each) for each in found.sender.values]
    receivers = [str(each) for each in found.receiver.values]
    if not all(each.endswith(EVERYWHERE) for each in senders):
        raise InvalidOption(
            "The paths of this trace begin at some tokens, and the edges of a circuit are at all of them: use at='all'."
        )
    numbers, status = (found[each].transpose("pair", "sender", "receiver").values for each in (name, "status"))
    # Zero in every pair: nothing passes there whatever is asked, so that it is no edge of the model.
    zero = (status == "structural_zero").all(0)
    names = {
        (s, r): f"{sender.removesuffix(EVERYWHERE)}{ARROW}{receiver}"
        for s, sender in enumerate(senders)
        for r, receiver in enumerate(receivers)
        if receiver != PATHS.margin
    }
    by_pair: dict[str, np.ndarray] = {named: numbers[:, *at] for at, named in names.items() if not zero[at]}
    said = "estimated effect of each edge" if name == "estimated" else f"exact {name} of each edge alone"
    unreached = frozenset(named for at, named in names.items() if zero[at])
    return EdgeRanking(**over_pairs(measurements, by_pair, f"{said}, at all tokens", metric), unreached=unreached)
