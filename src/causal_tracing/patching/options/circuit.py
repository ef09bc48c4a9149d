"""The options of `circuit`: where the ranking comes from, and those of a trace that it needs, under shorter names."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from causal_tracing.errors import InvalidOption
from causal_tracing.interventions.write import Write
from causal_tracing.patching.metrics.metric import Metric
from causal_tracing.patching.options import node_texts
from causal_tracing.patching.options.choices import PATH_METHODS
from causal_tracing.patching.options.declare import CIRCUIT, check_values, option, same
from causal_tracing.patching.options.nodes import check_nodes
from causal_tracing.patching.options.spelling import Flag, Flags, Text
from causal_tracing.patching.options.trace import Options, Progress, RunOptions

SHORTER = {
    "circuit_of": "of",
    "circuit_by": "by",
    "circuit_sizes": "sizes",
    "circuit_how": "how",
    "circuit_input": "keep_input",
    "circuit_tested": "tested",
    "circuit_subsets": "subsets",
}
RANKINGS, FROM, FILE = ("exact", "estimates", *PATH_METHODS), "ranking_from", "file"


def check_ranking(value: Any) -> None:
    """How to rank, a file, a trace, a ranking, names, or scores. Raises InvalidOption for what is none of these."""
    if isinstance(value, (str, PathLike)) or hasattr(value, "scores") or hasattr(value, "measurements"):
        return
    check_nodes(value)


def _read(name: str, flags: Flags) -> Any:
    """What two flags say together. Raises InvalidOption where both do."""
    text, file = flags.get(name), flags.get(FROM)
    if text is not None and file is not None:
        raise InvalidOption("--ranking and --ranking-from both say what comes first: give one of them.")
    if file is not None:
        return Path(file)
    if isinstance(text, str) and (text.endswith(".json") or os.path.exists(text)):
        raise InvalidOption(f"--ranking {text!r} is a file or folder. Give it as --ranking-from {text}.")
    return text if text in RANKINGS or not isinstance(text, str) else node_texts.nodes(text)


def _names_a_file(value: Any) -> bool:
    """Whether a table is {file = "..."}; with a number it is a score, as of anything else."""
    return isinstance(value, Mapping) and {*value} == {FILE} and isinstance(value[FILE], str)


def _write(name: str, value: Any) -> dict[str, Any]:
    if _names_a_file(value):
        return {FROM: value[FILE]}
    return {name: value if isinstance(value, str) else node_texts.NODES.write(name, value)[name]}


RANKING = Text(
    read=_read,
    write=_write,
    fits=lambda value: node_texts.is_ranking(value) or _names_a_file(value),
    form='"exact", "estimates", a list of nodes or edges, a table of scores, or {file = "scores.json"}',
    example='Such as exact, or "z 23.4; mlp_out 29; z 23.5", or with --of edges "z 23.4 -> mlp_out 25".',
    more=(
        Flag(
            name=FROM,
            kind=Path,
            help="A score file of EAP-IG or MIB (JSON), or the folder of a saved trace or of estimates, instead.",
        ),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitOptions:
    """The options of `circuit`. Raises InvalidOption for a value that cannot be meant."""

    ranking: Any = option(
        "exact",
        help="What ranks the nodes or edges: exact (each is patched alone, at all tokens, in these pairs), estimates "
        "(in these pairs; of edges by reception, or say eap, eap-ig, reception), or names, the first ones first, or "
        "names with scores.",
        python="Or a Trace or Attribution that has them at all tokens, a ranking (`trace.nodes()`, `trace.edges()`), "
        "or the path of a score file or of a saved trace.",
        group=CIRCUIT,
        text=RANKING,
        check=check_ranking,
        # What it comes to is recorded: names or scores, and in words where they come from.
        recorded=False,
    )
    of: str = same(Options, "circuit_of")
    by: str = same(Options, "circuit_by")
    sizes: Sequence[int | float] | None = same(Options, "circuit_sizes")
    how: str = same(Options, "circuit_how")
    keep_input: bool = same(Options, "circuit_input")
    tested: int | float | None = same(Options, "circuit_tested")
    subsets: int = same(Options, "circuit_subsets")
    write: str | Write = same(Options, "write")  # noqa: RUF009 - a field, as the others
    align: str = same(Options, "align")
    control: str | None = same(Options, "control")
    metric: str | Metric | Sequence[str | Metric] | None = same(Options, "metric")  # noqa: RUF009 - a field, as others
    metrics: str | Sequence[str] | None = same(Options, "metrics")
    budget: int | None = same(Options, "budget")
    engine: str = same(Options, "engine")
    seed: int = same(Options, "seed")
    spot_checks: int = same(Options, "spot_checks")
    progress: bool | Progress = same(Options, "progress")  # noqa: RUF009 - a field, as the others

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitRunOptions(CircuitOptions):
    """The same for a file of pairs in a folder."""

    keep: str = same(RunOptions, "keep")
    shard: Sequence[int] = same(RunOptions, "shard")
    workers: int | str | None = same(RunOptions, "workers")
    retry_failed: bool = same(RunOptions, "retry_failed")


def as_of_a_trace(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a trace that these of a circuit mean, but for the ranking itself."""
    left = {name: value for name, value in given.items() if name != "ranking"}
    named = {long: left.pop(short) for long, short in SHORTER.items() if short in left}
    return {"components": (), **named, **left}
