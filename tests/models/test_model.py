"""What a model says of itself: how long its prompts may be."""

import pytest
import torch

import causal_tracing as ct
from causal_tracing.errors import InvalidPair
from loaded import WORDS, shared

LONG = " ".join(["w11 w12 w13"] * 23)  # 69 tokens; the tiny models were made for 64
PAIR = ct.Pair(clean=LONG, corrupt=LONG[:-3] + "w43", answer=" w7", foil=" w8")
RUNS = ("llama", "gpt_neox", "gemma3", "falcon-rw", "mpt", "gpt2", "opt", "gptj")


@pytest.mark.parametrize("name", RUNS)
def test_prompts_beyond_the_context_are_allowed_where_the_model_runs_on_them(name: str):
    model = shared(name)
    assert model.context is not None
    try:
        with torch.no_grad():
            model.network(torch.tensor([WORDS(LONG)["input_ids"]]), use_cache=False)
        runs = True
    except (IndexError, RuntimeError):
        runs = False
    assert model.beyond_context == runs


def test_a_prompt_beyond_the_context_is_traced_with_a_word():
    (shown,) = ct.preview(shared("llama"), PAIR)
    assert "the pair has 69 tokens, and llama was made for 64 at most" in str(shown)
    trace = ct.trace(shared("llama"), PAIR, components=["mlp_out"], layers=[0, 1], positions=["last"], progress=False)
    assert trace.provenance["spot_checks"]["largest_difference"] < 1e-4
    with pytest.raises(InvalidPair, match="has 69 tokens; gpt2 takes 64 at most"):
        ct.trace(shared("gpt2"), PAIR)
