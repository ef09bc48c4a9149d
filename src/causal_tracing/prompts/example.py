"""The pair by which everything is shown: what the embedded model knows of two buildings."""

from typing import Any

EXAMPLE: dict[str, Any] = {
    "clean": "The Colosseum is located in the city of",
    "corrupt": "The Eiffel Tower is located in the city of",
    "answer": " Rome",
    "foil": " Paris",
    "subject": "The Colosseum",
    "corrupt_subject": "The Eiffel Tower",
}
