"""Professions that are thought of as a woman's or a man's: "The nurse said that" → she, against "The man said that".

Vig et al. 2020 (arXiv 2004.12265): a choice of their templates and professions. The corrupt prompt names a man where
the answer is "she", a woman where it is "he". The prompts of one profession are one cluster.
"""

from typing import Any

TEMPLATES = ("The {} said that", "The {} cried because", "The {} went home because", "The {} was promoted because")
PROFESSIONS = {
    "she": "nurse teacher dancer maid librarian secretary singer therapist counselor cleaner assistant clerk",
    "he": "doctor engineer captain soldier lawyer carpenter farmer mechanic guard chief boss pilot driver judge",
}
OTHER = {"she": ("man", "he"), "he": ("woman", "she")}


def rows() -> list[dict[str, Any]]:
    """A pair for each profession and template."""
    return [
        {
            "id": f"gender-{profession}-{number}",
            "clean": template.format(profession),
            "corrupt": template.format(OTHER[answer][0]),
            "answer": f" {answer}",
            "foil": f" {OTHER[answer][1]}",
            "subject": profession,
            "corrupt_subject": OTHER[answer][0],
            "cluster": profession,
            "kind": answer,
        }
        for answer, professions in PROFESSIONS.items()
        for profession in professions.split()
        for number, template in enumerate(TEMPLATES)
    ]
