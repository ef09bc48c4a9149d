"""Corrupt prompts from other facts of a relation: the same words, another subject, as many tokens, chosen by a seed."""

from typing import Any

import pytest

import causal_tracing as ct
from causal_tracing.errors import FormatNote, InvalidOption, InvalidPair
from causal_tracing.prompts.pairs import tokenize
from causal_tracing.prompts.relations import corrupted
from tokenizers_for_tests import words

TOKENIZER = words(
    *" Rome Paris Oslo Bern Lima New York is in Italy France Norway Peru".replace(" ", "| ").split("|")[1:]
)
FACTS = {"Rome": " Italy", "Paris": " France", "Oslo": " Norway", "Milan": " Italy", "New York": " USA"}


def facts(*subjects: str, relation: str = "country", prompt: str = " Rome and {} is in") -> list[ct.Pair]:
    return [
        ct.Pair(clean=prompt.format(each), answer=FACTS[each], subject=each, labels={"relation": relation}, id=each)
        for each in subjects
    ]


def test_another_subject_of_the_relation_takes_the_place_of_the_own():
    rome, paris = corrupted(facts("Rome", "Paris", prompt=" {} is in"), "relation", TOKENIZER)
    assert (rome.corrupt, rome.corrupt_subject, rome.foil) == (" Paris is in", "Paris", " France")
    assert (paris.corrupt, paris.corrupt_subject, paris.foil) == (" Rome is in", "Rome", " Italy")
    assert tokenize(rome, TOKENIZER).differing == (0,)


def test_the_place_is_the_one_that_occurrence_says():
    rome = ct.Pair(clean=" Rome is in Rome", answer=" Italy", subject="Rome", occurrence=-1, labels={"relation": "r"})
    paris = ct.Pair(clean=" Paris is in", answer=" France", subject="Paris", labels={"relation": "r"})
    assert corrupted([rome, paris], "relation", TOKENIZER)[0].corrupt == " Rome is in Paris"


def test_partners_have_another_relation_answer_or_length_never():
    rome, milan = facts("Rome", "Milan", prompt=" {} is in")
    (york,) = facts("New York", prompt=" {} is in")
    (oslo,) = facts("Oslo", relation="north", prompt=" {} is in")
    message = r"4 of 4 pairs find no other fact of their relation .*\(Rome, Milan, New York, Oslo\)\. Add facts"
    with pytest.raises(InvalidPair, match=message):
        corrupted([rome, milan, york, oslo], "relation", TOKENIZER)
    (paris,) = facts("Paris", prompt=" {} is in")
    with pytest.warns(FormatNote, match=r"2 of 5 pairs .* \(New York, Oslo\): they stay without a corrupt prompt"):
        found = corrupted([rome, milan, york, oslo, paris], "relation", TOKENIZER)
    assert [pair.corrupt_subject for pair in found[:4]] == ["Paris", "Paris", None, None]
    assert found[4].corrupt_subject in ("Rome", "Milan")


def test_many_without_a_partner_are_counted():
    pairs = [
        ct.Pair(clean=f" Rome is in {n}", answer=" Italy", subject="Rome", labels={"relation": "r"}) for n in range(7)
    ]
    with pytest.raises(InvalidPair, match=r"7 of 7 .*\(pair-0, pair-1, pair-2, pair-3, pair-4 and 2 more\)"):
        corrupted(pairs, "relation", TOKENIZER)


def test_the_seed_chooses_and_the_same_seed_chooses_the_same():
    many = facts("Rome", "Paris", "Oslo", prompt=" {} is in")
    chosen = {seed: [pair.corrupt for pair in corrupted(many, "relation", TOKENIZER, seed=seed)] for seed in range(8)}
    assert len({tuple(each) for each in chosen.values()}) > 1
    assert chosen[3] == [pair.corrupt for pair in corrupted(many, "relation", TOKENIZER, seed=3)]


def test_a_corrupt_prompt_that_is_there_stays():
    rome, paris, oslo = facts("Rome", "Paris", "Oslo", prompt=" {} is in")
    own = ct.Pair(clean=" Bern is in", answer=" Italy", corrupt=" Lima is in", foil=" Peru")
    assert corrupted([rome, own, paris, oslo], "relation", TOKENIZER)[1] == own


@pytest.mark.parametrize(
    ("change", "missing"),
    [({"subject": None}, "a subject"), ({"labels": {}}, "the label 'relation'"),
     ({"subject": None, "labels": {}}, "a subject and the label 'relation'")],
)  # fmt: skip
def test_what_is_needed_is_said(change: dict[str, Any], missing: str):
    fields: dict[str, Any] = {
        "clean": " Rome is in",
        "answer": " Italy",
        "subject": "Rome",
        "labels": {"relation": "r"},
    }
    bad = ct.Pair(**fields | change)
    with pytest.raises(InvalidPair, match=f"pair 'pair-1' lacks {missing}, by which corrupt_by='relation'"):
        corrupted([*facts("Rome"), bad], "relation", TOKENIZER)


def test_other_errors():
    rows = [{"clean": " Rome is in", "answer": " Italy", "subject": "Rome", "relation": "r"},
            {"clean": " Oslo is in", "answer": " Norway", "subject": "Oslo", "relation": "r"}]  # fmt: skip
    with pytest.raises(InvalidOption, match="There is no way to corrupt 'relations'. Did you mean 'relation'"):
        ct.read_pairs(rows, corrupt_by="relations", tokenizer=TOKENIZER)
    with pytest.raises(InvalidOption, match=r"corrupt_by= counts tokens: give tokenizer=model\.tokenizer"):
        ct.read_pairs(rows, corrupt_by="relation")
    assert [pair.foil for pair in ct.read_pairs(rows, corrupt_by="relation", tokenizer=TOKENIZER)] == [
        " Norway",
        " Italy",
    ]
    rows[0]["subject"] = "Lima"
    with pytest.raises(InvalidPair, match="pair-0.*'Lima' is not in the prompt"):
        ct.read_pairs(rows, corrupt_by="relation", tokenizer=TOKENIZER)
