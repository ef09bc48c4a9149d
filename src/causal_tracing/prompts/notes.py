"""What is legal in a pair, but probably not meant: each of these gives the sentences that say so, or none."""

import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from causal_tracing.prompts.letters import alike, code_points, difference, joins, word_around
from causal_tracing.prompts.token_texts import token_text, token_texts
from causal_tracing.prompts.tokens import TokenPrompt, encode, occurrences

ANOTHER = "occurrence=1 (--occurrence 1) takes the second, -1 the last."
BESIDE = 12  # letters that are shown of the text around a place
LINES = "\n\r\u2028\u2029"


def of_start(side: str, prompt: TokenPrompt, tokenizer: Any, *, special: bool) -> Iterator[str]:
    """A token that the tokenizer puts first, and the prompt's text has too."""
    if not special or not prompt.special[0]:
        return
    added = len(prompt.tokens) - len(_ids(prompt.text, tokenizer))
    own = [token for token in prompt.tokens[added : 2 * added + 1] if token in prompt.tokens[:added]]
    if own:
        shown = token_text(own[0], tokenizer)
        yield (
            f"the {side} prompt begins with {shown} twice: the tokenizer puts it there, and the text has it too. Leave "
            "it out of the text."
        )


def of_end(prompt: TokenPrompt, tokenizer: Any, *, special: bool) -> Iterator[str]:
    """A token that the tokenizer puts behind every text, and that is left out."""
    whole = tokenizer(prompt.text)["input_ids"] if special else prompt.tokens
    if len(whole) > len(prompt.tokens):
        shown = token_text(whole[len(prompt.tokens)], tokenizer)
        yield f"the tokenizer puts {shown} behind every prompt: it is left out, and what comes next is asked."


def of_unknown(what: str, text: str, tokens: Sequence[int], tokenizer: Any) -> Iterator[str]:
    """Letters that the tokenizer does not know: all of them are read as the same token."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is not None and unknown in tokens and str(tokenizer.unk_token) not in text:
        yield f"the {what} {text!r} has letters that this tokenizer does not know, read as {tokenizer.unk_token}."


def of_letters(what: str, text: str, tokenizer: Any) -> Iterator[str]:
    """Letters of several code points that have one of their own, where this makes other tokens."""
    composed = unicodedata.normalize("NFC", text)
    if composed == text or _ids(text, tokenizer) == _ids(composed, tokenizer):
        return
    ours, theirs = difference(text, composed)
    yield (
        f"the {what} has {code_points(ours)} where the composed letter is {code_points(theirs)}: it looks the same, "
        'and is other tokens. Unless that is meant, give unicodedata.normalize("NFC", text).'
    )


def of_span(what: str, part: str | None, side: str, text: str, occurrence: int | None = None) -> Iterator[str]:
    """A stretch of a prompt that stands there more than once, in the midst of a word, or only in other letters.

    `occurrence` is the one that was asked for; None where it cannot be.
    """
    starts = occurrences(text, part) if part else []
    if part and not starts and (why := alike(part, text)):
        yield f"the {what} {part!r} is not found in the {side} prompt. {why}"
    if not part or not starts:
        return
    taken = occurrence or 0
    start = starts[taken]
    if len(starts) > 1 and occurrence == 0:
        shown = f"{text[max(0, start - BESIDE) : start]}[{part}]{text[start + len(part) :][:BESIDE]}"
        yield (
            f"the {what} {part!r} stands {len(starts)} times in the {side} prompt, and the first is taken: {shown!r}. "
            f"{ANOTHER}"
        )
    word = word_around(text, start, start + len(part))
    if word != part and _inside(text, start, part):
        whole = next((n for n, each in enumerate(starts) if not _inside(text, each, part)), None)
        other = "" if whole is None or occurrence is None else f" occurrence={whole} is a word by itself."
        yield f"the {what} {part!r} is taken inside the word {word!r} of the {side} prompt.{other}"


def of_answer(
    what: str, text: str, prompt: TokenPrompt, tokens: tuple[int, ...], tokenizer: Any, *, special: bool
) -> Iterator[str]:
    """White space on both sides of where an answer begins, or on neither."""
    last, first = prompt.text[-1], text[0]
    if last.isspace() and first.isspace() and last not in LINES and first not in LINES:
        yield (
            f"the prompt ends with a space and the {what} {text!r} begins with one: it is scored as "
            f"{token_texts(tokens, tokenizer)!r} behind the token {prompt.strings[-1]!r}, which is rarely what the "
            "model would say. End the prompt without the space."
        )
    # Digits behind digits go on a number, which is meant: "the year 17" and "83".
    if not joins(last, first) or (last.isdigit() and first.isdigit()):
        return
    spaced = _after(prompt, " " + text, tokenizer, special=special)
    if spaced == tokens:  # this tokenizer's tokens do not know of spaces
        return
    meant = "" if spaced is None else f" Did you mean {' ' + text!r}?"
    yield f"{what} {text!r} is scored glued to the prompt: '…{prompt.text[-10:]}{text}'.{meant}"


def _inside(text: str, start: int, part: str) -> bool:
    """Whether a part that begins here goes on as a word on either side."""
    end = start + len(part)
    before = start > 0 and joins(text[start - 1], part[0])
    return before or (end < len(text) and joins(part[-1], text[end]))


def _after(prompt: TokenPrompt, text: str, tokenizer: Any, *, special: bool) -> tuple[int, ...] | None:
    """The tokens of a text behind a prompt; None where it changes the prompt's own."""
    ids, _ = encode(prompt.text + text, tokenizer, special=special)
    length = len(prompt.tokens)
    return tuple(ids[length:]) if tuple(ids[:length]) == prompt.tokens else None


def _ids(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
