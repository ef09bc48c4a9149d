"""Years that must be later: "The war lasted from the year 1782 to the year 17" → 83 to 99, against one begun in 1702.

After Hanna et al. 2023 (arXiv 2305.00586): the answers are all later years of the century, the foils all others, and
prob_diff is their measure. Both are sets, for tokenizers that split numbers into digits or pairs of digits. The prompts
of one noun are one cluster.
"""

from itertools import product
from typing import Any

NOUNS = "war conflict project siege campaign strike exhibition voyage marriage drought expedition".split()
CENTURIES, DECADES, YEAR = (14, 16, 17, 18), (7, 8), 2


def rows() -> list[dict[str, Any]]:
    """A pair for each noun, century and decade."""
    return [
        {
            "id": f"greater-than-{noun}-{century}{decade}{YEAR}",
            "clean": f"The {noun} lasted from the year {century}{decade}{YEAR} to the year {century}",
            "corrupt": f"The {noun} lasted from the year {century}0{YEAR} to the year {century}",
            "answer": [f"{year:02}" for year in range(10 * decade + YEAR + 1, 100)],
            "foil": [f"{year:02}" for year in range(10 * decade + YEAR + 1)],
            "subject": f"{century}{decade}{YEAR}",
            "corrupt_subject": f"{century}0{YEAR}",
            "cluster": noun,
            "kind": str(century),
        }
        for noun, century, decade in product(NOUNS, CENTURIES, DECADES)
    ]
