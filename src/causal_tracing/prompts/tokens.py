"""A prompt as the model reads it: token ids, where each lies in the text, and the role of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from causal_tracing.errors import InvalidPair, UnsupportedTokenizer

Column = int | str  # of a map: a token's position, or a role or span
ROLES = ("before_subject", "subject_first", "subject_middle", "subject_last", "next", "further", "last")
MARK = "causal-tracing-mark"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPrompt:
    """One prompt's tokens: ids, the text of each, the role of each, and the tokens of each named span.

    `special` says which are special tokens, such as the one that some tokenizers put first.
    """

    text: str
    tokens: tuple[int, ...]
    strings: tuple[str, ...]
    special: tuple[bool, ...]
    roles: tuple[str, ...]
    subject: tuple[int, ...]
    spans: Mapping[str, tuple[int, ...]]

    def positions(self, name: str) -> tuple[int, ...]:
        """The positions of a role or of a named span; empty if no token has it."""
        if name in self.spans:
            return self.spans[name]
        return tuple(position for position, role in enumerate(self.roles) if role == name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A prompt's text as the tokenizer gets it: where the user's own begins, and whether it adds special tokens."""

    text: str
    start: int = 0
    special: bool = True


def as_message(text: str, tokenizer: Any) -> Written:
    """The text as a user's message in the tokenizer's chat template, up to where the model answers.

    The template writes its own special tokens, so that the tokenizer adds none. Raises UnsupportedTokenizer.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UnsupportedTokenizer("This tokenizer has no chat template. Leave out chat (--chat).")

    def written(content: str) -> str:
        said = [{"role": "user", "content": content}]
        return str(tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True))

    start, full = written(MARK).find(MARK), written(text)
    for shown, skipped in ((text, 0), (text.strip(), len(text) - len(text.lstrip()))):  # some templates strip
        if start >= 0 and shown and full.startswith(shown, start):
            return Written(text=full, start=start - skipped, special=False)
    raise UnsupportedTokenizer(
        f"This tokenizer's chat template changes the message {text!r}: its tokens could not be found again. Write the "
        "whole prompt yourself, without chat."
    )


def encode(text: str, tokenizer: Any, *, special: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
    """A prompt's token ids, special tokens included, and each token's [start, end) in the text."""
    if not getattr(tokenizer, "is_fast", False):
        raise UnsupportedTokenizer(
            f"{type(tokenizer).__name__} cannot say where its tokens lie in the text (it is not a fast tokenizer). "
            "Load the fast version of this tokenizer, or convert it (AutoTokenizer does, where it can)."
        )
    encoding = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True, add_special_tokens=special)
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


def token_strings(text: str, ids: list[int], offsets: list[tuple[int, int]], tokenizer: Any) -> tuple[str, ...]:
    """The stretch of text that each token adds; special tokens and pieces of a letter by the tokenizer's name."""
    strings, reached = [], 0
    for token, (start, end) in zip(ids, offsets, strict=True):
        piece = text[reached:end] if end > start else ""
        strings.append(piece or tokenizer.decode([token]))
        reached = max(reached, end)
    return tuple(strings)


def roles_of(length: int, subject: tuple[int, ...]) -> tuple[str, ...]:
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
