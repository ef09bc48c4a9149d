"""Circuits: sets of nodes or edges of growing size, by a ranking, and how much of the behaviour each of them keeps.

1. The ranking: exact effects of each, estimates, an earlier result, a score file, or names.
2. The trace: a cell for each size, and where they are asked for the cells of completeness and minimality.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np

from causal_tracing.errors import InvalidOption
from causal_tracing.experiments.attribute import attribute
from causal_tracing.experiments.keywords import Keywords
from causal_tracing.experiments.open_trace import open_trace
from causal_tracing.experiments.paths import paths
from causal_tracing.experiments.progress import telling
from causal_tracing.experiments.trace import measured, trace
from causal_tracing.experiments.trace_result import Trace
from causal_tracing.models.model import Model, require_model
from causal_tracing.patching.job import plan_job
from causal_tracing.patching.kinds.circuits import GRAPHS
from causal_tracing.patching.kinds.nodes import name_of, nodes_of
from causal_tracing.patching.options.choices import PATH_METHODS
from causal_tracing.patching.options.circuit import RANKINGS, CircuitOptions, as_of_a_trace
from causal_tracing.patching.options.declare import values_of
from causal_tracing.patching.options.together import direction_of_circuit
from causal_tracing.patching.options.trace import Options
from causal_tracing.prompts.pairs import Pair
from causal_tracing.results.circuits import size_of
from causal_tracing.results.rankings.edges import EdgeRanking
from causal_tracing.results.rankings.nodes import NodeRanking
from causal_tracing.results.rankings.ranking import Ranking
from causal_tracing.results.rankings.score_files import Shape, read_edge_scores, read_scores

SHARED = ("write", "align", "control", "metric", "budget", "engine", "seed", "progress")  # with a trace that ranks
STABLE_AT = (0.02, 0.1)  # of the nodes or edges: how stable the ranking's top is
USUAL_OF_EDGES = "reception"  # what estimates of edges are, unless another method is named
HOW_TO_RANK = {
    "nodes": "Trace every head by z and every MLP, at all tokens, or name the nodes.",
    "edges": "Follow or estimate all paths of all senders (at='all'), or name the edges.",
}
Ranked = Ranking | Mapping[str, float] | Sequence[str]


@Keywords(CircuitOptions)
def circuit(model: Model, pairs: Pair | Sequence[Pair], options: CircuitOptions) -> Trace:
    """How much of each pair's behaviour a set of nodes or edges keeps when all else is ablated, for growing sets.

    Nodes are heads (by z) and MLPs, at all tokens; all but the first k of a ranking are overwritten with what they are
    in the corrupt run (or with means or zeros, `write`), and those k compute live. With of="edges" the sets are of
    edges, from the embedding, heads and MLPs to queries, keys, values, MLPs and the logits: of all but the first k the
    reader reads what the sender adds in the corrupt run (Hanna et al. 2024, 2403.17806).

    f(C) = (m(C) − m(empty)) / (m(all) − m(empty)), where in the empty set the embedding is ablated too: 0 and 1 are
    measured ends. `trace.circuit()` holds the curve with 95 % intervals over pairs, CMD and CPR (MIB, Mueller et al.
    2025, 2504.13151), completeness and minimality (Wang et al. 2022, 2211.00593); `trace.of("circuits")` the effects,
    over [metric, pair, component, size].

    model: from `load`.
    pairs: a Pair or several, each with a corrupt prompt of equally many tokens, and an answer of one token.

    Raises InputError (pairs, options; a ranking that is not of this model), ModelError, MachineError.

    Example:
        found = ct.circuit(model, pairs, ranking=["mlp_out 0", "z 23.4", "z 23.5"], sizes=[1, 2, 3])
        found.circuit().curve
        ct.circuit(model, pairs, of="edges", ranking="reception").circuit().curve
    """
    given = values_of(options)
    asked = as_of_a_trace(given)
    asked |= ranked(ranking_of(model, pairs, given["ranking"], given_of(asked)), by=options.by, seed=options.seed)
    with telling(options.progress) as progress:
        return Trace(measured(plan_job(model, pairs, Options(**asked)), progress))


def ranked(found: Ranked, *, by: str, seed: int = 0) -> dict[str, Any]:
    """The options of a trace that say what comes first, and in words where that comes from."""
    if not isinstance(found, Ranking):
        return {"circuit": found}
    return {"circuit": dict(found.scores), "circuit_source": f"{found.source}{_stable(found, by, seed)}"}


def _stable(found: Ranking, by: str, seed: int) -> str:
    """How stable the top is, in words; nothing where that is not known."""
    sizes = dict.fromkeys(size_of(share, len(found.scores)) for share in STABLE_AT)
    shares = {size: found.stability(size, by=by, seed=seed) for size in sizes}
    if any(map(isnan, shares.values())):
        return ""
    of = "edges" if isinstance(found, EdgeRanking) else "nodes"
    listed = ", ".join(f"the first {size}: {share:.2f}" for size, share in shares.items())
    return f"; overlap of the first {of} with those of resampled pairs (mean Jaccard index): {listed}"


def given_of(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Of the options of a trace, those by which its nodes or edges are ranked too."""
    how, of = asked.get("circuit_how", "kept"), asked.get("circuit_of", "nodes")
    return {"of": of, "direction": direction_of_circuit(how)} | {n: asked[n] for n in SHARED if n in asked}


