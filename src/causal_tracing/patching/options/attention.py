"""The options of attention: keys that are hidden from a query, and single edges of it. Declared as all others are."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from causal_tracing import validation
from causal_tracing.errors import InvalidOption
from causal_tracing.patching.named_sites import Numbers, some_range
from causal_tracing.patching.options import texts
from causal_tracing.patching.options.checks import check_column, check_listed
from causal_tracing.patching.options.declare import ATTENTION, option
from causal_tracing.prompts.tokens import Column

OF_KNOCKOUT, HOW, PARTS = ("layers", "heads"), ("blocked", "zeroed"), ("q", "k", "v")
HEADS_OF_LAYERS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:\.(\d{1,6})(?:-(\d{1,6}))?)?")


def _check_queries(name: str, value: Any) -> None:
    """One position, role or span, or a list of them. Raises InvalidOption."""
    if isinstance(value, str):
        return
    if not isinstance(value, Sequence):
        check_column(name, value)
        return
    validation.columns(f"{name}=", value)
    if not value:
        raise InvalidOption(f'{name}= is empty. Use "each", or a position, a role or a span, or several.')


def heads_named(text: Any) -> tuple[Numbers, Numbers | None]:
    """The layers and the heads of each (None: all) that a text such as `23`, `23.4` or `20-23.0-2` names.

    Raises InvalidOption with the form that is meant.
    """
    found = HEADS_OF_LAYERS.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise InvalidOption(
            f'edge_heads= names {text!r}. Name layers, or heads of them, such as "23", "23.4", "20-23.0-2".'
        )
    first, last, head, last_head = found.groups()
    layers = some_range(text, "layers", first, last)
    assert layers is not None
    return layers, some_range(text, "heads", head, last_head)


def _check_edge_heads(values: Any) -> None:
    """A list of layers and heads, or none. Raises InvalidOption."""
    validation.texts("edge_heads=", values)
    if not values:
        raise InvalidOption("edge_heads= is empty: leave it out for all heads of the layers.")
    for value in values:
        heads_named(value)


def _query(name: str, beside: str) -> Any:
    return option(
        "last",
        help="Which token attends: a position, a role or a span (all of its tokens).",
        group=ATTENTION,
        text=texts.POSITION,
        check=partial(check_column, name),
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
        check=partial(check_listed, "kind of knockout", OF_KNOCKOUT),
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
        check=partial(check_listed, "part of an edge", PARTS),
        kept=lambda value: ["v"] if value is True else value,
        beside="edges",
    )
    edge_query: Column | Sequence[Column] = option(
        "last",
        help='Which token attends: a position, a role or a span (all of its tokens). Several, or "each": a map of '
        "queries by keys for every head.",
        group=ATTENTION,
        text=texts.QUERIES,
        check=partial(_check_queries, "edge_query"),
        always=True,
        beside="edges",
    )
    edge_heads: Sequence[str] | None = option(
        None,
        help="Which heads, by layer, such as 23 (all of it), 23.4, 20-23.0-2 (default: all of the layers).",
        python='A list, such as ["23.4", "24"].',
        group=ATTENTION,
        text=texts.NAMES,
        check=_check_edge_heads,
        beside="edges",
    )
    edge_keys: str | Sequence[Column] = _keys("edge_keys", "edges")
