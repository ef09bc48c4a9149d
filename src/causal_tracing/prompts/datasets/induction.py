"""Random words that come again: "… cat lamp river … cat" → lamp, against the same words with another one behind cat.

The repeated sequences of Olsson et al. 2022 (arXiv 2209.11895), of words in random order: nothing but the first time
says what comes next. The subject is the word behind the first mention.
"""

import random
from typing import Any

WORDS = (
    "cat lamp river stone paper green table window music horse bread cloud garden metal silver train doctor winter "
    "orange bridge planet sugar engine forest island letter market mirror mountain number office picture pocket queen "
    "salt school shadow spring street summer"
).split()
LENGTH, PAIRS, SEED = 8, 60, 0


def rows() -> list[dict[str, Any]]:
    """Sequences of different words, the first of them again."""
    chance = random.Random(SEED)
    return [_row(number, chance.sample(WORDS, LENGTH + 1), chance.randrange(2, LENGTH - 1)) for number in range(PAIRS)]


def _row(number: int, words: list[str], again: int) -> dict[str, Any]:
    """The first `again` words come again; the next one is asked for."""
    *sequence, other = words
    corrupt = [other if n == again else word for n, word in enumerate(sequence)]
    return {
        "id": f"induction-{number:02}",
        "clean": " " + " ".join(sequence + sequence[:again]),
        "corrupt": " " + " ".join(corrupt + sequence[:again]),
        "answer": f" {sequence[again]}",
        "foil": f" {other}",
        "subject": sequence[again],
        "corrupt_subject": other,
        "kind": f"{again} again",
    }
