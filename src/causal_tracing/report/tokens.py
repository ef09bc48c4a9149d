"""Text of unknown origin, as it may be shown: nothing in it can reorder, hide or end what stands around it."""

import json
import unicodedata

HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # controls, bidi overrides, lone surrogates, separators


def visible(text: str) -> str:
    """The text with each control or invisible character as a sign of its own: `␊`, `⟨U+202E⟩`."""
    return "".join(_sign(c) if is_hidden(c) else c for c in text)


def visible_token(text: str) -> str:
    """A token to look at: as `visible`, and one of nothing but spaces shows them."""
    if not text:
        return "⟨empty⟩"
    return visible(text) if text.strip(" ") else "␠" * len(text)


def exact_json(content: object) -> str:
    """Indented JSON that reads back exactly, with hidden characters escaped."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    return "".join(json.dumps(c)[1:-1] if is_hidden(c) and c != "\n" else c for c in text)


def is_hidden(character: str) -> bool:
    """Whether a character is not seen, or moves others."""
    return unicodedata.category(character) in HIDDEN


def _sign(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"
