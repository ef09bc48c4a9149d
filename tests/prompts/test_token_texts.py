"""Tokens that are pieces of letters are shown by their bytes, whatever kind of tokenizer made them."""

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from causal_tracing.prompts.pairs import Pair, tokenize
from causal_tracing.prompts.token_texts import in_pieces, token_text
from tokenizers_for_tests import byte_level


def fallback() -> PreTrainedTokenizerFast:
    """SentencePiece's kind: letters that it does not know are bytes."""
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "a", "b"]
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.mark.parametrize("tokenizer", [byte_level(), fallback(), ByT5Tokenizer()], ids=["bytes", "fallback", "byt5"])
def test_pieces_of_a_letter_are_shown_by_their_bytes(tokenizer):
    ids = tokenizer("a\U0001f5fc", add_special_tokens=False)["input_ids"]
    assert "".join(token_text(token, tokenizer) for token in ids) == "a<0xF0><0x9F><0x97><0xBC>"


def test_the_labels_of_pieces_differ():
    strings = tokenize(Pair(clean="a \U0001f5fc", corrupt="a \U0001f5fc", answer=" b"), byte_level()).clean.strings
    assert "\ufffd" not in "".join(strings)
    assert len({*strings}) == len(strings) > 3


def test_a_token_that_the_tokenizer_does_not_have_is_shown_by_its_number():
    """Models may have more embeddings than their tokenizers have tokens, and may find one of those the likeliest."""
    for tokenizer in (byte_level(), fallback()):
        token = len(tokenizer) + 3
        assert (token_text(token, tokenizer), in_pieces(token, tokenizer)) == (f"<{token}>", False)
