"""The tokens of answers and foils: those that follow the prompt in prompt + text, never those of the text alone.

The texts of a set count together, so that none may be counted twice: none is another one, or begins another one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from causal_tracing.errors import InvalidPair
from causal_tracing.prompts.letters import joins
from causal_tracing.prompts.token_texts import printable, token_texts
from causal_tracing.prompts.tokens import TokenPrompt, encode, token_strings

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Follower:
    """What is asked for behind prompts: the pair's id, "answer" or "foil", its texts; `chat` as a pair has it."""

    id: str | None
    what: str
    texts: tuple[str, ...]
    chat: bool

    def tokens(self, prompts: Sequence[TokenPrompt], tokenizer: Any) -> tuple[Tokens, ...]:
        """Each text's tokens, the same after all these prompts. Raises InvalidPair."""
        found = tuple(_tokens_after(self, text, prompts, tokenizer) for text in self.texts)
        # The probability of a text holds that of each text which begins with it.
        for first, tokens in enumerate(found):
            for second, longer in enumerate(found):
                if first != second and longer[: len(tokens)] == tokens:
                    raise InvalidPair(
                        f"pair {self.id!r}: the {self.what} {self.texts[second]!r} begins with the tokens of "
                        f"{self.texts[first]!r} ({token_texts(tokens, tokenizer)}): it would count twice. Leave one of "
                        "them out."
                    )
        return found


def check_apart(id: str, answers: Sequence[Tokens], foils: Sequence[Tokens], texts: Sequence[str]) -> None:
    """Raises InvalidPair where an answer is a foil too; `texts` are those of the answers."""
    for tokens, text in zip(answers, texts, strict=True):
        if tokens not in foils:
            continue
        if len(answers) == len(foils) == 1:
            what = "token" if len(tokens) == 1 else "tokens"
            raise InvalidPair(f"pair {id!r}: answer and foil are the same {what} ({text!r}): nothing to tell apart.")
        raise InvalidPair(f"pair {id!r}: {text!r} is among the answers and the foils. Leave it out of one of them.")


def _tokens_after(asked: Follower, text: str, prompts: Sequence[TokenPrompt], tokenizer: Any) -> Tokens:
    id, what, found = asked.id, asked.what, list[Tokens]()
    for prompt in prompts:
        # Tokenised together: alone, a text may be other tokens than behind the prompt.
        ids, offsets = encode(prompt.text + text, tokenizer, special=not asked.chat)
        length = len(prompt.tokens)
        if tuple(ids[:length]) != prompt.tokens:
            strings = token_strings(prompt.text + text, ids, offsets, tokenizer)
            raise InvalidPair(
                f"pair {id!r}: {what} {text!r} changes the last tokens of the prompt that it follows: "
                f"{'|'.join(map(printable, strings))} (the prompt alone: {'|'.join(map(printable, prompt.strings))}). "
                f"What would be scored is not {text!r}. {_apart(what, text, prompt.text)}"
            )
        if len(ids) == length:
            raise InvalidPair(f"pair {id!r}: {what} {text!r} is no token after {prompt.text!r}: nothing to score.")
        found.append(tuple(ids[length:]))
    if found[0] != found[1]:
        shown = ", ".join(token_texts(tokens, tokenizer) for tokens in found)
        raise InvalidPair(
            f"pair {id!r}: {what} {text!r} is other tokens after the clean prompt than after the corrupt one "
            f"({shown}): the two runs could not be compared."
        )
    return found[0]


def _apart(what: str, text: str, prompt: str) -> str:
    """How prompt and answer can be told apart where their tokens grow together."""
    if prompt[-1].isspace():
        return f"Move the white space: end the prompt without a space and begin the {what} with one."
    if joins(prompt[-1], text[0]):
        return f"They make one word: begin the {what} with a space, or end the prompt elsewhere."
    return f"They share a token there: move letters from the {what} to the prompt, or from the prompt to the {what}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Behind:
    """A run that scores texts: what stands behind the prompt, and the tokens of which any may come next."""

    tokens: Tokens
    lasts: Tokens


def behind(texts: Sequence[Tokens]) -> tuple[Behind, ...]:
    """The runs that texts need: those that differ in their last token alone share one."""
    lasts: dict[Tokens, list[int]] = {}
    for text in texts:
        lasts.setdefault(text[:-1], []).append(text[-1])
    return tuple(Behind(tokens=tokens, lasts=tuple(each)) for tokens, each in lasts.items())
