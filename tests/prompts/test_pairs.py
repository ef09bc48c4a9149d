import json
import re
from datetime import datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_tracing import read_pairs
from causal_tracing.errors import InvalidOption, InvalidPair, MisalignedPair
from causal_tracing.prompts.pairs import Pair, tokenize, tokenize_pairs
from causal_tracing.prompts.tokens import encode, find_span, span_positions
from tokenizers_for_tests import byte_level, with_bos, words

WORDS = words("a", " a", " b", " c", " d", " e", " f", "x", " x", "a b", " yes", " no", "yes", " \n", " maybe")
BYTES, BOS = byte_level(), with_bos()


LEFT_OUT = "the tokenizer puts {} behind every prompt: it is left out, and what comes next is asked."


def pair(**fields: object) -> Pair:
    common = {"clean": "a b c d", "corrupt": "a x c d", "answer": " yes", "foil": " no"}
    return Pair(**(common | fields))  # pyright: ignore[reportArgumentType]


def test_a_pair_becomes_tokens_answers_and_what_differs():
    tokens = tokenize(pair(), WORDS)
    assert tokens.clean.strings == ("a", " b", " c", " d")
    assert tokens.corrupt.strings == ("a", " x", " c", " d")
    assert tokens.differing == (1,)
    assert WORDS.decode([tokens.answer]) == " yes"
    assert tokens.foil is not None
    assert WORDS.decode([tokens.foil]) == " no"


def test_a_span_may_be_another_text_in_the_corrupt_prompt():
    spans = {"S1": "b", "S2": "c d"}
    assert tokenize(pair(spans=spans), WORDS).corrupt.spans == {"S2": (2, 3)}
    tokens = tokenize(pair(spans=spans, corrupt_spans={"S1": "x c"}), WORDS)
    assert tokens.clean.spans == {"S1": (1,), "S2": (2, 3)}
    assert tokens.corrupt.spans == {"S1": (1, 2), "S2": (2, 3)}
    with pytest.raises(InvalidPair, match="'pair-0': 'b' is not in the prompt 'a x c d'"):
        tokenize(pair(spans=spans, corrupt_spans={"S1": "b"}), WORDS)
    unknown, inside = tokenize(pair(corrupt="a xb c d", spans=spans, corrupt_spans={"S1": "x"}), WORDS).notes
    assert unknown == "the corrupt prompt 'a xb c d' has letters that this tokenizer does not know, read as <unk>."
    assert inside == "the span 'S1' 'x' is taken inside the word 'xb' of the corrupt prompt."


@pytest.mark.parametrize(
    ("subject", "roles"),
    [
        ("b c d", "before_subject subject_first subject_middle subject_last next last"),
        ("b", "before_subject subject_last next further further last"),
        ("a b", "subject_first subject_last next further further last"),
        ("e f", "before_subject before_subject before_subject before_subject subject_first last"),
        ("f", "before_subject before_subject before_subject before_subject before_subject last"),
        (None, "     last"),
    ],
)
def test_every_token_has_one_role(subject: str | None, roles: str):
    tokens = tokenize(pair(clean="a b c d e f", corrupt="x b c d e f", subject=subject), WORDS)
    assert tokens.clean.roles == tuple(roles.split(" "))


def test_named_spans_can_be_asked_for():
    tokens = tokenize(pair(spans={"S1": "b c"}), WORDS)
    assert tokens.clean.positions("S1") == (1, 2)
    assert tokens.corrupt.positions("S1") == ()  # worded otherwise there


def test_a_span_is_where_its_text_stands_first_whatever_the_subject_is():
    sides = {"clean": " b c b d", "corrupt": " b c c d", "subject": "b", "corrupt_subject": "c", "occurrence": -1}
    tokens = tokenize(Pair(answer=" a", spans={"S1": "b"}, **sides), WORDS)
    assert tokens.clean.subject == (2,)
    assert tokens.clean.positions("S1") == (0,)
    with pytest.raises(InvalidPair, match="'last': the word has a meaning"):
        pair(spans={"last": "b"})


@pytest.mark.parametrize("name", ["3", "-1", "+03", " 7 "])
def test_a_span_is_never_called_as_a_token_is(name):
    with pytest.raises(InvalidPair, match=r"a span cannot be called .*as a position it would be token .*'span_"):
        pair(spans={name: "b"})
    assert pair(spans={"3rd": "b", "²": "c", "1.5": "a"}).spans.keys() == {"3rd", "²", "1.5"}


