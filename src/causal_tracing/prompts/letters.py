"""What letters look like and are: one letter in several code points, scripts without spaces, words around a place."""

import unicodedata
from typing import Literal

# Scripts in which words follow each other without a space, as Unicode's names of their letters begin.
UNSPACED = (
    "CJK", "HIRAGANA", "KATAKANA", "HALFWIDTH", "FULLWIDTH", "BOPOMOFO", "YI", "THAI", "LAO", "KHMER", "MYANMAR",
    "TIBETAN", "TAI", "JAVANESE", "BALINESE", "NUSHU", "TANGUT",
)  # fmt: skip
Form = Literal["NFC", "NFKC"]
FORMS: tuple[Form, ...] = ("NFC", "NFKC")
LONGEST = 4  # times as many letters as another writing of the same text may have


def joins(before: str, after: str) -> bool:
    """Whether two letters that stand together are of one word, in a script that keeps words apart by spaces."""
    if unicodedata.combining(after):
        return True
    return all(letter.isalnum() and not _unspaced(letter) for letter in (before, after))


def word_around(text: str, start: int, end: int) -> str:
    """The whole word, or words, that [start, end) of a text lies in."""
    while start > 0 and joins(text[start - 1], text[start]):
        start -= 1
    while end < len(text) and joins(text[end - 1], text[end]):
        end += 1
    return text[start:end]


def alike(part: str, text: str) -> str:
    """How a part differs from what looks the same in a text; empty where nothing does."""
    for form in FORMS:
        wanted = unicodedata.normalize(form, part)
        if wanted not in unicodedata.normalize(form, text):
            continue
        ours, theirs = difference(part, _stretch(wanted, text, form))
        return (
            f"It has {code_points(ours)} where the prompt has {code_points(theirs)}, which looks the same: write both "
            f'alike, such as by unicodedata.normalize("{form}", text).'
        )
    return ""


def difference(one: str, other: str) -> tuple[str, str]:
    """The first letter, with its marks, in which two texts differ."""
    start = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    if start and any(unicodedata.combining(text[start]) for text in (one, other) if start < len(text)):
        start -= 1  # a letter and its mark go together
    return _letter(one[start:]), _letter(other[start:])


def code_points(text: str) -> str:
    """Letters by their numbers: U+0065 U+0301."""
    return " ".join(f"U+{ord(letter):04X}" for letter in text) or "nothing"


def _stretch(wanted: str, text: str, form: Form) -> str:
    """The shortest stretch of a text that is the wanted one in this normal form."""
    for start in range(len(text)):
        longest = min(len(text), start + LONGEST * len(wanted))
        if not unicodedata.normalize(form, text[start:longest]).startswith(wanted):
            continue
        for end in range(start + 1, longest + 1):
            if unicodedata.normalize(form, text[start:end]) == wanted:
                return text[start:end]
    return text


def _letter(text: str) -> str:
    """The first letter of a text with the marks that belong to it."""
    end = 1
    while end < len(text) and unicodedata.combining(text[end]):
        end += 1
    return text[:end]


def _unspaced(letter: str) -> bool:
    return unicodedata.name(letter, "").split(" ")[0].split("-")[0] in UNSPACED
