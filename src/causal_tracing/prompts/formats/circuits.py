"""What circuit finders read: EAP-IG's tables, whose answers are token ids, and AutoCircuit's prompts."""

from collections.abc import Iterator

from causal_tracing.prompts.formats.fields import Fields, Row, TokenId
from causal_tracing.prompts.formats.format import Format


def eap_ig(row: Fields) -> Iterator[Row]:
    """A row of token ids, which are texts to one tokenizer alone."""
    if row.values.get("incorrect_idx") is None:
        raise row.wrong(
            "incorrect_idx is missing: without it correct_idx is a year (greater-than), after which all later ones are "
            "right, and that is no pair. Trace the built-in set greater_than instead."
        )
    yield row.row(
        clean=row.text("clean"),
        corrupt=row.text("corrupted"),
        answer=TokenId(id=row.whole("correct_idx")),
        foil=TokenId(id=row.whole("incorrect_idx")),
        labels=row.rest("clean", "corrupted", "correct_idx", "incorrect_idx"),
    )


def autocircuit(file: Fields) -> Iterator[Row]:
    """The prompts of a file; of several right answers, or wrong ones, the first."""
    for number, prompt in enumerate(file.each("prompts")):
        lists = {name: prompt.texts(name) for name in ("answers", "wrong_answers")}
        notes = (
            f"{name} has {len(texts)} texts, and the first is taken" for name, texts in lists.items() if len(texts) > 1
        )
        yield file.row(
            id=f"prompt-{number}",
            clean=prompt.text("clean"),
            corrupt=prompt.text("corrupt"),
            answer=lists["answers"][0],
            foil=lists["wrong_answers"][0],
            notes=tuple(notes),
            labels=prompt.rest("clean", "corrupt"),
        )


FORMATS = (
    Format(
        name="eap-ig",
        keys=frozenset({"clean", "corrupted", "correct_idx"}),
        about="a CSV file of EAP-IG (ioi.csv and its like); its ids are one tokenizer's, so that a model is needed",
        source="EAP-IG, Hanna et al. 2024 (arXiv 2403.17806)",
        gives="clean, corrupt = corrupted, answer = the token correct_idx, foil = the token incorrect_idx",
        example='{"clean": "Ann and Tom went out. Tom gave a ball to", "corrupted": "Ann and Tom went out. Ann gave a '
        'ball to", "correct_idx": 5121, "incorrect_idx": 4186}',
        read=eap_ig,
    ),
    Format(
        name="autocircuit",
        keys=frozenset({"prompts"}),
        about='a JSON file of AutoCircuit, {"prompts": [...]}',
        source="AutoCircuit, Miller et al. 2024 (arXiv 2407.08734)",
        gives="clean, corrupt, answer = the first of answers, foil = the first of wrong_answers",
        example='{"prompts": [{"clean": "Cows like to eat", "corrupt": "Cats like to eat", "answers": [" grass"], '
        '"wrong_answers": [" fish"]}], "word_idxs": {"end": 3}}',
        read=autocircuit,
    ),
)
