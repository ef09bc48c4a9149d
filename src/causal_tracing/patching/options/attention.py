"""The options of attention: keys that are hidden from a query, and single edges of it. Declared as all others are."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from causal_tracing import validation
from causal_tracing.errors import InvalidOption
from causal_tracing.patching.options import texts
from causal_tracing.patching.options.declare import ATTENTION, option
from causal_tracing.prompts.tokens import Column

OF_KNOCKOUT, HOW, PARTS = ("layers", "heads"), ("blocked", "zeroed"), ("q", "k", "v")


def _check_listed(what: str, valid: Sequence[str], value: Any) -> None:
    """True, False, or a list of these names. Raises InvalidOption."""
    if value is not True and value is not False and value not in ((), []):
        validation.names(what, value, valid)


def _check_query(name: str, value: Any) -> None:
    """One position, role or span. Raises InvalidOption."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise InvalidOption(f'{name}= is one position, role or span, such as "last"; it is {value!r}.')


def _query(name: str, beside: str) -> Any:
    return option(
        "last",
        help="Which token attends: a position, a role or a span (all of its tokens).",
        group=ATTENTION,
        text=texts.POSITION,
        check=partial(_check_query, name),
        always=True,
        beside=beside,
    )


def _keys(name: str, beside: str) -> Any:
    return option(
        "each",
        help='"each" token, or token positions, roles, spans, subject, subject_but_first, non_subject (neither subject '
        "nor last), first. The tokens of a name are taken together.",
        group=ATTENTION,
        text=texts.POSITIONS,
        check=partial(validation.columns, f"{name}="),
        always=True,
        beside=beside,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionOptions:
    """What is done to how queries attend."""

    knockout: bool | Sequence[str] = option(
        False,
        help="Attention knockout: a query of the clean run cannot see keys; of layers (all heads of a layer or a "
        "window), heads (single ones).",
        python="True: layers.",
        group=ATTENTION,
        text=texts.LISTED,
        check=partial(_check_listed, "kind of knockout", OF_KNOCKOUT),
        kept=lambda value: ["layers"] if value is True else value,
        beside="knockout",
    )
    knockout_query: Column = _query("knockout_query", "knockout")  # noqa: RUF009 - a field, as the others
    knockout_keys: str | Sequence[Column] = _keys("knockout_keys", "knockout")
    knockout_window: int = option(
        1,
        help="In how many layers together keys are hidden; of heads in single ones.",
        group=ATTENTION,
        text=texts.NUMBER,
        check=partial(validation.whole, "knockout_window=", least=1),
        beside="knockout",
    )
    knockout_cut: bool = option(
        False,
        help="Cut windows at the model's edges, so that every layer has one.",
        group=ATTENTION,
        text=texts.SWITCH,
        beside="knockout",
    )
    knockout_by: str = option(
        "blocked",
        help="blocked (the softmax is over the other keys, as if a mask hid these) or zeroed (their weight is taken "
        "away behind the softmax, and no other key gets it).",
        group=ATTENTION,
        text=texts.WORD,
        check=partial(validation.one_of, "way of hiding keys", valid=HOW),
        names=HOW,
        beside="knockout",
    )
    edges: bool | Sequence[str] = option(
        False,
        help="Single edges of attention, head by head: what one query sees at a key, as the other run has it; by any "
        "of q (the score with the other run's query), k, v.",
        python="True: v.",
        group=ATTENTION,
        text=texts.LISTED,
        check=partial(_check_listed, "part of an edge", PARTS),
        kept=lambda value: ["v"] if value is True else value,
        beside="edges",
    )
    edge_query: Column = _query("edge_query", "edges")  # noqa: RUF009 - a field, as the others
    edge_keys: str | Sequence[Column] = _keys("edge_keys", "edges")
