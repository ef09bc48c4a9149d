"""Makes `src/causal_tracing/datasets/facts.csv` anew: which facts stand in one pair.

    python benchmarks/facts.py < facts.txt        lines of relation<TAB>subject<TAB>object

A fact is used once, so that pairs share none. Two facts make a pair where the demo model's tokenizer gives their
subjects equally many tokens, their objects are one token each, and differ. Facts whose subject names its object are
left out, and so is the last one of a kind that finds no partner.
"""

import csv
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import causal_tracing as ct
from causal_tracing.prompts.datasets.facts import COLUMNS, TEMPLATES

TABLE = Path(ct.__file__).parent / "datasets" / "facts.csv"
Fact = tuple[str, str, str]  # relation, subject, object


def pairs(facts: list[Fact], tokenizer: object) -> Iterator[tuple[Fact, Fact]]:
    """Facts by twos, in an order that a seed fixes."""
    kinds: dict[tuple[str, int], list[Fact]] = {}
    for relation, subject, answer in sorted(set(facts)):
        length = len(tokenizer(TEMPLATES[relation].format(subject))["input_ids"])  # pyright: ignore[reportCallIssue]
        one_token = len(tokenizer(f" {answer}")["input_ids"]) == 1  # pyright: ignore[reportCallIssue]
        if one_token and answer.lower() not in subject.lower():
            kinds.setdefault((relation, length), []).append((relation, subject, answer))
    for kind in sorted(kinds):
        waiting = kinds[kind]
        random.Random(0).shuffle(waiting)
        while waiting:
            first = waiting.pop()
            partner = next((other for other in waiting if other[2] != first[2]), None)
            if partner is not None:
                waiting.remove(partner)
                yield first, partner


def main() -> None:
    """Reads facts, writes the table."""
    facts = [tuple(line.split("\t")) for line in sys.stdin.read().split("\n") if line]
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for (relation, *clean), (_, *corrupt) in pairs(facts, ct.load("demo", progress=False).tokenizer):
            table.writerow([relation, *clean, *corrupt])


if __name__ == "__main__":
    main()
