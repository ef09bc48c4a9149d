"""Other people's files: a fixture of three rows each becomes these pairs, and what is wrong in one is one error."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import causal_tracing as ct
from causal_tracing.errors import FormatNote, InvalidOption, InvalidPair
from causal_tracing.prompts.answers import each_of
from causal_tracing.prompts.files import read
from causal_tracing.prompts.formats.table import FORMATS, NAMES, as_text
from tokenizers_for_tests import with_bos, words

FILES = {path.stem: path for path in sorted((Path(__file__).parent / "formats").iterdir())}
CAPITAL = "The capital of Peru is the city of"
WALK = "After the walk, Ann and Tom went to the park. {} gave a ball to"
RUST = "Rust is red. What color is rust?\n{}. red\n{}. blue\nAnswer:"
# The first pair of each fixture, or the one that the number says.
GOLDEN: dict[str, dict[str, Any]] = {
    "known_1000": {"clean": CAPITAL, "answer": " Lima", "subject": "Peru", "id": "known-0",
                   "labels": {"template": "The capital of {} is", "prediction": " Lima. It is", "relation": "P36"}},
    "counterfact": {"clean": CAPITAL, "answer": " Lima", "foil": " Oslo", "subject": "Peru", "id": "case-0",
                    "labels": {"pararel_idx": 100, "relation": "P36"}},
    "counterfact-tracing": {
        "clean": CAPITAL, "answer": " Lima", "foil": " Oslo", "subject": "Peru",
        "labels": {"relation_prefix": "The capital of", "relation_suffix": " is the city of", "target_false_id": "Q0",
                   "target_true_id": "Q10", "relation": "P36", "relation_text": "The capital of {} is the city of"}},
    "lre": {"clean": CAPITAL, "answer": " Lima", "subject": "Peru", "id": "country capital city-0-0",
            "cluster": "country capital city: Peru",
            "labels": {"relation_type": "factual", "domain_name": "country", "range_name": "city", "symmetric": False,
                       "relation": "country capital city", "template": "The capital of {} is the city of"}},
    "mib-ioi": {
        "clean": WALK.format("Tom"), "corrupt": WALK.format("Ann"), "answer": " Ann", "foil": " Tom", "subject": "Tom",
        "corrupt_subject": "Ann", "occurrence": -1, "spans": {"IO": "Ann", "S1": "Tom"},
        "labels": {"template": "After the walk, {name_A} and {name_B} went to the {place}. {name_C} gave a {object} to",
                   "object": "ball", "place": "park", "random_a": "Amy", "random_b": "Dan", "random_c": "Jack"}},
    "mib-mcqa": {"clean": RUST.format("A", "B"), "corrupt": RUST.format("Q", "R"), "answer": " A", "foil": " Q",
                 "labels": {"question": "What color is rust?", "idx": 0}},
    "mib-arc": {"clean": "Which is a planet?\nA. Mars\nB. Moon\nAnswer:", "answer": " A", "foil": " Q",
                "corrupt": "Which is a planet?\nQ. Mars\nR. Moon\nAnswer:",
                "labels": {"arc_id": "made_0", "question": "Which is a planet?", "label": "A", "idx": 0}},
    "mib-arithmetic": {"clean": "21 plus 34 is", "corrupt": "62 plus 17 is", "answer": " 55", "foil": " 79",
                       "labels": {"idx": 0, "template": "{op1} plus {op2} is", "operator": "+", "num_digit": 2,
                                  "operand1": 21, "operand2": 34}},
    "mib-ravel": {"clean": "The city of Lima is in the country of", "answer": " Peru", "foil": " Norway",
                  "corrupt": "The city of Oslo is in the country of", "subject": "Lima", "corrupt_subject": "Oslo",
                  "occurrence": -1,
                  "labels": {"template": "The city of %s is in the country of", "Continent": "Asia", "Country": "Peru",
                             "Language": "Made", "relation": "Country"}},
    "eap-ig-years": {"clean": "The voyage lasted from the year 1743 to the year 17", "subject": "1743",
                     "corrupt": "The voyage lasted from the year 1701 to the year 17", "corrupt_subject": "1701",
                     "answer": [f"{year:02}" for year in range(44, 100)], "labels": {"label": "43"},
                     "foil": [f"{year:02}" for year in range(44)]},
    "eap-ig-years-idx": {"clean": "1512, 1530, 1541, 15", "corrupt": "1512, 1530, 1501, 15", "subject": "1541",
                         "corrupt_subject": "1501", "answer": [f"{year:02}" for year in range(42, 100)],
                         "foil": [f"{year:02}" for year in range(42)], "labels": {"correct_idx": "41"}},
    "autocircuit": {"clean": "The cow likes to eat", "corrupt": "The cat likes to eat", "answer": " grass",
                    "foil": " fish", "id": "prompt-0"},
    "causalgym": {"clean": "The guard near the door", "corrupt": "The guards near the door", "answer": " is",
                  "foil": " are", "subject": " guard", "corrupt_subject": " guards",
                  "spans": {"span_0": "The", "span_1": " guard", "span_2": " near", "span_3": " the door"},
                  "corrupt_spans": {"span_0": "The", "span_1": " guards", "span_2": " near", "span_3": " the door"},
                  "labels": {"base_type": "plural", "src_type": "singular", "task": "agr_made"}},
    "syntaxgym": {"clean": "No guest has", "corrupt": "The guest has", "answer": " ever", "cluster": "item 1",
                  "labels": {"suite": "npi_made", "item": "1", "prediction": 0, "conditions": "neg, pos"}},
    "blimp": {"clean": "Look at these", "corrupt": "Look at this", "answer": " dogs", "id": "agreement_made-0"},
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_a_file_is_recognised_and_read_as_these_pairs(name: str):
    reading = read(FILES[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FormatNote)
        first, *others = reading.pairs()
    golden = ct.Pair(**GOLDEN[name])
    if name == "blimp":  # every field of a row is a label there
        assert {"field", "linguistics_term", "UID", "sentence_good", "relation"} <= {*first.labels}
        golden = ct.Pair(**GOLDEN[name], labels=first.labels)
    assert reading.format == name
    assert first == golden
    assert len(others) == 2
    assert {type(value) for pair in others for value in pair.labels.values()} <= {str, int, bool}


def test_every_format_has_a_fixture_and_an_example_that_is_one():
    assert {*FILES} == {*NAMES} - {"pairs"}
    for each in FORMATS:
        assert read([json.loads(each.example)]).format == each.name
        assert f"{each.name}: {each.about}\n  keys    {', '.join(sorted(each.keys))}\n" in as_text()
        assert f"  source  {each.source}\n  row     {each.example}\n" in as_text()


def rows_of(name: str) -> list[Any]:
    """The rows of a fixture; of one JSON object, itself."""
    text = FILES[name].read_text()
    if FILES[name].suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    found = json.loads(text) if FILES[name].suffix == ".json" else pd.read_csv(FILES[name]).to_dict("records")
    return found if isinstance(found, list) else [found]


def test_one_prefix_of_blimp_has_a_foil_and_no_corrupt_prompt():
    with pytest.warns(FormatNote):
        last = ct.read_pairs(FILES["blimp"])[2]
    assert (last.clean, last.corrupt, last.answer, last.foil) == ("The dogs", None, " bark", " barks")


def test_years_need_no_subject_where_prompts_differ_in_more_than_one():
    rows = rows_of("eap-ig-years-idx")
    rows[0]["corrupted"] = "1512, 1530, 1601, 16"  # another century for the answer, too
    rows[1]["clean"] = "1345 and 1345 are less than 13"
    first, second, third = ct.read_pairs(rows)
    assert (first.subject, first.corrupt_subject, first.answer[0]) == (None, None, "42")
    assert (second.subject, second.answer[0], each_of(second.foil)[-1]) == (None, "46", "45")
    assert (third.subject, third.corrupt_subject, third.answer[:2]) == ("1207", "1201", ("08", "09"))


def test_a_suite_reads_either_direction_and_regions_that_differ():
    (suite,) = rows_of("syntaxgym")
    suite["predictions"] = [{"formula": "[(4;%pos%) > (4;%neg%)] & (2;%neg%)<(2;%pos%)"}]
    suite["items"][0]["conditions"][1]["regions"][1]["content"] = "guests"
    with pytest.warns(FormatNote):
        first, second, *_ = ct.read_pairs([suite])
    assert (first.clean, first.answer, first.foil) == ("No guest has", " ever", None)
    assert (second.clean, second.corrupt, second.answer, second.foil) == ("No", "The", " guest", " guests")


def test_spans_whose_letters_stand_before_are_not_named():
    row = rows_of("causalgym")[0]
    row |= {"src": ["the", " cat", " saw", " the", " cat"], "base": ["the", " dog", " saw", " the", " cat"]}
    (pair,) = ct.read_pairs([row])
    assert (pair.subject, pair.corrupt_subject, pair.occurrence) == (" cat", " dog", 0)
    assert pair.spans == {"span_0": "the", "span_1": " cat", "span_2": " saw", "span_3": " the"}
    row["src"] = ["the", " cat", " saw", "the", " owl"]
    (pair,) = ct.read_pairs([row])
    assert pair.subject is None  # they differ in several spans
    assert [*pair.spans] == [*pair.corrupt_spans] == ["span_0", "span_1", "span_2", "span_4"]


PROMPTS_BEFORE = {
    "a word": ("The capital is", " Lima"),
    "a space": ("The capital is ", "Lima"),
    "a line break": ("Capital\n", "Lima"),
    "an open quote": ('The "capital" is "', "Lima"),
    "a closed quote": ('It is the "capital"', " Lima"),
    "a bracket": ("The capital (", "Lima"),
}


@pytest.mark.parametrize("name", PROMPTS_BEFORE)
def test_an_answer_gets_a_space_where_a_word_begins_with_one(name: str):
    prompt, answer = PROMPTS_BEFORE[name]
    row = {**rows_of("known_1000")[0], "prompt": prompt}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert ct.read_pairs([row])[0].answer == answer
    assert [str(each.message) for each in said] == [
        "the rows (known_1000): answers and foils had no leading space, and got one (1 row)."
    ] * (answer[0] == " ")


def test_what_is_left_out_is_said():
    with pytest.warns(FormatNote, match=r"\(autocircuit\): answers has 2 texts, and the first is taken \(1 row\)\."):
        ct.read_pairs(FILES["autocircuit"])


def changed(name: str, change: Callable[[Any], object]) -> list[Any]:
    rows = rows_of(name)
    change(rows[-1])
    return rows


WRONG: dict[str, tuple[str, Callable[[Any], object], str]] = {
    "a key": ("counterfact", lambda row: row["requested_rewrite"].pop("subject"),
              r"requested_rewrite\.subject is missing; here is 'prompt',"),
    "a key inside": ("counterfact", lambda row: row["requested_rewrite"]["target_new"].pop("str"),
                     r"requested_rewrite\.target_new\.str is missing; here is 'id'\."),
    "a text": ("known_1000", lambda row: row.update(attribute=7), "attribute must be a text, and is 7\\."),
    "a name": ("known_1000", lambda row: row.update(known_id=[7]),
               r"known_id must be a text or a whole number, and is \[7\]"),
    "an object": ("counterfact", lambda row: row.update(requested_rewrite="x"),
                  "requested_rewrite must be an object, and is 'x'"),
    "a template": ("counterfact", lambda row: row["requested_rewrite"].update(prompt="no slot"),
                   "the template 'no slot' must have one {}, where the subject stands"),
    "a list": ("lre", lambda row: row.update(samples=[]), r"samples must be a list with something in it"),
    "a list of objects": ("lre", lambda row: row["samples"].append(3),
                          r"samples\[3\] must be an object, and is 3"),
    "a list of texts": ("lre", lambda row: row["prompt_templates"].append(3),
                        r"prompt_templates\[1\] must be a text, and is 3"),
    "a choice": ("mib-mcqa", lambda row: row.update(answerKey=2),
                 "answerKey is 2, and there are choices 0 to 1"),
    "a choice inside": ("mib-arc", lambda row: row["symbol_counterfactual"].update(answerKey="x"),
                        "symbol_counterfactual.answerKey must be a whole number, and is 'x'"),
    "an attribute": ("mib-ravel", lambda row: row.update(attribute="Mayor"), "Mayor is missing"),
    "a name of ioi": ("mib-ioi", lambda row: row["metadata"].pop("subject"), "metadata.subject is missing"),
    "a label": ("mib-arithmetic", lambda row: row["random_counterfactual"].update(label=1.5),
                "random_counterfactual.label must be a text or a whole number, and is 1.5"),
    "a foil": ("eap-ig", lambda row: row.pop("incorrect_idx"),
               r"this row is of the format eap-ig-years-idx, and row 0 is eap-ig\."),
    "an answer": ("eap-ig", lambda row: row.pop("correct_idx"), "this looks like eap-ig .*, and lacks correct_idx"),
    "a year": ("eap-ig-years", lambda row: row.update(label=43),
               r"label is 43, and no year of two digits that stands in the prompt .*to the year 15'"),
    "a year as a text": ("eap-ig-years", lambda row: row.update(label="98th"), "label must be a whole number"),
    "the last year": ("eap-ig-years", lambda row: row.update(clean="from 1599 to 15", label=99),
                      "label is 99, and no year .* with later ones behind it"),
    "no century": ("eap-ig-years", lambda row: row.update(clean="It lasted from the year 1598"),
                   "label is 98, and no year of two digits"),
    "a token's id": ("eap-ig-years-idx", lambda row: row.update(correct_idx=5099),
                     "correct_idx is 5099, and no year .*token ids need incorrect_idx too"),
    "both keys of a year": ("eap-ig-years", lambda row: row.update(correct_idx=98),
                            "the keys of eap-ig-years and eap-ig-years-idx are all here"),
    "an id": ("eap-ig", lambda row: row.update(correct_idx="Mary"), "correct_idx must be a whole number"),
    "answers": ("autocircuit", lambda row: row["prompts"][1].update(answers=[3]),
                r"prompts\[1\]\.answers\[0\] must be a text, and is 3"),
    "a prompt": ("autocircuit", lambda row: row["prompts"][2].pop("corrupt"),
                 r"prompts\[2\]\.corrupt is missing; here is 'clean'"),
    "spans": ("causalgym", lambda row: row["base"].append(" more"), "src has 3 spans, and base 4"),
    "a formula": ("syntaxgym", lambda row: row["predictions"].append({"formula": "(4;%neg%) + (3;%neg%) < (4;%pos%)"}),
                  r"predictions\[1\]\.formula .* is not one region compared in two conditions"),
    "two regions": ("syntaxgym", lambda row: row["predictions"].append({"formula": "(4;%neg%) < (3;%pos%)"}),
                    r"predictions\[1\]\.formula .* is not one region compared in two conditions"),
    "a condition": ("syntaxgym", lambda row: row["items"][1]["conditions"].pop(),
                    "item 2 has no condition 'pos'"),
    "a region": ("syntaxgym", lambda row: row["items"][2]["conditions"][0]["regions"].pop(3),
                 r"items\[2\]\.conditions\[0\]\.regions: region 4.* is empty or not there"),
    "the first region": ("syntaxgym", lambda row: row.update(predictions=[{"formula": "(1;%neg%) < (1;%pos%)"}]),
                         "region 1, which predictions compare, has nothing before it"),
    "the hub's copy": ("blimp", lambda row: row.pop("pairID"), r"this is BLiMP as the hub has it.*data/\*\.jsonl"),
    "a flag": ("blimp", lambda row: row.update(two_prefix_method="maybe"),
               "two_prefix_method must be true or false, and is 'maybe'"),
    "no prefix": ("blimp", lambda row: row.update(one_prefix_method=False),
                  "this row has neither one_prefix_method nor two_prefix_method"),
    "a prefix": ("blimp", lambda row: row.pop("one_prefix_word_bad"), "one_prefix_word_bad is missing"),
    "most of it": ("known_1000", lambda row: row.pop("attribute"),
                   "this looks like known_1000 .*, and lacks attribute"),
    "another's keys": ("known_1000", lambda row: row.update(rows_of("blimp")[0]),
                       "the keys of known_1000 and blimp are all here.*--format known_1000"),
    "a pair's keys": ("known_1000", lambda row: row.update(clean="a", answer=" b"),
                      "the keys of pairs and known_1000 are all here"),
    "another's row": ("mib-ioi", lambda row: (row.clear(), row.update(rows_of("mib-ravel")[0])),
                      r"this row is of the format mib-ravel, and row 0 is mib-ioi\."),
    "a pair among them": ("mib-ioi", lambda row: (row.clear(), row.update(clean="a", answer=" b")),
                          r"this row is of the format pairs, and row 0 is mib-ioi\."),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_one_error_that_names_the_row(name: str, tmp_path: Path):
    of, change, message = WRONG[name]
    rows = changed(of, change)
    message = f"row {len(rows) - 1}(, read as {of})?: .*{message}"
    with pytest.raises(InvalidPair, match=message):
        read(rows)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(InvalidPair, match=f"rows.json, .*{message}"):
        read(path)


def test_a_format_that_is_named_is_taken():
    row = rows_of("known_1000")[0] | {"clean": "a", "answer": " b"}
    assert ct.read_pairs([row], format="pairs")[0].clean == "a"
    with pytest.warns(FormatNote):
        assert ct.read_pairs([row], format="known_1000")[0].clean == CAPITAL
    with pytest.raises(
        InvalidPair, match="row 0, read as counterfact: requested_rewrite is missing; here is 'known_id'"
    ):
        read([row], format="counterfact")
    with pytest.raises(InvalidOption, match="There is no format 'known_100'. Did you mean 'known_1000'"):
        read([row], format="known_100")


@pytest.mark.parametrize("name", ["counterfact", "mib-mcqa", "causalgym"])
def test_a_table_in_memory_is_read_as_its_file(name: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FormatNote)
        assert ct.read_pairs(pd.DataFrame(rows_of(name))) == ct.read_pairs(FILES[name])


NAMED = words(" Mary", " John", "After", " the", " walk,", " and", " went", " to", " park.", " gave", " a", " ball")


def ids(answer: int, foil: int) -> list[dict[str, Any]]:
    clean, corrupt = (f"After the walk, Mary and John went to the park. {giver} gave a ball to" for giver in ("J", "M"))
    return [{"clean": clean, "corrupted": corrupt, "correct_idx": answer, "incorrect_idx": foil}]


def test_token_ids_are_texts_to_the_tokenizer_that_is_given():
    (pair,) = ct.read_pairs(ids(1, 2), tokenizer=NAMED)
    assert (pair.answer, pair.foil) == (" Mary", " John")
    spaced = with_bos()
    mary, john = spaced(" Mary John", add_special_tokens=False)["input_ids"][-2:]
    (pair,) = ct.read_pairs(ids(mary, john), tokenizer=spaced)
    assert (pair.answer, pair.foil) == (" Mary", " John")


def test_token_ids_of_another_tokenizer_are_refused():
    with pytest.raises(InvalidPair, match=r"eap-ig.csv, line 2: answers are token ids .*=model\.tokenizer"):
        ct.read_pairs(FILES["eap-ig"])
    with pytest.raises(InvalidPair, match="row 0: foil is the token 5000, and this tokenizer has 13"):
        ct.read_pairs(ids(1, 5000), tokenizer=NAMED)
    with pytest.raises(InvalidPair, match="row 0: answer is the token 3, which is 'After' .* is other tokens"):
        ct.read_pairs(ids(3, 1), tokenizer=NAMED)