def test_a_repeated_subject_is_chosen_by_occurrence():
    repeated = {"clean": "a b c b", "corrupt": "x b c b", "subject": "b"}
    assert tokenize(pair(**repeated), WORDS).clean.positions("subject_last") == (1,)
    assert tokenize(pair(**repeated, occurrence=1), WORDS).clean.roles[3] == "last"
    with pytest.raises(InvalidPair, match=r"'b' occurs 2 times \(occurrence=2 was asked for\) in the prompt 'a b c b'"):
        tokenize(pair(**repeated, occurrence=2), WORDS)
    with pytest.raises(InvalidPair, match="pair 'p': 'Rome' is not in the prompt 'a b c d'"):
        tokenize(pair(subject="Rome", id="p"), WORDS)


TEXT = st.text(alphabet=st.sampled_from("abc Tower Rome 東京🗼éü\n.,"), min_size=1, max_size=24)


@pytest.mark.parametrize("tokenizer", [BYTES, BOS], ids=["bytes", "bos"])
@settings(max_examples=60, derandomize=True, deadline=None)
@given(before=TEXT, part=TEXT, after=TEXT)
def test_law_32_spans_round_trip(tokenizer, before: str, part: str, after: str):
    """The tokens of a span cover it, each touches it, and none beside them does: Unicode, repeats, spaces, BOS."""
    text = before + part + after
    ids, offsets = encode(text, tokenizer)
    assert offsets is not None
    occurrence = sum(text.startswith(part, start) for start in range(len(before)))
    start, end = find_span(text, part, occurrence)
    assert (start, end) == (len(before), len(before) + len(part))
    found = span_positions(offsets, (start, end))
    covered = {letter for position in found for letter in range(*offsets[position])}
    dropped = {n for n in range(start, end) if not any(first <= n < last for first, last in offsets)}
    assert set(range(start, end)) - dropped <= covered  # a tokenizer may drop letters (spaces); we may not
    for position, (first, last) in enumerate(offsets):
        touches = any(first <= letter < last for letter in range(start, end))
        assert (position in found) == touches
    if ids[0] == tokenizer.bos_token_id:
        assert 0 not in found


def test_token_strings_put_together_are_the_text():
    text = "Überraschung in 東京 🗼 naïve"
    tokens = tokenize(Pair(clean=text, corrupt=text, answer=".", foil=","), BYTES)
    shown = "".join(tokens.clean.strings).encode()
    assert re.sub(rb"<0x(..)>", lambda found: bytes.fromhex(found[1].decode()), shown) == text.encode()
    plain = tokenize(Pair(clean="The city of", corrupt="The city of", answer=".", foil=","), BYTES)
    assert "".join(plain.clean.strings) == "The city of"


def test_prompts_of_different_length_are_refused_with_both_tokenisations():
    with pytest.raises(MisalignedPair) as error:
        tokenize(pair(corrupt="a x c", id="capital-017"), WORDS)
    assert str(error.value) == (
        "pair 'capital-017' cannot be patched position by position.\n"
        "  clean    4 tokens: a| b| c| d\n"
        "  corrupt  3 tokens: a| x| c\n"
        "They part at position 1. Use prompts that have equally many tokens: choose another subject, "
        "or word the corrupt prompt otherwise. Or pair what they share: align='suffix' (the same end) or 'spans' "
        "(equal roles)."
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answer": " no yes", "foil": " no yes"}, r"answer and foil are the same tokens \(' no yes'\)"),
        ({"answer": " no"}, "answer and foil are the same token"),
        ({"corrupt": None}, "has no corrupt prompt. .* noise on its subject"),
    ],
)
def test_what_cannot_be_traced_is_refused(fields: dict[str, str], message: str):
    with pytest.raises(InvalidPair, match=message):
        tokenize(pair(**fields), WORDS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"clean": ""}, "clean is empty"),
        ({"clean": None}, "clean must be a text, and is None"),
        ({"answer": 3}, "answer must be a text or a list of texts, and is 3"),
        ({"occurrence": "1"}, "occurrence must be a whole number, and is '1'"),
        ({"id": 7}, "this pair: id must be a text"),
        ({"spans": 3}, "spans must map names to texts, and is 3"),
        ({"spans": {"S1": 3}}, "spans must map names to texts"),
        ({"spans": {"S1": ""}}, "spans must map names to texts"),
        ({"corrupt_spans": 3}, "corrupt_spans must map names to texts, and is 3"),
        ({"spans": {"S1": "b"}, "corrupt_spans": {"S2": "x"}}, "corrupt_spans names 'S2', and spans does not"),
    ],
)
def test_a_pair_says_at_once_what_is_wrong_with_it(fields: dict[str, object], message: str):
    fields = {"clean": "a", "answer": "b"} | fields
    unchecked = Pair.__new__(Pair)  # the tests' own type checker would speak first
    for name, field in Pair.__dataclass_fields__.items():
        object.__setattr__(
            unchecked, name, fields.get(name, {} if name in ("spans", "corrupt_spans", "labels") else field.default)
        )
    with pytest.raises(InvalidPair, match=message):
        unchecked.__post_init__()


