"""What the page's script draws the map from: plain values, and texts without characters that hide or reorder."""

import unicodedata


def visible(text: str) -> str:
    """Text without characters that could reorder or hide what is around them: those are named instead."""
    return "".join(
        f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") else c for c in text
    )
