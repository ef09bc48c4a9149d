"""How a token is shown: by its text, or where that is a piece of a letter by its bytes, so that labels differ."""

import codecs
import re
from typing import Any

UNREADABLE = "\ufffd"  # what decoding puts in the place of a piece of a letter
BYTES = "causal_tracing.bytes"
# The bytes that have their own letter in the names of GPT-2's kind of tokenizers (its bytes_to_unicode).
PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))


def in_pieces(token: int, tokenizer: Any) -> bool:
    """Whether a token is, or has, a piece of a letter: decoding shows it as unreadable, or as nothing."""
    shown = tokenizer.decode([token])
    return UNREADABLE in shown or (not shown and _bytes_of(tokenizer.convert_ids_to_tokens(token)) is not None)


def token_text(token: int, tokenizer: Any) -> str:
    """A token as it is shown: what it decodes to, with the bytes of what is no whole letter, as in <0xE2>.

    By its number, as in <345>, where the tokenizer has no such token.
    """
    name = _name_of(token, tokenizer)
    if name is None:
        return f"<{token}>"  # a model may have more embeddings than its tokenizer has tokens
    if not in_pieces(token, tokenizer):
        return tokenizer.decode([token])
    raw = _bytes_of(name)
    return str(name) if raw is None else raw.decode("utf-8", errors=BYTES)


def _name_of(token: int, tokenizer: Any) -> Any:
    """What the tokenizer calls a token; None where it has no such token, of which some raise what they like."""
    try:
        return tokenizer.convert_ids_to_tokens(token)
    except (LookupError, ValueError, OverflowError):
        return None


def token_texts(tokens: tuple[int, ...], tokenizer: Any) -> str:
    """Several tokens, as in ' Col|osse|um'."""
    return "|".join(token_text(token, tokenizer) for token in tokens)


def printable(text: str) -> str:
    """A text on one line, whatever is in it: what cannot be seen is named as Python does, as in \\n and \\x1b."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _byte_letters() -> dict[str, int]:
    """The bytes by the letters that byte-level tokenizers (GPT-2's kind) name them by: what cannot be printed moves."""
    moved = [byte for byte in range(0x100) if byte not in PRINTABLE]
    return {chr(byte): byte for byte in PRINTABLE} | {chr(0x100 + n): byte for n, byte in enumerate(moved)}


BYTE_LETTERS = _byte_letters()


def _bytes_of(name: Any) -> bytes | None:
    """The bytes that a token's name stands for; None where it is none of the ways in which bytes are named."""
    if name is None or isinstance(name, bytes):
        return name
    if found := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", name):
        return bytes.fromhex(found[1])
    if name and all(letter in BYTE_LETTERS for letter in name):
        return bytes(BYTE_LETTERS[letter] for letter in name)
    return name.encode("latin-1") if len(name) == 1 and ord(name) < 0x100 else None


def _by_number(error: UnicodeError) -> tuple[str, int]:
    """Bytes that are no letter, as their numbers."""
    assert isinstance(error, UnicodeDecodeError)
    return "".join(f"<0x{byte:02X}>" for byte in error.object[error.start : error.end]), error.end


codecs.register_error(BYTES, _by_number)