def test_the_answer_is_the_token_after_the_prompt_not_the_text_alone():
    after = tokenize(Pair(clean="The city of", corrupt="The city of", answer=" Rome", foil=" Paris"), BOS)
    assert BOS.convert_ids_to_tokens(after.answer) == "▁Rome"


def test_an_answer_that_changes_the_prompts_tokens_is_refused():
    with pytest.raises(InvalidPair, match=r"answer 'yes' changes the last tokens of the prompt .*Move the white space"):
        tokenize(pair(clean="a b ", corrupt="a x ", answer="yes", foil="no"), WORDS)


def test_an_answer_without_its_space_is_scored_as_written_with_a_note():
    tokens = tokenize(Pair(clean="The city of", corrupt="The city of", answer=".", foil="s"), BYTES)
    assert tokens.notes == ("foil 's' is scored glued to the prompt: '…he city ofs'. Did you mean ' s'?",)


def test_what_a_tokenizer_puts_behind_every_prompt_is_left_out_with_a_note():
    asked = Pair(clean="in Rome and Mary", corrupt="in Paris and Mary", answer=" gave", foil=" is", subject="Rome")
    plain, ended = (tokenize(asked, with_bos(eos=eos)) for eos in (False, True))
    for name in ("clean", "corrupt"):
        assert getattr(ended, name) == getattr(plain, name)
    assert (ended.answers, ended.foils) == (plain.answers, plain.foils)
    assert plain.notes == ()
    assert ended.notes == (LEFT_OUT.format("<eos>"),)


def test_letters_that_the_tokenizer_does_not_know_are_said_of_prompts_and_answers():
    notes = tokenize(Pair(clean="in ☃ Rome", corrupt="in ☃ Paris", answer=" ☂", foil=" is"), with_bos()).notes
    read = "has letters that this tokenizer does not know, read as <unk>."
    assert notes == tuple(
        f"the {what} {read}" for what in ("clean prompt 'in ☃ Rome'", "corrupt prompt 'in ☃ Paris'", "answer ' ☂'")
    )
    assert (
        tokenize(Pair(clean="in <unk> Rome", corrupt="in <unk> Paris", answer=" and", foil=" is"), with_bos()).notes
        == ()
    )


def test_pairs_are_named_and_may_not_share_a_name():
    named = tokenize_pairs([pair(), pair(id="x")], WORDS)
    assert [tokens.id for tokens in named] == ["pair-0", "x"]
    with pytest.raises(InvalidPair, match="Two pairs have the id 'x'"):
        tokenize_pairs([pair(id="x"), pair(id="x")], WORDS)
    with pytest.raises(InvalidPair, match="no pair to trace"):
        tokenize_pairs([], WORDS)
    with pytest.raises(InvalidOption, match="align='sufix' is not offered"):
        tokenize(pair(), WORDS, align="sufix")


def test_pairs_from_a_file(tmp_path):
    rows = [
        {"clean": "a b", "corrupt": "a x", "answer": " yes", "foil": " no", "relation": "r", "labels": {"k": 1}},
        {"clean": "a\u2028b", "answer": " yes", "id": "two", "spans": {"S": "b"}},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    first, second = read_pairs(path)
    assert first == Pair(clean="a b", corrupt="a x", answer=" yes", foil=" no", labels={"relation": "r", "k": 1})
    assert second == Pair(clean="a\u2028b", answer=" yes", id="two", spans={"S": "b"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no pairs"),
        ("{", "line 1: not JSON"),
        ("[1]", "row 0: a JSON object is needed"),
        ('\n{"clean": "a"}', "line 2: answer missing"),
        ('{"clean": "a", "answer": ""}', "line 1: this pair: answer is empty"),
        ('{"clean": "a", "answer": "b", "spans": 3}', "line 1: spans must be an object"),
        ('{"clean": "a", "answer": "b", "id": "x"}\n' * 2, "line 2: the id 'x' was used in line 1"),
    ],
)
def test_a_bad_file_names_the_line(tmp_path, text: str, message: str):
    path = tmp_path / "pairs.jsonl"
    path.write_text(text)
    with pytest.raises(InvalidPair, match=message):
        read_pairs(path)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(InvalidPair, match="is not there"):
        read_pairs(tmp_path / "none.jsonl")
    (tmp_path / "bad.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidPair, match="cannot be read as text"):
        read_pairs(tmp_path / "bad.jsonl")


@pytest.mark.parametrize("value", [{1}, b"x", object(), datetime(2020, 1, 1), np.int64(3), {"a": [{1}]}])
def test_a_label_that_json_cannot_hold_is_refused_before_anything_is_traced(value: Any):
    with pytest.raises(InvalidPair, match=r"this pair: the label 'when' is a .*, which JSON cannot hold \("):
        Pair(clean="a", answer=" b", labels={"n": 1, "when": value})
