"""A pair is text; `tokenize` finds its tokens, its spans and the token of its answer.

1. Each prompt is tokenised once, with offsets: where every token lies in the text.
2. Spans (subject, and any others) are found in the text, then mapped to tokens by offsets.
3. Answer and foil are the tokens that follow the prompt when prompt + answer is tokenised.
4. Tokens of the clean prompt are paired with tokens of the corrupt one (`alignment.py`).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from causal_tracing import validation
from causal_tracing.errors import InvalidOption, InvalidPair, nearest
from causal_tracing.prompts.alignment import ALIGNMENTS, Slot, aligned, remarks
from causal_tracing.prompts.answers import check_letters, checked_texts, each_of
from causal_tracing.prompts.cells import as_python
from causal_tracing.prompts.notes import of_answer, of_end, of_letters, of_span, of_start, of_unknown
from causal_tracing.prompts.scored import Follower, Tokens, check_apart
from causal_tracing.prompts.tokens import (
    ROLES,
    TokenPrompt,
    Written,
    as_message,
    encode,
    find_span,
    require_places,
    roles_of,
    span_positions,
    token_strings,
)

TEXTS = ("clean", "corrupt", "subject", "corrupt_subject", "cluster", "id")  # of a pair, where one is a single text
TAKEN = ("each", "together", "sum")  # what a position can be beside a number, a role or a span
# The fields that are one text or number each: what flags, forms and command lines can say of a pair.
PLAIN_FIELDS = ("clean", "corrupt", "answer", "foil", "subject", "corrupt_subject", "occurrence")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A clean prompt with its answer, and a corrupt prompt with its foil.

    `answer` and `foil` are the texts that follow right after the prompts, a leading space included (" Rome"). Either
    may be a set, given as a list of texts ([" he", " his"]) and kept as a tuple: its probability is the sum of theirs,
    its logit the logarithm of the sum of exp(logit). No text of a set may begin another one, or be in both sets.
    `subject` is a stretch of the clean prompt (`corrupt_subject` of the corrupt one), its `occurrence`-th from the left
    (0-based; negative: from the right). `spans` names further stretches, each where it stands first, which can be asked
    for as positions, so that no name is a whole number; `corrupt_spans` says of these what they are in the corrupt
    prompt, where that is another text. Pairs of one `cluster` share a fact; `id` names the pair in results (default:
    its place), and `labels` are kept with it there. With `chat`, the prompts are a user's messages, put through the
    tokenizer's chat template, and answer and foil begin the model's reply. Raises InvalidPair.

        >>> Pair(clean="The nurse said", corrupt="The king said", answer=[" she", " her"], foil=[" he", " his"])
    """

    clean: str
    answer: str | Sequence[str]
    corrupt: str | None = None
    foil: str | Sequence[str] | None = None
    subject: str | None = None
    corrupt_subject: str | None = None
    occurrence: int = 0
    spans: Mapping[str, str] = field(default_factory=dict, hash=False)
    corrupt_spans: Mapping[str, str] = field(default_factory=dict, hash=False)
    cluster: str | None = None
    labels: Mapping[str, Any] = field(default_factory=dict, hash=False)
    id: str | None = None
    chat: bool = False

    def __post_init__(self) -> None:
        # A frozen value, set once here: what numpy has for texts and numbers would be told from ours.
        for name in (*TEXTS, "answer", "foil", "occurrence", "chat"):
            object.__setattr__(self, name, as_python(getattr(self, name)))
        for name in ("answer", "foil"):
            if name == "answer" or self.foil is not None:
                # A list would be shared with the caller, and of one text is that text.
                object.__setattr__(self, name, checked_texts(f"{self._who}: {name}", getattr(self, name)))
        for name in TEXTS:
            value = getattr(self, name)
            if value is None and name != "clean":
                continue
            if not isinstance(value, str):
                raise InvalidPair(f"{self._who}: {name} must be a text, and is {value!r}.")
            if not value:
                raise InvalidPair(f"{self._who}: {name} is empty. Give a text, or leave it out.")
            check_letters(f"{self._who}: {name}", value)
        # True is an int to isinstance.
        if type(self.occurrence) is not int:
            raise InvalidPair(f"{self._who}: occurrence must be a whole number, and is {self.occurrence!r}.")
        if type(self.chat) is not bool:
            raise InvalidPair(f"{self._who}: chat must be true or false, and is {self.chat!r}.")
        _check_labels(self._who, self.labels)
        _check_spans(self._who, "spans", self.spans)
        _check_spans(self._who, "corrupt_spans", self.corrupt_spans)
        for name in self.corrupt_spans:
            if name not in self.spans:
                raise InvalidPair(f"{self._who}: corrupt_spans names {name!r}, and spans does not. Name it in both.")

    @property
    def _who(self) -> str:
        return f"pair {self.id!r}" if isinstance(self.id, str) else "this pair"


