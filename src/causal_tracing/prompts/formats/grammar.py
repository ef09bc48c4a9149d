"""Grammar: CausalGym's spans, SyntaxGym's regions, and BLiMP's prefixes."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from causal_tracing.prompts.formats.fields import Fields, Row
from causal_tracing.prompts.formats.format import Format
from causal_tracing.prompts.tokens import occurrences

START = "<|endoftext|>"  # Pythia's first token, which CausalGym writes out; a tokenizer adds its own
COMPARED = re.compile(r"\(\s*(\d+)\s*;\s*%([\w-]+)%\s*\)\s*([<>])\s*\(\s*(\d+)\s*;\s*%([\w-]+)%\s*\)")
BESIDE = re.compile(r"[\s&\[\]()]*")  # what may join comparisons


def causalgym(row: Fields) -> Iterator[Row]:
    """Two sentences in spans; the span in which they differ is the subject, where there is one."""
    clean, corrupt = (_spoken(row.texts(side)) for side in ("src", "base"))
    if len(clean) != len(corrupt):
        raise row.wrong(f"src has {len(clean)} spans, and base {len(corrupt)}: they go by their number.")
    both = list(zip(_placed(clean), _placed(corrupt), strict=True))
    differ = [pair for pair in both if pair[0]["text"] != pair[1]["text"]]
    named = {f"span_{n}": pair for n, pair in enumerate(both) if pair[0]["first"] and pair[1]["first"]}
    subject: dict[str, Any] = {}
    # One span is the subject of both prompts only where it stands there as the same occurrence of its letters.
    if len(differ) == 1 and differ[0][0]["before"] == differ[0][1]["before"]:
        here, there = differ[0]
        subject = {"subject": here["text"], "corrupt_subject": there["text"], "occurrence": here["before"]}
    yield row.row(
        clean="".join(clean),
        corrupt="".join(corrupt),
        answer=row.text("src_label"),
        foil=row.text("base_label"),
        spans={name: here["text"] for name, (here, _) in named.items()},
        corrupt_spans={name: there["text"] for name, (_, there) in named.items()},
        **subject,
        labels=row.rest("src_label", "base_label"),
    )


def _spoken(spans: list[str]) -> list[str]:
    """The spans without the token that the tokenizer puts first, and without empty ones."""
    return [span for span in (spans[1:] if spans[0] == START else spans) if span]


def _placed(spans: Sequence[str]) -> list[dict[str, Any]]:
    """Each span, how often its letters stand before it, and whether that is never."""
    text, start, found = "".join(spans), 0, []
    for span in spans:
        before = occurrences(text, span).index(start)
        found.append({"text": span, "before": before, "first": before == 0 and bool(span.strip())})
        start += len(span)
    return found


def syntaxgym(suite: Fields) -> Iterator[Row]:
    """A suite: of each prediction that compares one region in two conditions, a pair of what stands before it."""
    predicted = [(n, _compared(each)) for n, each in enumerate(suite.each("predictions"))]
    name = suite.inside("meta").text("name")
    for item in suite.each("items"):
        number = item.name("item_number")
        conditions = {each.text("condition_name"): each for each in item.each("conditions")}
        for which, comparisons in predicted:
            for region, expected, other in comparisons:
                for condition in (expected, other):
                    if condition not in conditions:
                        raise item.wrong(f"item {number} has no condition {condition!r}, which predictions compare.")
                clean, answer = _before(conditions[expected], region)
                corrupt, foil = _before(conditions[other], region)
                yield suite.row(
                    clean=clean,
                    # Conditions may differ in the region alone, or in what stands before it alone.
                    corrupt=corrupt if corrupt != clean else None,
                    answer=answer,
                    foil=foil if foil != answer else None,
                    cluster=f"item {number}",
                    labels={"suite": name, "item": number, "prediction": which, "conditions": f"{expected}, {other}"},
                )


def _compared(prediction: Fields) -> list[tuple[int, str, str]]:
    """Region, where it is the less surprising, and where the more. Raises InvalidPair for what is no such formula."""
    formula = prediction.text("formula")
    found = COMPARED.findall(formula)
    if not found or BESIDE.fullmatch(COMPARED.sub("", formula)) is None or any(each[0] != each[3] for each in found):
        raise prediction.wrong(
            f"{prediction.path}formula {formula!r:.120} is not one region compared in two conditions, such as "
            "(8;%a%) < (8;%b%): there is no pair in it. Take this prediction out of the file."
        )
    return [(int(region), a, b) if less == "<" else (int(region), b, a) for region, a, less, _, b in found]


def _before(condition: Fields, region: int) -> tuple[str, str]:
    """The words before a region, and the region's own."""
    words = {each.whole("region_number"): each.text("content").strip() for each in condition.each("regions")}
    before = " ".join(word for number, word in sorted(words.items()) if number < region and word)
    if not words.get(region) or not before:
        raise condition.wrong(
            f"{condition.path}regions: region {region}, which predictions compare, "
            f"{'has nothing before it' if words.get(region) else 'is empty or not there'}."
        )
    return before, words[region]


