"""Indirect objects: "When Mary and John went to the store, John gave a drink to" → Mary, against three corruptions.

Wang et al. 2023 (arXiv 2211.00593), whose templates these are. Kinds: `swap` names the other person again (so that the
other name is right), `third` names somebody new there, `abc` replaces all three names by others. The subject is the
second mention; the spans IO and S1 are the first mentions. The three corruptions of one sentence are one cluster.
"""

import random
from collections.abc import Iterator
from typing import Any

TEMPLATES = (
    "When {0} and {1} went to the {2}, {3} gave a {4} to",
    "Then, {0} and {1} went to the {2}. {3} gave a {4} to",
    "After {0} and {1} went to the {2}, {3} gave a {4} to",
    "Then, {0} and {1} had a long argument at the {2}. {3} gave a {4} to",
    "While {0} and {1} were working at the {2}, {3} gave a {4} to",
)
NAMES = (
    "Mary John Tom James Dan Martin Amy Anna Mark Paul Sarah Michael Peter Robert David Alice Jack Kate Laura Henry "
    "George Emma Lucy Simon"
).split()
PLACES = "store garden restaurant school hospital office house station".split()
THINGS = "drink ring kiss book snack letter ball computer".split()
SENTENCES, SEED = 60, 0


def rows() -> list[dict[str, Any]]:
    """Three pairs a sentence."""
    chance = random.Random(SEED)
    return [row for number in range(SENTENCES) for row in _sentence(number, chance)]


def _sentence(number: int, chance: random.Random) -> Iterator[dict[str, Any]]:
    template = TEMPLATES[number % len(TEMPLATES)]
    one, two, third, *others = chance.sample(NAMES, 6)
    place, thing = chance.choice(PLACES), chance.choice(THINGS)
    # Each order in turn: were it one, the answer would always be the first name.
    subject, receiver = (one, two) if number % 2 else (two, one)

    def said(first: str, second: str, again: str) -> str:
        return template.format(first, second, place, again, thing)

    corruptions = {
        "swap": (said(one, two, receiver), receiver),
        "third": (said(one, two, third), third),
        "abc": (said(*others), others[2]),
    }
    for kind, (corrupt, again) in corruptions.items():
        yield {
            "id": f"ioi-{number:02}-{kind}",
            "clean": said(one, two, subject),
            "corrupt": corrupt,
            "answer": f" {receiver}",
            "foil": f" {subject}",
            "subject": subject,
            "corrupt_subject": again,
            "occurrence": -1,  # the second mention
            "spans": {"IO": receiver, "S1": subject},
            "cluster": f"sentence {number}",
            "kind": kind,
        }
