"""Years that must be later: "The war lasted from the year 1782 to the year 17" → 9, against a war that began in 1702.

After Hanna et al. 2023 (arXiv 2305.00586), for tokenizers that split numbers into digits. The answer is 9, the foil 0:
after the corrupt prompt both are possible decades, after the clean one the foil is too early. The prompts of one noun
are one cluster.
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
            "answer": "9",
            "foil": "0",
            "subject": f"{century}{decade}{YEAR}",
            "corrupt_subject": f"{century}0{YEAR}",
            "cluster": noun,
            "kind": str(century),
        }
        for noun, century, decade in product(NOUNS, CENTURIES, DECADES)
    ]