def blimp(row: Fields) -> Iterator[Row]:
    """A minimal pair, by the prefixes that its repository's files have."""
    if "pairID" not in row.values or not {"one_prefix_method", "two_prefix_method"} <= {*row.values}:
        raise row.wrong(
            "this is BLiMP as the hub has it (nyu-mll/blimp), without the prefixes that a pair is made of. Take the "
            "files of its repository (alexwarstadt/blimp, data/*.jsonl)."
        )
    labels = row.rest() | {"relation": row.text("UID")}
    named = f"{row.text('UID')}-{row.name('pairID')}"
    if row.flag("two_prefix_method"):
        yield row.row(
            id=named,
            clean=row.text("two_prefix_prefix_good"),
            corrupt=row.text("two_prefix_prefix_bad"),
            answer=row.text("two_prefix_word"),
            labels=labels,
        )
    elif row.flag("one_prefix_method"):
        yield row.row(
            id=named,
            clean=row.text("one_prefix_prefix"),
            answer=row.text("one_prefix_word_good"),
            foil=row.text("one_prefix_word_bad"),
            labels=labels,
        )
    else:
        raise row.wrong("this row has neither one_prefix_method nor two_prefix_method: there is no prompt in it.")


FORMATS = (
    Format(
        name="causalgym",
        keys=frozenset({"base", "src", "base_label", "src_label"}),
        about="aryaman/causalgym on the hub",
        source="CausalGym, Arora et al. 2024 (arXiv 2402.12560)",
        gives="clean = src joined, corrupt = base joined, answer = src_label, foil = base_label, spans span_0, …",
        example='{"base": ["<|endoftext|>", "The", " guards", " near", " the door"], "src": ["<|endoftext|>", "The", '
        '" guard", " near", " the door"], "base_label": " are", "src_label": " is", "base_type": "plural", "src_type": '
        '"singular", "task": "agr_made"}',
        read=causalgym,
    ),
    Format(
        name="syntaxgym",
        keys=frozenset({"meta", "items", "predictions"}),
        about="a test suite of SyntaxGym, one JSON object",
        source="SyntaxGym, Gauthier et al. 2020 (ACL demos)",
        gives="clean and corrupt = the regions before the compared one, answer = it; foil only where it differs",
        example='{"meta": {"name": "made", "metric": "sum"}, "region_meta": {"1": "Licensor", "2": "NPI"}, '
        '"predictions": [{"type": "formula", "formula": "(2;%neg%) < (2;%pos%)"}], "items": [{"item_number": 1, '
        '"conditions": [{"condition_name": "neg", "regions": [{"region_number": 1, "content": "No guest has"}, '
        '{"region_number": 2, "content": "ever"}]}, {"condition_name": "pos", "regions": [{"region_number": 1, '
        '"content": "The guest has"}, {"region_number": 2, "content": "ever"}]}]}]}',
        read=syntaxgym,
        bare=True,
    ),
    Format(
        name="blimp",
        keys=frozenset({"sentence_good", "sentence_bad", "UID"}),
        about="a JSON Lines file of BLiMP's repository, 67 files (the hub's copy lacks the prefixes)",
        source="BLiMP, Warstadt et al. 2020 (arXiv 1912.00582)",
        gives="two_prefix: clean, corrupt = the prefixes, answer = the word; one_prefix: answer and foil, no corrupt",
        example='{"sentence_good": "These dogs bark.", "sentence_bad": "This dogs bark.", "two_prefix_prefix_good": '
        '"These", "two_prefix_prefix_bad": "This", "two_prefix_word": "dogs", "field": "morphology", '
        '"linguistics_term": "made", "UID": "made", "simple_LM_method": true, "one_prefix_method": false, '
        '"two_prefix_method": true, "lexically_identical": false, "pairID": "0"}',
        read=blimp,
        bare=True,
    ),
)
