"""Tokenizers of other kinds: without places, and with chat templates that are named, raise or are broken."""

import pytest
from transformers import ByT5Tokenizer

from causal_tracing.errors import UnsupportedTokenizer
from causal_tracing.prompts.pairs import Pair, TokenPair, tokenize
from tokenizers_for_tests import byte_level


class Bytes(ByT5Tokenizer):
    """Without EOS behind the prompt."""

    def build_inputs_with_special_tokens(self, token_ids_0, token_ids_1=None):
        return [*token_ids_0]

    def get_special_tokens_mask(self, token_ids_0, token_ids_1=None, already_has_special_tokens=False):
        return [0] * len(token_ids_0)


SLOW = Bytes()
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
        assert "Bytes cannot say where its tokens lie in the text (it is not a fast tokenizer)" in str(error.value)
        assert "leave out subject and spans" in str(error.value)


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
