"""Tokenizers of other kinds: without places, and with chat templates that are named, raise or are broken."""

import pytest
from transformers import ByT5Tokenizer

from causal_tracing.errors import UnsupportedTokenizer
from causal_tracing.prompts.pairs import Pair, TokenPair, tokenize
from tokenizers_for_tests import byte_level


class Told(ByT5Tokenizer):
    """Puts tokens around a prompt, and does not say so."""

    def build_inputs_with_special_tokens(self, token_ids_0, token_ids_1=None):
        return [self.pad_token_id, *token_ids_0, self.eos_token_id]

    def get_special_tokens_mask(self, token_ids_0, token_ids_1=None, already_has_special_tokens=False):
        return [0] * len(token_ids_0)


SLOW = ByT5Tokenizer()  # which puts </s> behind every prompt
GOOD = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}<|assistant|>"


def pair(tokenizer, **fields: object) -> TokenPair:
    common = {"clean": "in Rome", "corrupt": "in Oslo", "answer": "s", "foil": "t"}
    return tokenize(Pair(**(common | fields)), tokenizer)  # pyright: ignore[reportArgumentType]


def test_a_tokenizer_that_knows_no_places_is_taken_without_subject_and_spans():
    tokens = pair(SLOW)
    assert tokens.clean.strings == tuple("in Rome")
    assert tokens.clean.roles == ("",) * 6 + ("last",)
    for fields in ({"subject": "Rome"}, {"spans": {"S": "Rome"}}):
        with pytest.raises(UnsupportedTokenizer) as error:
            pair(SLOW, **fields)
        assert "ByT5Tokenizer cannot say where its tokens lie in the text (it is not a fast" in str(error.value)
        assert "leave out subject and spans" in str(error.value)


def test_what_a_slow_tokenizer_puts_behind_a_prompt_is_left_out_whether_it_says_so_or_not():
    plain, told = pair(SLOW), pair(Told())
    assert told.clean.tokens == (0, *plain.clean.tokens)
    assert told.clean.strings[1:] == plain.clean.strings == tuple("in Rome")
    assert told.answers == plain.answers == (tuple(SLOW("s", add_special_tokens=False)["input_ids"]),)
    said = "the tokenizer puts </s> behind every prompt: it is left out, and what comes next is asked."
    assert told.notes[0] == plain.notes[0] == said


@pytest.mark.parametrize("template", [GOOD, {"default": GOOD, "tools": "{{ raise_exception('no') }}"}])
def test_chat_templates_that_work(template):
    tokenizer = byte_level()
    tokenizer.chat_template = template
    tokens = pair(tokenizer, chat=True, corrupt="in Paris", subject="Rome", corrupt_subject="Paris")
    assert tokens.clean.text == "<|user|>in Rome<|assistant|>"
    assert "".join(tokens.clean.strings[n] for n in tokens.clean.subject).strip() == "Rome"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            {"rag": GOOD, "tools": GOOD},
            r"several chat templates \(rag, tools\), and none is called 'default'\. Choose one",
        ),
        ("{{ raise_exception('roles must alternate') }}", r"cannot be filled in .*roles must alternate\)\. Mend it"),
        ("{% for message in messages %}", r"cannot be filled in .*TemplateSyntaxError.*\)\. Mend it"),
        ("{{ messages[0].nothing.more }}", r"cannot be filled in .*UndefinedError"),
        ("{{ messages[0].content | upper }}", "changes the message"),
        ("", "has no chat template"),
    ],
)
def test_chat_templates_that_do_not(template, message: str):
    tokenizer = byte_level()
    tokenizer.chat_template = template
    with pytest.raises(UnsupportedTokenizer, match=message):
        pair(tokenizer, chat=True)
