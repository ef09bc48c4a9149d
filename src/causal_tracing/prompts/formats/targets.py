"""Answers and foils as a model's tokens have them: with a leading space, and as text where a file has token ids."""

from dataclasses import replace
from typing import Any

from causal_tracing.errors import InvalidPair
from causal_tracing.prompts.answers import TARGETS
from causal_tracing.prompts.formats.fields import Row, TokenId
from causal_tracing.prompts.tokens import encode, token_strings

OPENED = "([/=“‘"  # after which a word begins without a space
SPACED = "answers and foils had no leading space, and got one"


def spaced(row: Row) -> Row:
    """The row with a space in front of answer and foil, unless the prompt has it or a word begins without one."""
    prompt, changed = row.values["clean"], {}
    if prompt and not (prompt[-1].isspace() or prompt[-1] in OPENED or (prompt[-1] == '"' and prompt.count('"') % 2)):
        texts = {name: row.values[name] for name in TARGETS if name in row.values}
        changed = {name: f" {text}" for name, text in texts.items() if text and not text[0].isspace()}
    return replace(row, values=row.values | changed, notes=(*row.notes, SPACED)) if changed else row


def names_tokens(row: Row) -> bool:
    """Whether answer or foil is a token id."""
    return isinstance(row.values, dict) and any(isinstance(row.values.get(name), TokenId) for name in TARGETS)


def in_texts(row: Row, tokenizer: Any) -> Any:
    """The row's values, its token ids as the texts that they are after its prompts. Raises InvalidPair."""
    if not names_tokens(row):
        return row.values
    if tokenizer is None:
        raise InvalidPair(
            f"{row.place}: answers are token ids here, which are texts to one tokenizer alone. Give "
            "tokenizer=model.tokenizer of the model that the file was made for (the command line takes --model's)."
        )
    values = dict(row.values)
    for name in TARGETS:
        if isinstance(values.get(name), TokenId):
            values[name] = _text(row.place, name, values[name].id, row.values["clean"], tokenizer)
    return values


def _text(place: str, name: str, token: int, prompt: str, tokenizer: Any) -> str:
    """The text of a token, if it is that token after the prompt too. Raises InvalidPair."""
    if token >= len(tokenizer):
        raise InvalidPair(
            f"{place}: {name} is the token {token}, and this tokenizer has {len(tokenizer)}: the file was made for "
            "another one. Give the model that it was made for."
        )
    text = token_strings("", [token], None, tokenizer)[0]
    # A token's text behind a prompt may be read as other tokens, by which the pair would be scored unsaid.
    if encode(prompt + text, tokenizer)[0] != [*encode(prompt, tokenizer)[0], token]:
        raise InvalidPair(
            f"{place}: {name} is the token {token}, which is {text!r} to this tokenizer; after the prompt that text is "
            "other tokens. The file was made for another tokenizer: give its model."
        )
    return text
