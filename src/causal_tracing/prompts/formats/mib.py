"""The tasks of MIB, whose rows bring their counterfactuals along: each is read as MIB's own loaders read it."""

from collections.abc import Iterator

from causal_tracing.prompts.formats.fields import Fields, Row
from causal_tracing.prompts.formats.format import Format

SOURCE = "MIB, Mueller et al. 2025 (arXiv 2504.13151)"


def ioi(row: Fields) -> Iterator[Row]:
    """Indirect objects, against the same sentence in which the other person gives."""
    named = row.inside("metadata")
    receiver, giver = named.text("indirect_object"), named.text("subject")
    yield row.row(
        clean=row.text("prompt"),
        corrupt=row.inside("s2_io_flip_counterfactual").text("prompt"),
        answer=receiver,
        foil=giver,
        subject=giver,
        corrupt_subject=receiver,
        occurrence=-1,  # the second mention
        spans={"IO": receiver, "S1": giver},
        labels=row.rest("prompt", "answerKey") | named.rest("indirect_object", "subject"),
    )


def choices(row: Fields) -> Iterator[Row]:
    """Questions with choices, against the same with other symbols for them."""
    other = row.inside("symbol_counterfactual")
    yield row.row(
        clean=row.text("prompt"),
        corrupt=other.text("prompt"),
        answer=_chosen(row),
        foil=_chosen(other),
        labels=row.rest("prompt", "answerKey"),
    )


def _chosen(row: Fields) -> str:
    """The symbol of the right choice; some are numbers."""
    symbols, at = row.inside("choices").listed("label"), row.whole("answerKey")
    if not 0 <= at < len(symbols):
        raise row.wrong(f"{row.path}answerKey is {at}, and there are choices 0 to {len(symbols) - 1}.")
    return str(symbols[at])


def arithmetic(row: Fields) -> Iterator[Row]:
    """Sums and differences, against those of other numbers."""
    other = row.inside("random_counterfactual")
    yield row.row(
        clean=row.text("prompt"),
        corrupt=other.text("prompt"),
        answer=row.name("label"),
        foil=other.name("label"),
        labels=row.rest("prompt", "label"),
    )


def ravel(row: Fields) -> Iterator[Row]:
    """An attribute of a city, against what is asked of another one. Columns are called as attributes are."""
    other = row.inside("attribute_counterfactual")
    entity, asked = row.text("entity"), row.text("attribute")
    yield row.row(
        clean=row.text("prompt"),
        corrupt=other.text("prompt"),
        answer=row.text(asked),
        foil=other.text(other.text("attribute")),
        subject=entity,
        corrupt_subject=other.text("entity"),
        occurrence=-1,  # examples that stand before it may name the city too
        labels=row.rest("prompt", "entity", "attribute") | {"relation": asked},
    )


FORMATS = (
    Format(
        name="mib-ioi",
        keys=frozenset({"prompt", "metadata", "choices", "answerKey", "s2_io_flip_counterfactual"}),
        about="mib-bench/ioi on the hub",
        source=SOURCE,
        gives="clean = prompt, corrupt = s2_io_flip_counterfactual's, answer = indirect_object, foil = subject",
        example='{"prompt": "After the walk, Ann and Tom went to the park. Tom gave a ball to", "template": "After …", '
        '"metadata": {"subject": "Tom", "indirect_object": "Ann", "object": "ball", "place": "park"}, "choices": '
        '["Ann", "Tom"], "answerKey": 0, "s2_io_flip_counterfactual": {"prompt": "After the walk, Ann and Tom went to '
        'the park. Ann gave a ball to", "choices": ["Ann", "Tom"], "answerKey": 1}}',
        read=ioi,
        bare=True,
    ),
    Format(
        name="mib-mcqa",
        keys=frozenset({"prompt", "choices", "answerKey", "symbol_counterfactual"}),
        about="mib-bench/copycolors_mcqa on the hub",
        source=SOURCE,
        gives="clean = prompt, corrupt = symbol_counterfactual's, answer and foil = the right choice's symbol in each",
        example='{"question": "Rust is red. What color is rust?", "prompt": "Rust is red. What color is rust?\\nA. '
        'red\\nB. blue\\nAnswer:", "choices": {"label": ["A", "B"], "text": ["red", "blue"]}, "answerKey": 0, '
        '"symbol_counterfactual": {"prompt": "Rust is red. What color is rust?\\n1. red\\n2. blue\\nAnswer:", '
        '"choices": {"label": [1, 2], "text": ["red", "blue"]}, "answerKey": 0}}',
        read=choices,
        bare=True,
    ),
    Format(
        name="mib-arc",
        keys=frozenset({"arc_id", "prompt", "choices", "answerKey", "symbol_counterfactual"}),
        about="mib-bench/arc_easy and arc_challenge on the hub",
        source=SOURCE,
        gives="as mib-mcqa",
        example='{"arc_id": "made_1", "question": "Which is a planet?", "prompt": "Which is a planet?\\nA. Mars\\nB. '
        'Moon\\nAnswer:", "label": "A", "choices": {"text": ["Mars", "Moon"], "label": ["A", "B"]}, "answerKey": 0, '
        '"symbol_counterfactual": {"prompt": "Which is a planet?\\nQ. Mars\\nR. Moon\\nAnswer:", "choices": {"text": '
        '["Mars", "Moon"], "label": ["Q", "R"]}, "label": "Q", "answerKey": 0}}',
        read=choices,
        bare=True,
    ),
    Format(
        name="mib-arithmetic",
        keys=frozenset({"prompt", "label", "operator", "num_digit", "random_counterfactual"}),
        about="mib-bench/arithmetic_addition and arithmetic_subtraction on the hub",
        source=SOURCE,
        gives="clean = prompt, corrupt = random_counterfactual's, answer and foil = their labels",
        example='{"template": "{a} plus {b} is", "prompt": "21 plus 34 is", "label": "55", "operator": "+", '
        '"num_digit": 2, "operand1": 21, "operand2": 34, "random_counterfactual": {"prompt": "62 plus 17 is", "label": '
        '79, "operand1": 62, "operand2": 17}}',
        read=arithmetic,
        bare=True,
    ),
    Format(
        name="mib-ravel",
        keys=frozenset({"prompt", "entity", "attribute", "attribute_counterfactual"}),
        about="mib-bench/ravel on the hub",
        source="RAVEL, Huang et al. 2024 (arXiv 2402.17700), as MIB has it",
        gives="clean = prompt, corrupt = attribute_counterfactual's, answer, foil = what each asks, subject = entity",
        example='{"template": "%s is in the country of", "prompt": "Lima is in the country of", "entity": "Lima", '
        '"attribute": "Country", "Continent": "South America", "Country": "Peru", "Language": "Spanish", '
        '"attribute_counterfactual": {"prompt": "Oslo is in the country of", "entity": "Oslo", "attribute": "Country", '
        '"Country": "Norway"}}',
        read=ravel,
        bare=True,
    ),
)
