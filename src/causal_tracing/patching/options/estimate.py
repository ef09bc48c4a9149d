"""The options of `attribute`: what is its own, and those that it has of a trace. Declared as all others are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from causal_tracing import validation
from causal_tracing.errors import InvalidOption
from causal_tracing.interventions.sites import PARTED, WHOLE
from causal_tracing.patching.metrics.metric import Metric, check_metrics, kept
from causal_tracing.patching.options import texts
from causal_tracing.patching.options.checks import one_of
from causal_tracing.patching.options.choices import METHODS, PATH_METHODS, SMOOTH
from causal_tracing.patching.options.declare import PATCHED, check_values, option, record, same
from causal_tracing.patching.options.follow import FollowOptions, check_senders_at
from causal_tracing.patching.options.trace import Options, Progress
from causal_tracing.results.arms import DIRECTIONS

_whole = partial(partial, validation.whole)
_named = one_of("metric", SMOOTH, " that has a gradient")
MOST_STEPS = 100_000  # of a gradient: more is a slip of the finger


def _check_metric(value: Any) -> None:
    """A name of those that have a gradient, or a Metric; whether its function has one is tried with the pairs."""
    if value is not None and not isinstance(value, (str, Metric)):
        raise InvalidOption(f"metric= of estimates is one name or one Metric; it is {value!r}.")
    if isinstance(value, Metric):
        check_metrics(value, SMOOTH)
    else:
        _named(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateOptions:
    """The options of `attribute`. Raises InvalidOption for a value that cannot be meant."""

    components: Sequence[str] | None = option(
        None,
        help="Of resid_pre, attn_out, resid_mid, mlp_out, mixer_out, resid_post, q, k, v, pattern, z, neurons, router, "
        "experts_in, experts (default: as for a trace).",
        group=PATCHED,
        text=texts.NAMES,
        check=partial(validation.names, "component", valid=(*WHOLE, *PARTED)),
    )
    method: str = option(
        "atp",
        help="Of sites: atp (attribution patching) or ig (integrated gradients). Of paths from senders to receivers: "
        "eap (edge attribution), eap-ig (over embeddings), or reception (a receiver's own arithmetic done exactly).",
        group=PATCHED,
        text=texts.WORD,
        check=partial(validation.one_of, "method", valid=METHODS),
        names=METHODS,
    )
    steps: int = option(
        10,
        help="Of the way from base to donor, for ig and eap-ig.",
        group=PATCHED,
        text=texts.NUMBER,
        check=_whole("steps=", least=1, most=MOST_STEPS),
    )
    direction: str = option(
        "restoration",
        help="restoration or disruption.",
        group=PATCHED,
        text=texts.WORD,
        check=partial(validation.one_of, "direction", valid=tuple(DIRECTIONS)),
        names=tuple(DIRECTIONS),
    )
    metric: str | Metric | None = option(
        None,
        help="logit_diff (default), log_prob (default without a foil), logit, prob or prob_diff.",
        python="One of these names, or a ct.Metric whose function is differentiable.",
        group=PATCHED,
        text=texts.WORD,
        check=_check_metric,
        names=SMOOTH,
        kept=kept,
    )
    verify: int = option(
        30,
        help="How many of the strongest of each component are patched.",
        group=PATCHED,
        text=texts.NUMBER,
        check=_whole("verify= (estimates are always checked)", least=1),
    )
    sample: int = option(
        100,
        help="How many of the rest of each component are patched, at random.",
        group=PATCHED,
        text=texts.NUMBER,
        check=_whole("sample= (estimates are always checked)", least=1),
    )
    senders: Mapping[str, Sequence[str]] | Sequence[str] | None = same(
        Options,
        "senders",
        help="Who sends, with a method of paths: sites (z, attn_out, mlp_out, resid_pre 0). By name, several are one "
        "sender. Default: every head by its z, every MLP and the embedding, at the token that `at` names.",
    )
    receivers: Mapping[str, Sequence[str]] | Sequence[str] | None = same(Options, "receivers")
    at: int | str = same(FollowOptions, "at")
    align: str = same(Options, "align")
    budget: int | None = same(Options, "budget")
    engine: str = same(Options, "engine")
    seed: int = same(Options, "seed")
    spot_checks: int = same(Options, "spot_checks")
    progress: bool | Progress = same(Options, "progress")  # noqa: RUF009 - a field, as the others

    def __post_init__(self) -> None:
        check_values(self)
        if self.of_paths:
            check_senders_at(self.senders, self.at)
            if self.components is not None:
                raise InvalidOption(
                    f"components= are sites, and method={self.method!r} estimates paths: name senders= and receivers=."
                )
        elif self.senders or self.receivers or self.at != "last":
            raise InvalidOption(
                f"senders=, receivers= and at= are of paths, and method={self.method!r} estimates sites: use method= "
                f"{', '.join(PATH_METHODS)}."
            )

    @property
    def of_paths(self) -> bool:
        """Whether paths are estimated, and not sites."""
        return self.method in PATH_METHODS

    def to_dict(self) -> dict[str, Any]:
        """What is kept of them with a result, as JSON holds it."""
        return record(self)
