"""Transformers' attention interface, while the layers attend by a function of ours, and after it."""

import pytest
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from causal_tracing.engine.hooks.attention import attention_by
from loaded import shared


def ours(asked):
    return asked.answer()


@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_what_was_registered_is_back_and_nothing_of_ours_is_left(name: str):
    model = shared("llama", name)
    library = ALL_ATTENTION_FUNCTIONS.get(name)
    with attention_by(model, ours):
        assert ALL_ATTENTION_FUNCTIONS.get(name) is not library
        with attention_by(model, ours):
            pass
    assert ALL_ATTENTION_FUNCTIONS.get(name) is library
    with pytest.raises(KeyError):  # the library's own is not among what can be taken away
        del ALL_ATTENTION_FUNCTIONS[name]


def test_somebody_elses_function_is_back_too():
    model, library = shared("llama", "sdpa"), AttentionInterface()["sdpa"]

    def theirs(*given, **named):
        return library(*given, **named)

    ALL_ATTENTION_FUNCTIONS["sdpa"] = theirs
    with attention_by(model, ours):
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not theirs
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is theirs
    del ALL_ATTENTION_FUNCTIONS["sdpa"]
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is library
