"""What is legal in a pair and probably not meant: each kind is said, and what is meant is not."""

import unicodedata

import pytest

from causal_tracing.errors import InvalidPair
from causal_tracing.prompts.pairs import Pair, TokenPair, tokenize
from causal_tracing.testing import ToyTokenizer
from tokenizers_for_tests import byte_level, with_bos

BYTES, BOS = byte_level(), with_bos()
CITY = "The city of Rome is in"
DECOMPOSED = unicodedata.normalize("NFD", "café")


def pair(tokenizer, noise: bool = False, **fields: object) -> TokenPair:
    common = {"clean": CITY, "answer": " Rome"} | ({} if noise else {"corrupt": CITY.replace("Rome", "Paris")})
    return tokenize(Pair(**(common | fields)), tokenizer, align="strict" if noise else "suffix", noise=noise)  # pyright: ignore[reportArgumentType]


def test_nothing_is_said_of_what_is_meant():
    for tokenizer in (BYTES, BOS):
        assert pair(tokenizer, subject="Rome", corrupt_subject="Paris", foil=" Paris").notes == ()


@pytest.mark.parametrize("text", [f"<bos>{CITY}", f" <bos> {CITY}"])
def test_a_special_token_that_is_there_twice(text: str):
    assert pair(BOS, clean=text).notes == (
        "the clean prompt begins with <bos> twice: the tokenizer puts it there, and the text has it too. Leave it out "
        "of the text.",
    )
    assert pair(BYTES, clean=f"<eos>{CITY}").notes == ()  # this one adds none


@pytest.mark.parametrize(("tokenizer", "scored"), [(BYTES, " Rome"), (BOS, "Rome")])
def test_a_space_on_both_sides_of_the_answer(tokenizer, scored: str):
    (note,) = pair(tokenizer, clean=f"{CITY} ", corrupt=f"{CITY.replace('Rome', 'Paris')} ").notes
    assert note.startswith("the prompt ends with a space and the answer ' Rome' begins with one: it is scored as ")
    assert f"scored as {scored!r} behind the token ' '" in note
    assert pair(BYTES, clean=f"{CITY}\n", corrupt=f"{CITY}\n").notes == ()


def test_a_subject_that_is_there_twice():
    twice = "The city of Rome and Rome is in"
    (note,) = pair(BYTES, clean=twice, subject="Rome").notes
    assert note == (
        "the subject 'Rome' stands 2 times in the clean prompt, and the first is taken: 'The city of [Rome] and Rome "
        "is'. occurrence=1 (--occurrence 1) takes the second, -1 the last."
    )
    assert pair(BYTES, clean=twice, subject="Rome", occurrence=-1).notes == ()


def test_a_subject_inside_another_word():
    (twice, inside) = pair(BYTES, clean="The Romeo city of Rome is in", subject="Rome").notes
    assert "stands 2 times" in twice
    assert inside == (
        "the subject 'Rome' is taken inside the word 'Romeo' of the clean prompt. occurrence=1 is a word by itself."
    )
    assert pair(BYTES, subject="it").notes == tuple(
        f"the subject 'it' is taken inside the word 'city' of the {side} prompt." for side in ("clean", "corrupt")
    )
    (span,) = pair(BYTES, spans={"part": "it"}).notes
    assert span == "the span 'part' 'it' is taken inside the word 'city' of the clean prompt."
    assert pair(BYTES, clean="首都は", corrupt="首都は", answer="東京", subject="都").notes == ()


def test_letters_that_look_the_same_are_named():
    text = f"The {DECOMPOSED} of Rome is in"
    with pytest.raises(InvalidPair) as error:
        pair(BYTES, clean=text, subject="café")
    assert str(error.value) == (
        f"pair 'pair-0': 'café' is not in the prompt {text!r}. It has U+00E9 where the prompt has U+0065 U+0301, which "
        'looks the same: write both alike, such as by unicodedata.normalize("NFC", text).'
    )
    with pytest.raises(InvalidPair, match=r"It has U\+0065 U\+0301 where the prompt has U\+00E9"):
        pair(BYTES, clean="The café of Rome", subject=DECOMPOSED)
    with pytest.raises(InvalidPair, match=r'U\+0020 where the prompt has U\+00A0.*normalize\("NFKC"'):
        pair(BYTES, clean="The\u00a0city of Rome", subject="The city")
    with pytest.raises(InvalidPair, match=r"'Oslo' is not in the prompt .* letter by letter\.$"):
        pair(BYTES, subject="Oslo")
    (note,) = pair(BYTES, clean="The café of Rome is in", corrupt=text.replace("Rome", "Paris"), subject="café").notes[
        1:
    ]
    assert note.startswith("the subject 'café' is not found in the corrupt prompt. It has U+00E9 where")


def test_an_answer_of_composed_letters_is_another():
    (note,) = pair(BYTES, answer=f" {DECOMPOSED}", foil=" café").notes
    assert note == (
        "the answer has U+0065 U+0301 where the composed letter is U+00E9: it looks the same, and is other tokens. "
        'Unless that is meant, give unicodedata.normalize("NFC", text).'
    )


def test_scripts_without_spaces_are_not_glued():
    for clean, answer in (("首都は", "東京"), ("เมือง", "หลวง"), ("is", "東京"), ("東京", "is")):
        assert pair(BYTES, clean=clean, corrupt=clean, answer=answer).notes == ()
    assert pair(BYTES, clean="in the year 17", corrupt="in the year 17", answer="45").notes == ()
    (note,) = pair(BYTES, answer="s").notes
    assert note.endswith("Did you mean ' s'?")


@pytest.mark.parametrize(
    ("clean", "answer", "advice"),
    [
        ("The city of Par", "is", "They make one word: begin the answer with a space, or end the prompt elsewhere."),
        ("東", "京", "They share a token there: move letters from the answer to the prompt, or"),
    ],
)
def test_the_advice_for_what_grows_together_can_be_followed(clean: str, answer: str, advice: str):
    with pytest.raises(InvalidPair) as error:
        pair(BYTES, clean=clean, corrupt=clean, answer=answer)
    assert advice in str(error.value)


def test_noise_on_no_token_is_refused():
    toy = ToyTokenizer(["The", "city", "Rome"])
    with pytest.raises(InvalidPair, match=r"the subject ' ' covers no token of the prompt \(The\| city\), so that"):
        pair(toy, noise=True, subject=" ", clean="The city")