def _check_labels(who: str, labels: Any) -> None:
    """Raises InvalidPair for labels that a saved trace, which is JSON, could not hold."""
    if not isinstance(labels, Mapping):
        raise InvalidPair(f"{who}: labels must map names to values, and is {labels!r}.")
    for name, value in labels.items():
        try:
            # As traces are written, which allows for less depth, and as data hubs read them.
            json.dumps({name: value}, indent=1, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidPair(
                f"{who}: the label {name!r} is a {type(value).__name__}, which JSON cannot hold ({error}). Give texts, "
                "numbers, lists and mappings, or leave it out."
            ) from None


def _check_spans(who: str, what: str, spans: Any) -> None:
    """Raises InvalidPair where these are no texts by names that a span can have."""
    if not isinstance(spans, Mapping) or not all(isinstance(part, str) and part for part in spans.values()):
        raise InvalidPair(f"{who}: {what} must map names to texts, and is {spans!r}.")
    for name, part in spans.items():
        check_letters(f"{who}: span {name!r}", part)
        _check_name(who, name)


def _check_name(who: str, name: Any) -> None:
    """Raises InvalidPair for a span that could be taken for another column: a token, a role, all of them."""
    if not isinstance(name, str) or not name.strip():
        raise InvalidPair(f"{who}: a span's name must be a text, and is {name!r}.")
    if name in (*ROLES, *TAKEN):
        raise InvalidPair(f"{who}: a span cannot be called {name!r}: the word has a meaning here.")
    if validation.whole_number(name.strip()) is not None:
        raise InvalidPair(
            f"{who}: a span cannot be called {name!r}: as a position it would be token {name}. Give it a name with a "
            f"letter, such as {'span_' + name.strip().lstrip('+-')!r}."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPair:
    """A pair as the model sees it. `answers` and `foils` are the tokens of each text; no foils where it has none.

    `slots` are the tokens that are patched for each other; `remarks`, what is to be known of how they were paired.
    """

    id: str
    pair: Pair
    clean: TokenPrompt
    corrupt: TokenPrompt
    slots: tuple[Slot, ...]
    answers: tuple[Tokens, ...]
    foils: tuple[Tokens, ...]
    remarks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    noised: tuple[int, ...] = ()  # positions, where noise corrupts; the corrupt prompt is then the clean one

    @property
    def alone(self) -> bool:
        """Whether nothing corrupts it, so that only its clean run is measured; the corrupt prompt is the clean one."""
        return self.pair.corrupt is None and not self.noised

    @property
    def answer(self) -> int:
        """The first token of the (first) answer."""
        return self.answers[0][0]

    @property
    def foil(self) -> int | None:
        """The first token of the (first) foil; None where there is none."""
        return self.foils[0][0] if self.foils else None

    @property
    def longest(self) -> int:
        """The tokens of the longest answer or foil."""
        return max(map(len, (*self.answers, *self.foils)))

    @property
    def several_tokens(self) -> bool:
        """Whether an answer or a foil is more than one token, so that all are scored teacher-forced."""
        return self.longest > 1

    @property
    def differing(self) -> tuple[int, ...]:
        """The clean prompt's positions whose token in the corrupt prompt is another one."""
        return tuple(here for here, there in self.slots if self.clean.tokens[here] != self.corrupt.tokens[there])

    @property
    def same_tokens(self) -> bool:
        """Whether the two prompts are the same to the model."""
        return self.clean.tokens == self.corrupt.tokens


def tokenize(
    pair: Pair, tokenizer: Any, *, align: str = "strict", noise: bool = False, alone: bool = False, id: str = "pair-0"
) -> TokenPair:
    """The pair's tokens, spans, roles, and the ids of answer and foil.

    `align` is "strict" (token by token), "suffix" (the right part that both prompts share) or "spans" (equal roles).
    `noise`: the clean prompt takes the corrupt one's place, and needs a subject. `alone`: the corrupt prompt may be
    missing. Raises InvalidOption (no such `align`), InvalidPair (a span that is not there, an answer that is its foil,
    no corrupt prompt), MisalignedPair (prompts that do not match in this way), UnsupportedTokenizer (no offsets, no
    chat template).
    """
    id = pair.id or id
    pair = replace(pair, id=id)
    if align not in ALIGNMENTS:
        raise InvalidOption(f"align={align!r} is not offered. {nearest(str(align), ALIGNMENTS)}")
    check_corruption(pair, noise=noise, alone=alone)
    clean, corrupt = _tokenize_prompts(pair, tokenizer)
    if noise and not clean.subject:
        raise InvalidPair(
            f"pair {id!r}: the subject {pair.subject!r} covers no token of the prompt ({'|'.join(clean.strings)}), so "
            "that there is nothing to add noise to. Give a subject of letters that the tokenizer keeps."
        )
    slots = aligned(align, clean, corrupt, id)
    answers, foils = (
        Follower(id=id, what=what, texts=each_of(texts), chat=pair.chat).tokens(prompts, tokenizer)
        # After both prompts, of which its own comes first: a text is scored in either run.
        for what, texts, prompts in (("answer", pair.answer, (clean, corrupt)), ("foil", pair.foil, (corrupt, clean)))
    )
    check_apart(id, answers, foils, each_of(pair.answer))
    return TokenPair(
        id=id,
        pair=pair,
        clean=clean,
        corrupt=corrupt,
        slots=slots,
        answers=answers,
        foils=foils,
        remarks=remarks(slots, clean, corrupt),
        notes=_notes(pair, clean, corrupt, (answers, foils), tokenizer),
        noised=clean.subject if noise else (),
    )


def check_corruption(pair: Pair, *, noise: bool, alone: bool = False) -> None:
    """Raises InvalidPair where a pair lacks what corrupts it (unless nothing need: `alone`), or has two such things."""
    if noise and not pair.subject:
        raise InvalidPair(f"pair {pair.id!r} has no subject. Noise is added to the subject's tokens: give subject=.")
    if noise and pair.corrupt is not None:
        raise InvalidPair(
            f"pair {pair.id!r} has a corrupt prompt, and noise was asked for: only one of them can corrupt. "
            "Leave out corrupt=, or the noise."
        )
    if not (noise or alone) and pair.corrupt is None:
        raise InvalidPair(
            f"pair {pair.id!r} has no corrupt prompt. Give corrupt= (and foil=), or corrupt the clean prompt by "
            "noise on its subject (subject= and noise=). Attention knockout alone needs none."
        )


def as_pairs(pairs: Any) -> list[Pair]:
    """One pair or several, as a list. Raises InvalidPair for what is no Pair."""
    listed: list[Any] = (
        list(pairs) if isinstance(pairs, Iterable) and not isinstance(pairs, (str, Mapping)) else [pairs]
    )
    for pair in listed:
        if not isinstance(pair, Pair):
            raise InvalidPair(
                f"A pair is needed, such as Pair(clean=..., corrupt=..., answer=...), not {repr(pair)[:200]}. Of rows, "
                "files and DataFrames read_pairs(...) makes pairs."
            )
    return listed


def named(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs, each with an id: its own, or its place. Raises InvalidPair where two share one."""
    found = [replace(pair, id=pair.id or f"pair-{n}") for n, pair in enumerate(pairs)]
    seen: set[str | None] = set()
    for pair in found:
        if pair.id in seen:
            raise InvalidPair(f"Two pairs have the id {pair.id!r}. Give each its own, or leave id out.")
        seen.add(pair.id)
    return found


def tokenize_pairs(
    pairs: Sequence[Pair], tokenizer: Any, *, align: str = "strict", noise: bool = False, alone: bool = False
) -> list[TokenPair]:
    """Each pair tokenised; a pair without an id is named by its place. Raises InvalidPair where two share an id."""
    if not pairs:
        raise InvalidPair("There is no pair to trace: the list is empty.")
    return [tokenize(pair, tokenizer, align=align, noise=noise, alone=alone) for pair in named(pairs)]


def _tokenize_prompts(pair: Pair, tokenizer: Any) -> tuple[TokenPrompt, TokenPrompt]:
    """Both prompts; the clean one twice where there is no corrupt one."""
    clean = _tokenize_prompt(pair.clean, pair, pair.subject, pair.spans, tokenizer)
    if pair.corrupt is None:
        return clean, clean
    subject = pair.corrupt_subject
    # Pairs that differ elsewhere than in the subject have it in both prompts, and name it once.
    if subject is None and pair.subject and pair.subject in pair.corrupt:
        subject = pair.subject
    # A span that is not said to be another text in the corrupt prompt is named there only where it is found.
    said = pair.corrupt_spans
    spans = {name: said.get(name, part) for name, part in pair.spans.items() if name in said or part in pair.corrupt}
    return clean, _tokenize_prompt(pair.corrupt, pair, subject, spans, tokenizer)


def _tokenize_prompt(
    text: str, pair: Pair, subject: str | None, spans: Mapping[str, str], tokenizer: Any
) -> TokenPrompt:
    """One prompt of a pair, with the tokens of its subject and its spans. Raises InvalidPair, UnsupportedTokenizer."""
    written = as_message(text, tokenizer) if pair.chat else Written(text=text)
    ids, offsets = encode(written.text, tokenizer, special=written.special)

    def positions(part: str, occurrence: int = 0) -> tuple[int, ...]:
        try:
            # In the user's text: a chat template may have the same words.
            start, end = find_span(text, part, occurrence)
        except InvalidPair as error:
            raise InvalidPair(f"pair {pair.id!r}: {error}") from None
        places = require_places(offsets, tokenizer)
        return span_positions(places, (start + written.start, end + written.start))

    subject_positions = positions(subject, pair.occurrence) if subject else ()
    special = {*tokenizer.all_special_ids}
    return TokenPrompt(
        text=written.text,
        tokens=tuple(ids),
        strings=token_strings(written.text, ids, offsets, tokenizer),
        special=tuple(token in special for token in ids),
        roles=roles_of(len(ids), subject_positions),
        subject=subject_positions,
        spans={name: positions(part) for name, part in spans.items()},
    )


def _notes(
    pair: Pair,
    clean: TokenPrompt,
    corrupt: TokenPrompt,
    scored: tuple[tuple[Tokens, ...], tuple[Tokens, ...]],
    tokenizer: Any,
) -> tuple[str, ...]:
    """What is legal, but probably not meant."""
    sides = {"clean": (pair.clean, pair.subject, clean)}
    if pair.corrupt is not None:
        sides["corrupt"] = (pair.corrupt, pair.corrupt_subject, corrupt)
    found: list[str] = [*of_end(clean, tokenizer, special=not pair.chat)]
    for side, (text, subject, prompt) in sides.items():
        found += of_start(side, prompt, tokenizer, special=not pair.chat)
        found += of_letters(f"{side} prompt", text, tokenizer)
        found += of_unknown(f"{side} prompt", text, prompt.tokens, tokenizer)
        found += of_span("subject", subject or pair.subject, side, text, pair.occurrence)
    for name, part in pair.spans.items():
        found += of_span(f"span {name!r}", part, "clean", pair.clean)
    for name, part in pair.corrupt_spans.items():
        found += of_span(f"span {name!r}", part, "corrupt", pair.corrupt or "")
    after = ("answer", pair.answer, clean), ("foil", pair.foil, corrupt)
    for (what, texts, prompt), each in zip(after, scored, strict=True):
        for text, tokens in zip(each_of(texts), each, strict=True):
            found += of_letters(what, text, tokenizer)
            found += of_unknown(what, text, tokens, tokenizer)
            found += of_answer(what, text, prompt, tokens, tokenizer, special=not pair.chat)
    return tuple(found)
