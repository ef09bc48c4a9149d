"""Corrupt prompts out of other facts of the same relation: the same words with another subject.

1. Pairs of one relation (the label `relation`) are candidates for each other where subject and answer are others'.
2. In an order that the seed chooses, each candidate's subject is put in the place of the pair's own.
3. The first prompt with equally many tokens is the corrupt one; its fact's answer is the foil.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from causal_tracing.errors import FormatNote, InvalidOption, InvalidPair, some_of, warn
from causal_tracing.prompts.answers import each_of
from causal_tracing.prompts.pairs import Pair, named
from causal_tracing.prompts.tokens import encode, find_span
from causal_tracing.validation import one_of

BY = ("relation",)
Fact = tuple[str, str | Sequence[str]]  # a subject and its answer
SHOWN = 5  # pairs without a partner that are named


def corrupted(pairs: Sequence[Pair], by: str, tokenizer: Any, *, seed: int = 0) -> list[Pair]:
    """The pairs, each that had no corrupt prompt with one of its relation. The foil is the answer to it.

    A pair that finds no partner stays without a corrupt prompt, and is named in a FormatNote. Raises InvalidOption (no
    such way, no tokenizer), InvalidPair (no relation or subject, no partner for any).
    """
    one_of("way to corrupt", by, BY)
    if tokenizer is None:
        raise InvalidOption("corrupt_by= counts tokens: give tokenizer=model.tokenizer too.")
    called = [str(pair.id) for pair in named(pairs)]
    missing = [number for number, pair in enumerate(pairs) if pair.corrupt is None]
    related: dict[Any, dict[Fact, None]] = defaultdict(dict)  # facts, once each, in their order
    for number in missing:
        pair = pairs[number]
        related[_relation(pair, called[number])][str(pair.subject), pair.answer] = None
    found = list(pairs)
    for number in missing:
        facts = [*related[pairs[number].labels[by]]]
        # Seeded by its place: a pair's partner does not depend on how many random numbers others took.
        found[number] = _with_partner(
            pairs[number], called[number], facts, tokenizer, random.Random(f"{seed} {number}")
        )
    alone = [called[number] for number in missing if found[number].corrupt is None]
    if alone:
        _say(alone, len(missing))
    return found


def _relation(pair: Pair, id: str) -> Any:
    """The relation of a pair that has a subject too. Raises InvalidPair."""
    needed = {"a subject": pair.subject, "the label 'relation'": "relation" in pair.labels}
    missing = [name for name, there in needed.items() if not there]
    if missing:
        raise InvalidPair(
            f"pair {id!r} lacks {' and '.join(missing)}, by which corrupt_by='relation' finds another subject for its "
            "prompt. Give it, or a corrupt prompt."
        )
    return pair.labels["relation"]


def _with_partner(pair: Pair, id: str, facts: list[Fact], tokenizer: Any, chance: random.Random) -> Pair:
    """The pair with the first other subject that makes a prompt of equally many tokens; itself where none does."""
    try:
        start, end = find_span(pair.clean, str(pair.subject), pair.occurrence)
    except InvalidPair as error:
        raise InvalidPair(f"pair {id!r}: {error}") from None
    length = len(encode(pair.clean, tokenizer)[0])
    for subject, answer in _others(pair, facts, chance):
        corrupt = pair.clean[:start] + subject + pair.clean[end:]
        if len(encode(corrupt, tokenizer)[0]) == length:
            return replace(pair, corrupt=corrupt, corrupt_subject=subject, foil=answer)
    return pair


def _others(pair: Pair, facts: list[Fact], chance: random.Random) -> Iterator[Fact]:
    """The facts with another subject and another answer, in random order."""
    own = {text.strip() for text in each_of(pair.answer)}
    others = [
        (subject, answer)
        for subject, answer in facts
        if subject != pair.subject and own.isdisjoint(text.strip() for text in each_of(answer))
    ]
    yield from chance.sample(others, len(others))


def _say(alone: list[str], asked: int) -> None:
    """Warns of pairs without a partner. Raises InvalidPair where that is all of them."""
    said = (
        f"corrupt_by='relation': {len(alone)} of {asked} pairs find no other fact of their relation with another "
        f"answer and equally many tokens ({some_of(alone, SHOWN)})"
    )
    if len(alone) == asked:
        raise InvalidPair(f"{said}. Add facts of the same relation, or corrupt by noise (noise=, --noise 3sigma).")
    warn(f"{said}: they stay without a corrupt prompt.", FormatNote)
