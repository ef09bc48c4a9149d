"""A prompt as the model reads it: token ids, where each lies in the text, and the role of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from causal_tracing.errors import InvalidPair, UnsupportedTokenizer
from causal_tracing.prompts.letters import alike
from causal_tracing.prompts.token_texts import in_pieces, token_text

Column = int | str  # of a map: a token's position, or a role or span
ROLES = ("before_subject", "subject_first", "subject_middle", "subject_last", "next", "further", "last")
TOGETHER = "together"  # all tokens at once; behind a name, all of that role or span
MARK = "causal-tracing-mark"
SPACE = "▁"
Offsets = list[tuple[int, int]]  # where each token lies in the text: [start, end)


def named_together(column: Any) -> str:
    """The role or span whose tokens a column takes together, such as "subject together"; "" for other columns."""
    name, _, last = column.rpartition(" ") if isinstance(column, str) else ("", "", "")
    return name if last == TOGETHER else ""


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

    def named(self, name: str) -> tuple[int, ...]:
        """The same; of "subject", where no span is called so, the whole subject."""
        return self.subject if name == "subject" and name not in self.spans else self.positions(name)


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
    # By a mark of our own: the user's words may stand in the template too.
    start, full = _message(MARK, tokenizer).find(MARK), _message(text, tokenizer)
    for shown, skipped in ((text, 0), (text.strip(), len(text) - len(text.lstrip()))):  # some templates strip
        if start >= 0 and shown and full.startswith(shown, start):
            return Written(text=full, start=start - skipped, special=False)
    raise UnsupportedTokenizer(
        f"This tokenizer's chat template changes the message {text!r}: its tokens could not be found again. Write the "
        "whole prompt yourself, without chat."
    )


def _message(content: str, tokenizer: Any) -> str:
    """What the chat template makes of a user's message. Raises UnsupportedTokenizer where it makes nothing."""
    said = [{"role": "user", "content": content}]
    try:
        return str(tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template is a program: it may raise anything, and some do so on purpose
        named = tokenizer.chat_template
        if isinstance(named, Mapping) and "default" not in named:
            raise UnsupportedTokenizer(
                f"This tokenizer has several chat templates ({', '.join(map(str, named))}), and none is called "
                "'default'. Choose one (tokenizer.chat_template = tokenizer.chat_template[name]), or write the whole "
                "prompt yourself, without chat."
            ) from error
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UnsupportedTokenizer(
            f"This tokenizer's chat template cannot be filled in for the message {content!r} ({reason}). Mend it "
            "(tokenizer.chat_template), or write the whole prompt yourself, without chat."
        ) from error


def encode(text: str, tokenizer: Any, *, special: bool = True) -> tuple[list[int], Offsets | None]:
    """A prompt's token ids, special tokens included, and their places; None where the tokenizer cannot say these.

    What the tokenizer puts behind every text (EOS, [SEP]) is left out: nothing could be read after the text. Raises
    InvalidPair where there are no tokens.
    """
    placed = getattr(tokenizer, "is_fast", False)
    asked = {"return_offsets_mapping": True} if placed else {}
    encoding = tokenizer(text, return_special_tokens_mask=True, add_special_tokens=special, **asked)
    ids, mask = list(encoding["input_ids"]), encoding["special_tokens_mask"]
    if not ids:
        raise InvalidPair(f"The prompt {text!r} has no tokens.")
    if len(mask) != len(ids):  # of a tokenizer that adds tokens of its own and does not say which
        mask = _added(ids, list(tokenizer(text, add_special_tokens=False)["input_ids"]))
    # Of a prompt of special tokens alone the first is kept, so that there is one to read at.
    end = max((n for n, added in enumerate(mask, 1) if not added), default=1)
    return ids[:end], [tuple(span) for span in encoding["offset_mapping"][:end]] if placed else None


def _added(ids: list[int], text: list[int]) -> list[bool]:
    """Which of a prompt's tokens are none of its text's."""
    starts = (n for n in range(len(ids) - len(text) + 1) if ids[n : n + len(text)] == text)
    start = next(starts, 0)
    return [not start <= n < start + len(text) for n in range(len(ids))]


def occurrences(text: str, part: str) -> list[int]:
    """Where a part begins in the text, each time."""
    # Overlapping ones too, which str.count leaves out.
    return [start for start in range(len(text)) if text.startswith(part, start)]


def find_span(text: str, part: str, occurrence: int = 0) -> tuple[int, int]:
    """[start, end) of the `occurrence`-th `part` in the text (negative: from the right). Raises InvalidPair."""
    starts = occurrences(text, part)
    if not starts:
        why = alike(part, text) or "Spans are searched letter by letter."
        raise InvalidPair(f"{part!r} is not in the prompt {text!r}. {why}")
    if not -len(starts) <= occurrence < len(starts):
        times = "once" if len(starts) == 1 else f"{len(starts)} times"
        raise InvalidPair(
            f"{part!r} occurs {times} (occurrence={occurrence} was asked for) in the prompt {text!r}. Count from 0, or "
            "from the right: -1 is the last."
        )
    start = starts[occurrence]
    return start, start + len(part)


def span_positions(offsets: Sequence[tuple[int, int]], span: tuple[int, int]) -> tuple[int, ...]:
    """The tokens that share at least one letter with a [start, end) of the text."""
    start, end = span
    # Special tokens lie nowhere: they end where they begin.
    return tuple(n for n, (first, last) in enumerate(offsets) if first < end and last > start and last > first)


def require_places(offsets: Offsets | None, tokenizer: Any) -> Offsets:
    """The tokens' places. Raises UnsupportedTokenizer where they are not known."""
    if offsets is None:
        raise UnsupportedTokenizer(
            f"{type(tokenizer).__name__} cannot say where its tokens lie in the text (it is not a fast tokenizer), so "
            "that no subject or span is found. Load the fast version of this tokenizer, or convert it (AutoTokenizer "
            "does, where it can); or leave out subject and spans."
        )
    return offsets


def token_strings(text: str, ids: list[int], offsets: Offsets | None, tokenizer: Any) -> tuple[str, ...]:
    """The stretch of text that each token adds; special tokens and pieces of a letter by the tokenizer's name."""
    if offsets is None:
        return tuple(_alone(token, tokenizer) for token in ids)
    strings, reached = [], 0
    for token, (start, end) in zip(ids, offsets, strict=True):
        # From where the last one ended: some tokenizers leave the space before a word out of its token's place.
        piece = text[reached:end] if end > start and not in_pieces(token, tokenizer) else ""
        strings.append(piece or token_text(token, tokenizer))
        reached = max(reached, end)
    return tuple(strings)


def _alone(token: int, tokenizer: Any) -> str:
    """A token by itself, with the space that SentencePiece's decoding drops where a text begins."""
    shown = token_text(token, tokenizer)
    spaced = str(tokenizer.convert_ids_to_tokens(token)).startswith(SPACE) and not shown.startswith((" ", SPACE))
    return f" {shown}" if spaced else shown


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
