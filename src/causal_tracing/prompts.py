"""A pair is text; `tokenize` finds its tokens, its spans and the token of its answer.

1. Each prompt is tokenised once, with offsets: where every token lies in the text.
2. Spans (subject, and any others) are found in the text, then mapped to tokens by offsets.
3. Answer and foil are the tokens that follow the prompt when prompt + answer is tokenised.
4. Clean and corrupt prompt must match token by token (`align="strict"`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from causal_tracing.errors import InvalidOption, InvalidPair, MisalignedPair, UnsupportedTokenizer, nearest

ROLES = ("before_subject", "subject_first", "subject_middle", "subject_last", "next", "further", "last")
ALIGNMENTS = ("strict",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A clean prompt with its answer, and a corrupt prompt with its foil.

    `answer` and `foil` are the texts that follow right after the prompts, a leading space included (" Rome").
    `subject` is a stretch of the clean prompt (`corrupt_subject` of the corrupt one), its `occurrence`-th
    from the left (0-based). `spans` names further stretches, which can be asked for as positions. Pairs of
    one `cluster` share a fact. Raises InvalidPair.
    """

    clean: str
    answer: str
    corrupt: str | None = None
    foil: str | None = None
    subject: str | None = None
    corrupt_subject: str | None = None
    occurrence: int = 0
    spans: Mapping[str, str] = field(default_factory=dict)
    cluster: str | None = None
    labels: Mapping[str, Any] = field(default_factory=dict)
    id: str | None = None

    def __post_init__(self) -> None:
        for name in ("clean", "answer", "corrupt", "foil", "subject", "corrupt_subject", "cluster", "id"):
            value = getattr(self, name)
            if value is None and name not in ("clean", "answer"):
                continue
            if not isinstance(value, str):
                raise InvalidPair(f"{self._who}: {name} must be a text, and is {value!r}.")
            if not value:
                raise InvalidPair(f"{self._who}: {name} is empty. Give a text, or leave it out.")
        if type(self.occurrence) is not int:
            raise InvalidPair(f"{self._who}: occurrence must be a whole number, and is {self.occurrence!r}.")
        if not isinstance(self.spans, Mapping) or not all(
            isinstance(part, str) and part for part in self.spans.values()
        ):
            raise InvalidPair(f"{self._who}: spans must map names to texts, and is {self.spans!r}.")
        for name in self.spans:
            if name in ROLES or name in ("each", "together"):
                raise InvalidPair(f"{self._who}: a span cannot be called {name!r}: the word has a meaning here.")

    @property
    def _who(self) -> str:
        return f"pair {self.id!r}" if isinstance(self.id, str) else "this pair"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPrompt:
    """One prompt's tokens: ids, the text of each, the role of each, and the tokens of each named span."""

    text: str
    tokens: tuple[int, ...]
    strings: tuple[str, ...]
    roles: tuple[str, ...]
    spans: Mapping[str, tuple[int, ...]]

    def positions(self, name: str) -> tuple[int, ...]:
        """The positions of a role or of a named span; empty if no token has it."""
        if name in self.spans:
            return self.spans[name]
        return tuple(position for position, role in enumerate(self.roles) if role == name)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPair:
    """A pair as the model sees it. `foil_tokens` is empty where the pair has no foil."""

    id: str
    pair: Pair
    clean: TokenPrompt
    corrupt: TokenPrompt
    answer_tokens: tuple[int, ...]
    foil_tokens: tuple[int, ...]
    notes: tuple[str, ...] = ()
    noised: tuple[int, ...] = ()  # positions, where noise corrupts; the corrupt prompt is then the clean one

    @property
    def answer(self) -> int:
        """The answer's first token."""
        return self.answer_tokens[0]

    @property
    def foil(self) -> int | None:
        """The foil's first token; None where there is no foil."""
        return self.foil_tokens[0] if self.foil_tokens else None

    @property
    def several_tokens(self) -> bool:
        """Whether answer or foil are more than one token, so that they are scored teacher-forced."""
        return max(len(self.answer_tokens), len(self.foil_tokens)) > 1

    @property
    def differing(self) -> tuple[int, ...]:
        """The positions at which the two prompts have different tokens."""
        both = zip(self.clean.tokens, self.corrupt.tokens, strict=True)
        return tuple(position for position, (clean, corrupt) in enumerate(both) if clean != corrupt)


