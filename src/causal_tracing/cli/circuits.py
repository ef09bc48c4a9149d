"""What the command `circuit` does before it traces: the ranking is found, said, and written where that is asked for."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from causal_tracing.cli import console
from causal_tracing.errors import Note

if TYPE_CHECKING:
    from causal_tracing.models.model import Model
    from causal_tracing.prompts.pairs import Pair

USUAL = "exact"


def meant(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a trace, with the ranking as it was asked for."""
    from causal_tracing.patching.options.circuit import as_of_a_trace

    return as_of_a_trace(options) | {"ranking": options.get("ranking", USUAL)}


def finished(
    model: "Model",
    pairs: "list[Pair]",
    options: Mapping[str, Any],
    *,
    scores: Path | None,
    out: Path | None,
    dry_run: bool,
) -> dict[str, Any]:
    """The options of the trace with nodes or edges by name or score, first to last. Raises what `circuit` raises."""
    from causal_tracing.experiments.circuit import given_of, ranked, ranking_of

    left = dict(options)
    ranking = left.pop("ranking", USUAL)
    if dry_run:  # a world takes as long whatever comes first
        names, of = _names(model, left), left.get("circuit_of", "nodes")
        if isinstance(ranking, str):
            console.note(f"The ranking ({ranking}) comes first, and is not counted here: {len(names)} {of}.")
        return left | {"circuit": names if isinstance(ranking, (str, Path)) else ranking}
    if isinstance(ranking, str) and (kept := _begun(out)):
        console.note(f"What comes first is as {out} was begun with.")
        return left | kept
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Note)  # the trace of the sets says it, as a note
        found = ranking_of(model, _traceable(model, pairs, left), ranking, given_of(left))
    if scores is not None:
        _write(model, found, scores, left)
    return left | ranked(found, by=left.get("circuit_by", "size"))


def _begun(out: Path | None) -> dict[str, Any]:
    """The ranking of a run folder that is gone on with: made again it could differ in its last bits."""
    from causal_tracing.results.storage.run_folder import is_run_folder, read_manifest

    if out is None or not is_run_folder(out):
        return {}
    options = read_manifest(out)["spec"]["options"]
    return {name: options[name] for name in ("circuit", "circuit_source") if name in options}


def _traceable(model: "Model", pairs: "list[Pair]", options: Mapping[str, Any]) -> "list[Pair]":
    """The pairs that can be traced: of a file, one that cannot fails by itself."""
    from causal_tracing.experiments.filter import traceable_pairs
    from causal_tracing.patching.options.trace import Options
    from causal_tracing.prompts.pairs import named

    if len(pairs) == 1:
        return pairs
    asked = Options(**{"circuit": _names(model, options), **options})
    # Where none can be traced, all of them are tried, so that the reason is said.
    return list(traceable_pairs(model, named(pairs), asked).pairs) or pairs


def _names(model: "Model", options: Mapping[str, Any]) -> list[str]:
    """All nodes, or all edges, of the model."""
    from causal_tracing.patching.kinds.circuits import GRAPHS

    return [*GRAPHS[options.get("circuit_of", "nodes")](model).names]


def _write(model: "Model", found: Any, path: Path, options: Mapping[str, Any]) -> None:
    from causal_tracing.errors import InvalidOption
    from causal_tracing.experiments.circuit import shape_of
    from causal_tracing.results.circuits import size_of
    from causal_tracing.results.rankings.edges import EdgeRanking
    from causal_tracing.results.rankings.nodes import NodeRanking

    if model.backend is not None:
        raise InvalidOption(f"--scores needs the shape of the model, and {model.name} is elsewhere: leave it out.")
    if not isinstance(found, NodeRanking | EdgeRanking):
        raise InvalidOption("--scores writes scores, and this ranking has names alone: rank by scores.")
    size = size_of(options.get("circuit_tested") or 1.0, len(found.scores))
    sums = model.layout(0).sums
    parallel = len(sums) == 1 and len(sums[0].parts) > 1
    found.write(
        path,
        width=model.width,
        parallel=parallel,
        size=size,
        by=options.get("circuit_by", "size"),
        shape=shape_of(model),
    )
    console.wrote(path)
    console.note(f"wrote {path}")
