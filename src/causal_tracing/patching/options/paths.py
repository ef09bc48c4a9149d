"""The options of paths: which sites send, and who receives what they add to the stream."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from causal_tracing import validation
from causal_tracing.errors import InvalidOption
from causal_tracing.patching.kinds.receivers import receiver
from causal_tracing.patching.named_sites import check_named_sites
from causal_tracing.patching.options.declare import PATHS, option
from causal_tracing.patching.options.sets import SetOptions, check_named_sets
from causal_tracing.patching.options.site_texts import NAMED

# What adds to the stream: heads, attention, MLPs, what a layer of one part adds, and the embedding (resid_pre 0).
SENDERS = ("z", "attn_out", "mlp_out", "mixer_out", "resid_pre")
Named = Mapping[str, Sequence[str]] | Sequence[str]


def check_receivers(values: Any, name: str) -> None:
    """Raises InvalidOption for what is no list of receivers, or names one twice."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise InvalidOption(f'{name} is a list of receivers, such as ["q 24.4", "logits"]; it is {values!r}.')
    validation.once("receiver", [str(receiver(value)) for value in values])


def _check_named(name: str, check: Any, value: Any) -> None:
    """A list, or names with lists. Raises InvalidOption."""
    if isinstance(value, Mapping):
        check_named_sets(name, value, check)
    else:
        check(value, name)


def _kept(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: list(each) for name, each in value.items()}
    return value and list(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class PathOptions(SetOptions):
    """From which senders to which receivers paths are followed."""

    senders: Named | None = option(
        None,
        help="Paths through the residual stream: the sites (z, attn_out, mlp_out, resid_pre 0) whose addition to the "
        "stream is followed to each receiver, all that adds to it between them held. By name, several are one sender.",
        python='A list of sites, such as ["each z @ last"], or a mapping from names to lists.',
        group=PATHS,
        text=NAMED,
        check=partial(_check_named, "senders=", check_named_sites),
        kept=_kept,
        beside="senders",
    )
    receivers: Named | None = option(
        None,
        help="Who receives: q, k or v of heads, attn_out, mlp_out, logits; every single one unless said otherwise. By "
        "name, several are one receiver, each of which reads what the others make of it.",
        python='A list, such as ["each q", "mlp_out 25", "logits"], or a mapping from names to lists.',
        group=PATHS,
        text=NAMED,
        check=partial(_check_named, "receivers=", check_receivers),
        kept=_kept,
        beside="senders",
    )