def tokenize(
    pair: Pair, tokenizer: Any, *, align: str = "strict", noise: bool = False, id: str = "pair-0"
) -> TokenPair:
    """The pair's tokens, spans, roles, and the ids of answer and foil.

    Raises InvalidPair (a span that is not there, an answer that is its foil, no corrupt prompt), MisalignedPair
    (prompts that do not match token by token), UnsupportedTokenizer (no offsets).
    """
    id = pair.id or id
    pair = replace(pair, id=id)
    if align not in ALIGNMENTS:
        raise InvalidOption(f"align={align!r} is not offered. {nearest(align, ALIGNMENTS)}")
    _check_corruption(pair, noise=noise)
    clean = corrupt = _tokenize_prompt(pair.clean, pair, pair.subject, tokenizer)
    if pair.corrupt is not None:
        corrupt_subject = pair.corrupt_subject
        if corrupt_subject is None and pair.subject and pair.subject in pair.corrupt:
            corrupt_subject = pair.subject
        corrupt = _tokenize_prompt(pair.corrupt, pair, corrupt_subject, tokenizer, clean_side=False)
        _check_alignment(id, clean, corrupt)
    answer = _tokens_after(pair, "answer", pair.answer, (clean, corrupt), tokenizer)
    foil = _tokens_after(pair, "foil", pair.foil, (corrupt, clean), tokenizer) if pair.foil else ()
    if answer == foil:
        what = "token" if len(answer) == 1 else "tokens"
        raise InvalidPair(f"pair {id!r}: answer and foil are the same {what} ({pair.answer!r}): nothing to tell apart.")
    return TokenPair(
        id=id,
        pair=pair,
        clean=clean,
        corrupt=corrupt,
        answer_tokens=answer,
        foil_tokens=foil,
        notes=_notes(pair),
        noised=_subject_positions(pair, tokenizer) if noise else (),
    )


def _subject_positions(pair: Pair, tokenizer: Any) -> tuple[int, ...]:
    """The subject's tokens by their offsets: roles do not say, for the prompt's last token is `last` and no other."""
    _, offsets = encode(pair.clean, tokenizer)
    return span_positions(offsets, find_span(pair.clean, pair.subject or "", pair.occurrence))


def _check_corruption(pair: Pair, *, noise: bool) -> None:
    """Raises InvalidPair where a pair lacks what corrupts it, or has two such things."""
    if noise and not pair.subject:
        raise InvalidPair(f"pair {pair.id!r} has no subject. Noise is added to the subject's tokens: give subject=.")
    if noise and pair.corrupt is not None:
        raise InvalidPair(
            f"pair {pair.id!r} has a corrupt prompt, and noise was asked for: only one of them can corrupt. "
            "Leave out corrupt=, or the noise."
        )
    if not noise and pair.corrupt is None:
        raise InvalidPair(
            f"pair {pair.id!r} has no corrupt prompt. Give corrupt= (and foil=), or corrupt the clean prompt by "
            "noise on its subject (subject= and noise=)."
        )


def as_pairs(pairs: Any) -> list[Pair]:
    """One pair or several, as a list. Raises InvalidPair for what is no Pair."""
    listed: list[Any] = (
        list(pairs) if isinstance(pairs, Iterable) and not isinstance(pairs, (str, Mapping)) else [pairs]
    )
    for pair in listed:
        if not isinstance(pair, Pair):
            raise InvalidPair(f"A pair is needed, such as Pair(clean=..., corrupt=..., answer=...), not {pair!r}.")
    return listed


def tokenize_pairs(
    pairs: Sequence[Pair], tokenizer: Any, *, align: str = "strict", noise: bool = False
) -> list[TokenPair]:
    """Each pair tokenised; a pair without an id is named by its place. Raises InvalidPair where two share an id."""
    if not pairs:
        raise InvalidPair("There is no pair to trace: the list is empty.")
    tokenized = [tokenize(pair, tokenizer, align=align, noise=noise, id=f"pair-{n}") for n, pair in enumerate(pairs)]
    ids = [pair.id for pair in tokenized]
    for id in ids:
        if ids.count(id) > 1:
            raise InvalidPair(f"Two pairs have the id {id!r}. Give each its own, or leave id out.")
    return tokenized


def encode(text: str, tokenizer: Any) -> tuple[list[int], list[tuple[int, int]]]:
    """A prompt's token ids, special tokens included, and each token's [start, end) in the text."""
    if not getattr(tokenizer, "is_fast", False):
        raise UnsupportedTokenizer(
            f"{type(tokenizer).__name__} cannot say where its tokens lie in the text (it is not a fast tokenizer). "
            "Load the fast version of this tokenizer, or convert it (AutoTokenizer does, where it can)."
        )
    encoding = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    ids, mask = encoding["input_ids"], encoding["special_tokens_mask"]
    if not ids:
        raise InvalidPair(f"The prompt {text!r} has no tokens.")
    if mask[-1] and len(ids) > 1:
        raise UnsupportedTokenizer(
            f"This tokenizer puts {tokenizer.convert_ids_to_tokens(ids[-1])!r} after every prompt, so that nothing "
            "could be read after the text. Turn it off (add_eos_token=False)."
        )
    return list(ids), [tuple(span) for span in encoding["offset_mapping"]]


def find_span(text: str, part: str, occurrence: int = 0) -> tuple[int, int]:
    """[start, end) of the `occurrence`-th `part` in the text (negative: from the right). Raises InvalidPair."""
    starts = [start for start in range(len(text)) if text.startswith(part, start)]
    if not -len(starts) <= occurrence < len(starts):
        found = "is not in" if not starts else f"occurs {len(starts)} times (occurrence={occurrence} was asked for) in"
        raise InvalidPair(f"{part!r} {found} the prompt {text!r}. Spans are searched letter by letter.")
    start = starts[occurrence]
    return start, start + len(part)