def ranking_of(model: Model, pairs: Pair | Sequence[Pair], ranking: Any, given: Mapping[str, Any]) -> Ranked:
    """Whatever ranks the nodes or edges of a model, as scores or names; `given` are those of `given_of`."""
    require_model(model)
    model.require_as_loaded()
    shared = dict(given)
    of = shared.pop("of")
    # Its own words first: a file that is called "exact" can be named as "./exact".
    if isinstance(ranking, str) and ranking in RANKINGS:
        ranking = (_traced_edges if of == "edges" else _traced)(model, pairs, ranking, **shared)
    elif isinstance(ranking, (str, Path)):
        path = Path(ranking)
        ranking = open_trace(path) if path.is_dir() else _of_file(model, path, of)
    if isinstance(ranking, Trace):
        ranking = ranking.edges() if of == "edges" else ranking.nodes()
    return _of_model(model, ranking, of) if isinstance(ranking, Ranking) else ranking


def _traced(model: Model, pairs: Pair | Sequence[Pair], ranking: str, *, direction: str, **shared: Any) -> Trace:
    """Every node alone, at all tokens: patched, or estimated."""
    if ranking in PATH_METHODS:
        raise InvalidOption(f'ranking={ranking!r} estimates edges: ask for of="edges" too, or rank by "estimates".')
    nodes = nodes_of(model)
    whole = list(dict.fromkeys(node.component for node in nodes if node.parts is None))
    heads = ["z"] if any(node.parts is not None for node in nodes) else []
    if ranking == "exact":
        # No cells are run again: a ranking says in which order sets are measured, and these are what is checked.
        at = {"positions": "together", "directions": [direction], "spot_checks": 0}
        of_heads = {"heads": heads, "head_positions": "together"} if heads else {}
        return trace(model, pairs, components=whole, **of_heads, **at, **shared)
    given = _of_patches(shared, ranking)
    # As few as can be are patched, since what counts here is measured by the sets.
    return attribute(model, pairs, components=[*whole, *heads], direction=direction, verify=1, sample=1, **given)


def _traced_edges(model: Model, pairs: Pair | Sequence[Pair], ranking: str, *, direction: str, **shared: Any) -> Trace:
    """Every edge alone, at all tokens: patched, or estimated."""
    if ranking == "exact":
        if shared.pop("control", None) is not None:
            raise InvalidOption('ranking="exact" follows edges without a control: leave control= out, or name edges.')
        return paths(model, pairs, at="all", directions=[direction], spot_checks=0, **shared)
    method = ranking if ranking in PATH_METHODS else USUAL_OF_EDGES
    given = _of_patches(shared, ranking)
    return attribute(model, pairs, method=method, at="all", direction=direction, verify=1, sample=1, **given)


def _of_patches(shared: Mapping[str, Any], ranking: str) -> dict[str, Any]:
    """Without what estimates cannot follow. Raises InvalidOption where that was asked for."""
    given = dict(shared)
    for name in ("write", "control"):
        if given.pop(name, None) not in (None, "donor"):
            raise InvalidOption(
                f'ranking={ranking!r} estimates patches between prompts: leave {name}= out, or rank by "exact".'
            )
    return given


def _of_file(model: Model, path: Path, of: str) -> Ranking:
    """The scores of a file. Raises InvalidOption where it is of a model of another shape."""
    shape = shape_of(model)
    found = read_edge_scores(path, shape) if of == "edges" else read_scores(path, shape)
    if (found.layers, found.heads) != (shape.layers, shape.heads):
        raise InvalidOption(
            f"{path} is of a model of {found.layers} layers of {found.heads} heads, and {model.name} has "
            f"{shape.layers} of {shape.heads}. Give the scores of this model."
        )
    return (EdgeRanking if of == "edges" else NodeRanking)(scores=found.scores, source=found.source)


def shape_of(model: Model) -> Shape:
    """What a score file says of a model. Raises InvalidOption where it has other nodes than heads and MLPs."""
    nodes = nodes_of(model)
    if other := next((node.component for node in nodes if node.component not in ("z", "mlp_out")), None):
        raise InvalidOption(
            f"Score files are of single heads and MLPs, and {model.name} has other nodes, such as {other}. Give a "
            "saved trace, or scores by name."
        )
    layers = {node.layers[0] for node in nodes if node.component == "z" and node.layers}
    if not layers:
        raise InvalidOption(f"Score files are of single heads and MLPs, and {model.name} has no heads told apart.")
    shared = {layer: model.parts("z", layer) // model.parts("k", layer) for layer in layers}
    return Shape(nodes=tuple(map(name_of, nodes)), shared=shared)


def _of_model(model: Model, ranking: Ranking, of: str) -> Ranking:
    """The ranking of what this model has, and of nothing else. Raises InvalidOption where some have no score."""
    names = GRAPHS[of](model).names
    ranking = _with_zeros(ranking, names)
    missing = [name for name in names if name not in ranking.scores]
    if missing:
        raise InvalidOption(
            f"The ranking has no score for {len(missing)} of the model's {len(names)} {of}, such as {missing[0]!r}. "
            f"{HOW_TO_RANK[of]}"
        )
    places = {name: place for place, name in enumerate(ranking.scores)}
    at = [places[name] for name in names]
    by_cluster = None if ranking.by_cluster is None else ranking.by_cluster[:, at]
    return replace(ranking, scores={name: ranking.scores[name] for name in names}, by_cluster=by_cluster)


def _with_zeros(ranking: Ranking, names: Sequence[str]) -> Ranking:
    """The ranking with a score of 0 for edges of the model that nothing passed in these pairs."""
    zeros = [name for name in names if isinstance(ranking, EdgeRanking) and name in ranking.unreached]
    if not zeros:
        return ranking
    of_all = ranking.by_cluster
    more = None if of_all is None else np.hstack([of_all, np.zeros((len(of_all), len(zeros)))])
    return replace(ranking, scores={**ranking.scores, **dict.fromkeys(zeros, 0.0)}, by_cluster=more)
