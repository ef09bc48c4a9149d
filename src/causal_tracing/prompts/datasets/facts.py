"""Landmarks and their cities, countries and their capitals: each prompt against one with another subject.

The kind of prompts of ROME (Meng et al. 2022, arXiv 2202.05262); the facts are common knowledge, collected for this
package. A fact is in one pair only, so that no two pairs share one. `facts.csv` holds which two make a pair.
"""

import csv
from importlib.resources import files
from typing import Any

COLUMNS = ("kind", "subject", "answer", "corrupt_subject", "foil")
TEMPLATES = {"landmark": "{} is located in the city of", "capital": "The capital of {} is the city of"}


def rows() -> list[dict[str, Any]]:
    """A pair for every row of the table."""
    text = files("causal_tracing.prompts.datasets").joinpath("facts.csv").read_text(encoding="utf-8")
    return [_row(fact, number) for number, fact in enumerate(csv.DictReader(text.splitlines()))]


def _row(fact: dict[str, str], number: int) -> dict[str, Any]:
    template = TEMPLATES[fact["kind"]]
    return {
        "id": f"{fact['kind']}-{number:03}",
        "clean": template.format(fact["subject"]),
        "corrupt": template.format(fact["corrupt_subject"]),
        "answer": f" {fact['answer']}",
        "foil": f" {fact['foil']}",
        "subject": fact["subject"],
        "corrupt_subject": fact["corrupt_subject"],
        "kind": fact["kind"],
    }