def span_positions(offsets: Sequence[tuple[int, int]], span: tuple[int, int]) -> tuple[int, ...]:
    """The tokens that share at least one letter with a [start, end) of the text."""
    start, end = span
    return tuple(n for n, (first, last) in enumerate(offsets) if first < end and last > start and last > first)


def _tokenize_prompt(
    text: str, pair: Pair, subject: str | None, tokenizer: Any, *, clean_side: bool = True
) -> TokenPrompt:
    ids, offsets = encode(text, tokenizer)

    def positions(part: str) -> tuple[int, ...]:
        try:
            return span_positions(offsets, find_span(text, part, pair.occurrence if part == subject else 0))
        except InvalidPair as error:
            raise InvalidPair(f"pair {pair.id!r}: {error}") from None

    # A span may be worded otherwise in the corrupt prompt: there it is named only where it is found.
    spans = {name: positions(part) for name, part in pair.spans.items() if clean_side or part in text}
    subject_positions = positions(subject) if subject else ()
    return TokenPrompt(
        text=text,
        tokens=tuple(ids),
        strings=_token_strings(text, ids, offsets, tokenizer),
        roles=_roles(len(ids), subject_positions),
        spans=spans,
    )


def _token_strings(text: str, ids: list[int], offsets: list[tuple[int, int]], tokenizer: Any) -> tuple[str, ...]:
    """The stretch of text that each token adds; special tokens and pieces of a letter by the tokenizer's name."""
    strings, reached = [], 0
    for token, (start, end) in zip(ids, offsets, strict=True):
        piece = text[reached:end] if end > start else ""
        strings.append(piece or tokenizer.decode([token]))
        reached = max(reached, end)
    return tuple(strings)


def _roles(length: int, subject: tuple[int, ...]) -> tuple[str, ...]:
    """One role a token (priority: last, subject_last, subject_first, next). Without a subject only `last` is known."""
    if not subject:
        return ("",) * (length - 1) + ("last",)
    first, last = subject[0], subject[-1]
    roles = []
    for position in range(length):
        if position == length - 1:
            roles.append("last")
        elif position == last:
            roles.append("subject_last")
        elif position == first:
            roles.append("subject_first")
        elif first < position < last:
            roles.append("subject_middle")
        elif position < first:
            roles.append("before_subject")
        else:
            roles.append("next" if position == last + 1 else "further")
    return tuple(roles)


def _check_alignment(id: str, clean: TokenPrompt, corrupt: TokenPrompt) -> None:
    if len(clean.tokens) == len(corrupt.tokens):
        return
    both = zip(clean.tokens, corrupt.tokens, strict=False)
    shorter = min(len(clean.tokens), len(corrupt.tokens))
    part = next((position for position, (a, b) in enumerate(both) if a != b), shorter)
    raise MisalignedPair(
        f"pair {id!r} cannot be patched position by position.\n"
        f"  clean    {len(clean.tokens)} tokens: {'|'.join(clean.strings)}\n"
        f"  corrupt  {len(corrupt.tokens)} tokens: {'|'.join(corrupt.strings)}\n"
        f"They part at position {part}. Use prompts that have equally many tokens: choose another subject, "
        "or word the corrupt prompt otherwise."
    )


def _tokens_after(
    pair: Pair, what: str, text: str, prompts: tuple[TokenPrompt, TokenPrompt], tokenizer: Any
) -> tuple[int, ...]:
    """The tokens that `text` is after both prompts: found by tokenising prompt + text, never the text alone."""
    found = []
    for prompt in prompts:
        ids, offsets = encode(prompt.text + text, tokenizer)
        strings = _token_strings(prompt.text + text, ids, offsets, tokenizer)
        length = len(prompt.tokens)
        if tuple(ids[:length]) != prompt.tokens:
            raise InvalidPair(
                f"pair {pair.id!r}: {what} {text!r} changes the last tokens of the prompt that it follows: "
                f"{'|'.join(strings)} (the prompt alone: {'|'.join(prompt.strings)}). What would be scored is not "
                f"{text!r}. Move the white space: end the prompt without a space and begin the {what} with one."
            )
        if len(ids) == length:
            raise InvalidPair(f"pair {pair.id!r}: {what} {text!r} is no token after {prompt.text!r}: nothing to score.")
        found.append(tuple(ids[length:]))
    if found[0] != found[1]:
        shown = ", ".join("|".join(tokenizer.decode([token]) for token in tokens) for tokens in found)
        raise InvalidPair(
            f"pair {pair.id!r}: {what} {text!r} is other tokens after the clean prompt than after the corrupt one "
            f"({shown}): the two runs could not be compared."
        )
    return found[0]


def _notes(pair: Pair) -> tuple[str, ...]:
    """What is legal, but probably not meant."""
    notes = []
    for what, text, prompt in (("answer", pair.answer, pair.clean), ("foil", pair.foil, pair.corrupt)):
        if text and prompt and not text[0].isspace() and text[0].isalnum() and prompt[-1].isalnum():
            notes.append(
                f"{what} {text!r} is scored glued to the prompt: '…{prompt[-10:]}{text}'. Did you mean {' ' + text!r}?"
            )
    return tuple(notes)
