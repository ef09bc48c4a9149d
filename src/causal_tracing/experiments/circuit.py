"""Circuits: sets of nodes of growing size, by a ranking, and how much of the behaviour each of them keeps.

1. The ranking: exact effects of each node, estimates, an earlier result, a score file, or names.
2. The trace: a cell for each size, and where they are asked for the cells of completeness and minimality.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from causal_tracing.errors import InvalidOption
from causal_tracing.experiments.attribute import attribute
from causal_tracing.experiments.attribution_result import Attribution
from causal_tracing.experiments.keywords import Keywords
from causal_tracing.experiments.open_trace import open_trace
from causal_tracing.experiments.progress import telling
from causal_tracing.experiments.trace import measured, trace
from causal_tracing.experiments.trace_result import Trace
from causal_tracing.models.model import Model, require_model
from causal_tracing.patching.job import plan_job
from causal_tracing.patching.nodes import name_of, nodes_of
from causal_tracing.patching.options.circuit import RANKINGS, CircuitOptions, as_of_a_trace
from causal_tracing.patching.options.together import direction_of_circuit
from causal_tracing.patching.options.trace import Options
from causal_tracing.prompts.pairs import Pair
from causal_tracing.results.circuits import size_of
from causal_tracing.results.node_ranking import NodeRanking
from causal_tracing.results.score_files import read_scores

SHARED = ("write", "align", "control", "metric", "budget", "engine", "seed", "progress")  # with a trace that ranks
STABLE_AT = (0.02, 0.1)  # of the nodes: how stable the ranking's top is


@Keywords(CircuitOptions)
def circuit(model: Model, pairs: Pair | Sequence[Pair], options: CircuitOptions) -> Trace:
    """How much of each pair's behaviour a set of nodes keeps when all else is ablated, for sets of growing size.

    Nodes are heads (by z) and MLPs, at all tokens; all but the first k of a ranking are overwritten with what they are
    in the corrupt run (or with means or zeros, `write`), and those k compute live. f(C) = (m(C) − m(empty)) / (m(all) −
    m(empty)), where in the empty set the embedding is ablated too: 0 and 1 are measured ends. `trace.circuit()` holds
    the curve with 95 % intervals over pairs, CMD and CPR (MIB, Mueller et al. 2025, 2504.13151), completeness and
    minimality (Wang et al. 2022, 2211.00593); `trace.of("circuits")` the effects, over [metric, pair, component, size].

    model: from `load`.
    pairs: a Pair or several, each with a corrupt prompt of equally many tokens, and an answer of one token.

    Raises InputError (pairs, options; a ranking that is not of this model), ModelError, MachineError.

    Example:
        found = ct.circuit(model, pairs, ranking=["mlp_out 0", "z 23.4", "z 23.5"], sizes=[1, 2, 3])
        found.circuit().curve
    """
    given = {each.name: getattr(options, each.name) for each in fields(options)}
    asked = as_of_a_trace(given)
    asked |= ranked(ranking_of(model, pairs, given["ranking"], given_of(asked)), by=options.by, seed=options.seed)
    with telling(options.progress) as progress:
        return Trace(measured(plan_job(model, pairs, Options(**asked)), progress))


def ranked(found: NodeRanking | Mapping[str, float] | Sequence[str], *, by: str, seed: int = 0) -> dict[str, Any]:
    """The options of a trace that say which nodes come first, and in words where that comes from."""
    if not isinstance(found, NodeRanking):
        return {"circuit": found}
    return {"circuit": dict(found.scores), "circuit_source": f"{found.source}{_stable(found, by, seed)}"}


def _stable(found: NodeRanking, by: str, seed: int) -> str:
    """How stable the first nodes are, in words; nothing where that is not known."""
    sizes = dict.fromkeys(size_of(share, len(found.scores)) for share in STABLE_AT)
    shares = {size: found.stability(size, by=by, seed=seed) for size in sizes}
    if any(share != share for share in shares.values()):
        return ""
    listed = ", ".join(f"the first {size}: {share:.2f}" for size, share in shares.items())
    return f"; overlap of the first nodes with those of resampled pairs (mean Jaccard index): {listed}"


def given_of(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Of the options of a trace, those by which its nodes are ranked too."""
    how = asked.get("circuit_how", "kept")
    return {"direction": direction_of_circuit(how)} | {name: asked[name] for name in SHARED if name in asked}


def ranking_of(
    model: Model, pairs: Pair | Sequence[Pair], ranking: Any, given: Mapping[str, Any]
) -> NodeRanking | Mapping[str, float] | Sequence[str]:
    """Whatever ranks the nodes of a model, as scores or names; `given` are those of `given_of`."""
    require_model(model)
    if isinstance(ranking, str) and ranking in RANKINGS:
        return _of_model(model, _traced(model, pairs, ranking, given).nodes())
    if isinstance(ranking, (str, Path)):
        path = Path(ranking)
        return _of_model(model, open_trace(path).nodes() if path.is_dir() else _of_file(model, path))
    if isinstance(ranking, Trace):
        return _of_model(model, ranking.nodes())
    return _of_model(model, ranking) if isinstance(ranking, NodeRanking) else ranking


def _traced(model: Model, pairs: Pair | Sequence[Pair], ranking: str, given: Mapping[str, Any]) -> Trace:
    """Every node alone, at all tokens: patched, or estimated."""
    nodes = nodes_of(model)
    shared = dict(given)
    direction = shared.pop("direction")
    whole = list(dict.fromkeys(node.component for node in nodes if node.parts is None))
    heads = ["z"] if any(node.parts is not None for node in nodes) else []
    if ranking == "exact":
        at = {"positions": "together", "head_positions": "together", "directions": [direction], "spot_checks": 0}
        return trace(model, pairs, components=whole, heads=heads, **at, **shared)
    for name in ("write", "control"):
        if shared.pop(name, None) not in (None, "donor"):
            raise InvalidOption(
                f'ranking="estimates" estimates patches between prompts: leave {name}= out, or rank by "exact".'
            )
    found = attribute(model, pairs, components=[*whole, *heads], direction=direction, verify=1, sample=1, **shared)
    assert isinstance(found, Attribution)
    return found


def _of_file(model: Model, path: Path) -> NodeRanking:
    """The scores of a file. Raises InvalidOption where it is of a model of another shape."""
    found = read_scores(path)
    nodes = nodes_of(model)
    layers, heads = len(model.active), len([node for node in nodes if node.component == "z" and node.layers == (0, 0)])
    if (found.layers, found.heads) != (layers, heads):
        raise InvalidOption(
            f"{path} is of a model of {found.layers} layers of {found.heads} heads, and {model.name} has {layers} of "
            f"{heads or 'attention as a whole'}. Give the scores of this model."
        )
    return NodeRanking(scores=found.scores, source=found.source)


def _of_model(model: Model, ranking: NodeRanking) -> NodeRanking:
    """The ranking of this model's nodes, and of no others. Raises InvalidOption where some have no score."""
    names = [name_of(node) for node in nodes_of(model)]
    missing = [name for name in names if name not in ranking.scores]
    if missing:
        raise InvalidOption(
            f"The ranking has no score for {len(missing)} of the model's {len(names)} nodes, such as {missing[0]!r}. "
            "Trace every head by z and every MLP, at all tokens, or name the nodes."
        )
    places = {name: place for place, name in enumerate(ranking.scores)}
    at = [places[name] for name in names]
    by_cluster = None if ranking.by_cluster is None else ranking.by_cluster[:, at]
    scores = {name: ranking.scores[name] for name in names}
    return NodeRanking(scores=scores, source=ranking.source, by_cluster=by_cluster)
