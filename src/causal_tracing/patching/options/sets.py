"""The options of what is patched together: sets of sites by name, growing sets, and pairs of sites."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from causal_tracing import validation
from causal_tracing.errors import InvalidOption
from causal_tracing.patching.named_sites import check_named_sites
from causal_tracing.patching.options import texts
from causal_tracing.patching.options.attention import AttentionOptions
from causal_tracing.patching.options.declare import TOGETHER, option
from causal_tracing.patching.options.site_texts import INTERACTIONS, SETS

EVERY_HEAD = "each z @ last"
NAME = re.compile(r"[^\s=;|]([^=;|]*[^\s=;|])?")
Sets = Mapping[str, Sequence[str]]
Lists = Sequence[str] | Sequence[Sequence[str]]


def check_sets(value: Any) -> None:
    """Names with lists of sites. Raises InvalidOption."""
    if not isinstance(value, Mapping):
        raise InvalidOption(f'sets= maps names to lists of sites, such as {{"a": ["z 3.1 @ last"]}}; it is {value!r}.')
    check_named_sets("sets=", value, check_named_sites)


def check_named_sets(option: str, value: Mapping[Any, Any], check: Callable[[Any, str], None]) -> None:
    """Names with lists that `check` takes, each with what it is called. Raises InvalidOption."""
    for name, each in value.items():
        if not isinstance(name, str) or not NAME.fullmatch(name) or not name.isprintable():
            raise InvalidOption(f"A set's name must be one line without = ; | and outer spaces; it is {name!r}.")
        check(each, f"The set {name!r}" if option == "sets=" else f"{name!r} of {option}")
        if not each:
            raise InvalidOption(f"The set {name!r} has no sites: its effect is 0 and says nothing. Leave it out.")


def check_growing(value: Any) -> None:
    """True, False, or names of sets."""
    if not isinstance(value, bool):
        validation.texts("growing=", value)
        validation.once("growing set", value)


def check_interactions(value: Any) -> None:
    """True, False, a list of sites, or two of them. Raises InvalidOption."""
    if value is True or value is False or value in ((), []):
        return
    lists = listed(value)
    if not 1 <= len(lists) <= 2:
        raise InvalidOption(f"interactions= takes one list of sites or two; it got {len(lists)}.")
    for each in lists:
        check_named_sites(each, "interactions=")


def listed(value: Any) -> list[list[str]]:
    """The one or two lists of sites that `interactions=` names. Raises InvalidOption."""
    if value is True:
        return [[EVERY_HEAD]]
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InvalidOption(
            f'interactions= is a list of sites, such as ["each z 20-23 @ last"], or two of them; it is {value!r}.'
        )
    if all(isinstance(each, str) for each in value):
        return [list(value)]
    return [list(each) if isinstance(each, Sequence) and not isinstance(each, str) else [each] for each in value]


def _kept(value: Any) -> Any:
    lists = listed(value) if value else []
    return lists[0] if len(lists) == 1 else lists


@dataclass(frozen=True, slots=True, kw_only=True)
class SetOptions(AttentionOptions):
    """What is patched together."""

    sets: Sets | None = option(
        None,
        help="Sites that are patched together as one cell, by name: what they do jointly, what each does alone, and "
        "what they do beyond the sum of that.",
        python='A mapping from names to lists of sites: {"movers": ["z 23.4 @ last", "z 23.5 @ last"]}.',
        group=TOGETHER,
        text=SETS,
        check=check_sets,
        kept=lambda sets: sets and {name: list(sites) for name, sites in sets.items()},
        beside="sets",
    )
    growing: bool | Sequence[str] = option(
        False,
        help="The first site of a set, the first two, and so on: what each adds to those before it; true, or names of "
        "sets.",
        group=TOGETHER,
        text=texts.LISTED,
        check=check_growing,
        beside="sets",
    )
    interactions: bool | Lists = option(
        False,
        help="All pairs of these sites: what two do together beyond what each does alone, I(A,B) = e(AB) − e(A) − "
        "e(B).",
        python="True: all heads, by their outputs at the last token. A list of sites: all pairs among them. Two lists: "
        "each of the first with each of the second.",
        group=TOGETHER,
        text=INTERACTIONS,
        check=check_interactions,
        kept=_kept,
        beside="interactions",
    )
