"""What circuit finders read: EAP-IG's tables, whose answers are token ids or years, and AutoCircuit's prompts."""

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

from causal_tracing.prompts.formats.fields import Fields, Row, TokenId
from causal_tracing.prompts.formats.format import Format

LAST_YEAR = 99  # of a century
EAP_IG = "EAP-IG, Hanna et al. 2024 (arXiv 2403.17806)"
YEARS = {  # of the greater-than files: their format, and what they are called
    "label": ("eap-ig-years", "EAP-IG's greater_than_data.csv"),
    "correct_idx": ("eap-ig-years-idx", "the greater-than tables of EAP-IG's study, whose years have another key"),
}


def eap_ig(row: Fields) -> Iterator[Row]:
    """A row of token ids, which are texts to one tokenizer alone."""
    yield row.row(
        clean=row.text("clean"),
        corrupt=row.text("corrupted"),
        answer=TokenId(id=row.whole("correct_idx")),
        foil=TokenId(id=row.whole("incorrect_idx")),
        labels=row.rest("clean", "corrupted", "correct_idx", "incorrect_idx"),
    )


def later_years(key: str, row: Fields) -> Iterator[Row]:
    """A year of two digits, `key`, after which all later ones of its century are right, and all others wrong."""
    clean, corrupt, number = row.text("clean"), row.text("corrupted"), row.whole(key)
    year = f"{clean[-2:]}{number:02}"
    # After the century's last year nothing would be right.
    if not re.fullmatch("[0-9]{4}", year) or year not in clean or number == LAST_YEAR:
        raise row.wrong(
            f"{key} is {number}, and no year of two digits that stands in the prompt behind the century with which it "
            f"ends ({clean[-30:]!r}), with later ones behind it. Answers that are token ids need incorrect_idx too."
        )
    years = [f"{each:02}" for each in range(LAST_YEAR + 1)]
    yield row.row(
        clean=clean,
        corrupt=corrupt,
        answer=years[number + 1 :],
        foil=years[: number + 1],
        **_subjects(clean, corrupt, year),
        labels=row.rest("clean", "corrupted"),
    )


def _subjects(clean: str, corrupt: str, year: str) -> dict[str, Any]:
    """The year in each prompt, where it is all that tells them apart; else nothing."""
    before, _, behind = clean.partition(year)
    other = re.fullmatch(f"{re.escape(before)}([0-9]{{4}}){re.escape(behind)}", corrupt)
    return {"subject": year, "corrupt_subject": other[1]} if other and clean.count(year) == 1 else {}


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
        keys=frozenset({"clean", "corrupted", "correct_idx", "incorrect_idx"}),
        about="a CSV file of EAP-IG (ioi.csv and its like); its ids are one tokenizer's, so that a model is needed",
        source=EAP_IG,
        gives="clean, corrupt = corrupted, answer = the token correct_idx, foil = the token incorrect_idx",
        example='{"clean": "Ann and Tom went out. Tom gave a ball to", "corrupted": "Ann and Tom went out. Ann gave a '
        'ball to", "correct_idx": 5121, "incorrect_idx": 4186}',
        read=eap_ig,
    ),
    *(
        Format(
            name=name,
            keys=frozenset({"clean", "corrupted", key}),
            about=about,
            source=EAP_IG,
            gives=f"clean, corrupt = corrupted, answer = all years after {key}, foil = all others; trace by prob_diff",
            example='{"clean": "The war lasted from the year 1752 to the year 17", "corrupted": "The war lasted from '
            f'the year 1701 to the year 17", "{key}": 52}}',
            read=partial(later_years, key),
        )
        for key, (name, about) in YEARS.items()
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
