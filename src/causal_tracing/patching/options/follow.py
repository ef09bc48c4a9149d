"""The options of `paths`: those of a trace that it needs, with every sender and receiver unless said otherwise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from causal_tracing.errors import InvalidOption
from causal_tracing.interventions.noise import Noise
from causal_tracing.interventions.write import Write
from causal_tracing.patching.metrics.metric import Metric
from causal_tracing.patching.options import texts
from causal_tracing.patching.options.checks import check_column
from causal_tracing.patching.options.declare import PATHS, check_values, option, same
from causal_tracing.patching.options.trace import Options, Progress, RunOptions
from causal_tracing.prompts.tokens import Column


def check_senders_at(senders: Any, at: Column) -> None:
    """Raises InvalidOption where senders are named, and a token for those that are not."""
    if senders and at != "last":
        raise InvalidOption(f'senders= says itself at which tokens ("z 3.1 @ {at}"): leave at={at!r} out.')


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowOptions:
    """The options of `paths`. Raises InvalidOption for a value that cannot be meant."""

    senders: Mapping[str, Sequence[str]] | Sequence[str] | None = same(
        Options,
        "senders",
        help="Who sends: sites (z, attn_out, mlp_out, resid_pre 0) whose addition to the residual stream is followed "
        "to each receiver, all that adds to it between them held. By name, several are one sender. Default: every head "
        "by its z, every MLP and the embedding, at the token that `at` names.",
    )
    receivers: Mapping[str, Sequence[str]] | Sequence[str] | None = same(Options, "receivers")
    at: Column = option(
        "last",
        help="The token whose senders are followed, where none are named: a position, a role, a span, all tokens "
        "together (all), or each by itself (each).",
        group=PATHS,
        text=texts.POSITION,
        check=partial(check_column, "at"),
    )
    directions: Sequence[str] | None = same(Options, "directions")
    align: str = same(Options, "align")
    metric: str | Metric | Sequence[str | Metric] | None = same(Options, "metric")  # noqa: RUF009 - a field, as others
    metrics: str | Sequence[str] | None = same(Options, "metrics")
    noise: Noise | None = same(Options, "noise")  # noqa: RUF009 - a field, as the others
    write: str | Write = same(Options, "write")  # noqa: RUF009 - a field, as the others
    budget: int | None = same(Options, "budget")
    engine: str = same(Options, "engine")
    seed: int = same(Options, "seed")
    spot_checks: int = same(Options, "spot_checks")
    progress: bool | Progress = same(Options, "progress")  # noqa: RUF009 - a field, as the others

    def __post_init__(self) -> None:
        check_values(self)
        check_senders_at(self.senders, self.at)


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowRunOptions(FollowOptions):
    """The same for a file of pairs in a folder."""

    keep: str = same(RunOptions, "keep")
    shard: Sequence[int] = same(RunOptions, "shard")
    workers: int | str | None = same(RunOptions, "workers")
    retry_failed: bool = same(RunOptions, "retry_failed")


def as_paths_of_a_trace(given: Mapping[str, Any], each: Sequence[str]) -> dict[str, Any]:
    """The options of a trace that these mean, with `each` sender of the model where they name none."""
    named = {name: value for name, value in given.items() if name != "at"}
    return {"components": (), **named, "senders": named.get("senders") or each}
