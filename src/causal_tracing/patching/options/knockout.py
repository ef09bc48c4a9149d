"""The options of `knockout`: those of a trace that it needs, under shorter names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from causal_tracing import validation
from causal_tracing.errors import InvalidOption
from causal_tracing.patching.metrics.metric import Metric
from causal_tracing.patching.options import texts
from causal_tracing.patching.options.declare import ATTENTION, check_values, option, same, specs
from causal_tracing.patching.options.trace import Options, Progress, RunOptions
from causal_tracing.prompts.tokens import Column

SHORTER = {f"knockout_{name}": name for name in ("query", "keys", "window", "cut", "by")}
# The groups of Geva et al. 2023 (arXiv 2304.14767), whose windows are cut at the edges. The first token, which is often
# a sink, is shown apart from the subject.
GEVA = {"keys": ("subject", "subject_but_first", "non_subject", "first", "last"), "window": 9, "cut": True}
KNOCKOUT_PRESETS = ("geva",)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnockoutOptions:
    """The options of `knockout`. Raises InvalidOption for a value that cannot be meant."""

    query: Column = same(Options, "knockout_query")  # noqa: RUF009 - a field, as the others
    keys: str | Sequence[Column] = same(Options, "knockout_keys")
    window: int = same(Options, "knockout_window")
    cut: bool = same(Options, "knockout_cut")
    by: str = same(Options, "knockout_by")
    heads: bool = option(False, help="Every single head too, in single layers.", group=ATTENTION, text=texts.SWITCH)
    preset: str | None = option(
        None,
        help='"geva": windows of 9 layers, cut at the edges; the keys are the subject, all that is not, and the last '
        "token itself, with the first token apart.",
        group=ATTENTION,
        text=texts.WORD,
        check=partial(validation.one_of, "preset", valid=KNOCKOUT_PRESETS),
        names=KNOCKOUT_PRESETS,
    )
    layers: Sequence[int] | None = same(Options, "layers")
    align: str = same(Options, "align")
    metric: str | Metric | Sequence[str | Metric] | None = same(Options, "metric")  # noqa: RUF009 - a field, as others
    budget: int | None = same(Options, "budget")
    engine: str = same(Options, "engine")
    seed: int = same(Options, "seed")
    spot_checks: int = same(Options, "spot_checks")
    progress: bool | Progress = same(Options, "progress")  # noqa: RUF009 - a field, as the others

    def __post_init__(self) -> None:
        check_values(self)
        for name, value in GEVA.items() if self.preset else ():
            if getattr(self, name) not in (specs(self)[name].default, value):
                raise InvalidOption(f'preset="geva" sets {name} by itself: leave {name}= out, or the preset.')


@dataclass(frozen=True, slots=True, kw_only=True)
class KnockoutRunOptions(KnockoutOptions):
    """The same for a file of pairs in a folder."""

    keep: str = same(RunOptions, "keep")
    shard: Sequence[int] = same(RunOptions, "shard")
    workers: int | str | None = same(RunOptions, "workers")
    retry_failed: bool = same(RunOptions, "retry_failed")


def as_of_a_trace(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a trace that these of a knockout mean."""
    left = dict(given)
    preset, heads = left.pop("preset", None), left.pop("heads", False)
    left |= GEVA if preset else {}
    named = {long: left.pop(short) for long, short in SHORTER.items() if short in left}
    return {"components": (), "knockout": ("layers", "heads") if heads else ("layers",), **named, **left}
