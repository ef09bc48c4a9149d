"""Few words of the vocabulary: where a measure looks at no others, the head computes no others, and says the same."""

from collections.abc import Sequence

import pytest
import torch
from numpy.testing import assert_allclose

from causal_tracing.engine.evaluate import evaluate
from causal_tracing.interventions.edits import Edit, From, Run, World
from causal_tracing.interventions.sites import Site
from causal_tracing.models.model import Model
from loaded import fresh

FEW = (2, 5, 41)
# Heads of other kinds: plain, with a bias, with scaled logits, with a soft-cap, shared with the embedding.
HEADS = ("llama", "phi", "cohere", "granite", "gemma2", "gpt2")


class Looks:
    """A measure of a few words' logits; `seen` are how many it was given."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, logits: torch.Tensor, worlds: Sequence[World]) -> torch.Tensor:
        self.seen.append(logits.shape[-1])
        return logits[:, 0, list(FEW)]

    def words(self, worlds: Sequence[World]) -> tuple[int, ...]:
        return FEW

    def of_words(self, logits: torch.Tensor, worlds: Sequence[World], words: Sequence[int]) -> torch.Tensor:
        self.seen.append(logits.shape[-1])
        return logits[:, 0]


def worlds_of(model: Model) -> list[World]:
    clean, corrupt = Run(tuple(range(11, 20))), Run((11, 12, 43, *range(14, 20)))
    sites = [Site("resid_post", layer, 8) for layer in range(model.num_layers)]
    return [World(corrupt, (Edit(site, From(clean, 8)),), (8,)) for site in sites]


@pytest.mark.parametrize("family", HEADS)
def test_the_numbers_are_those_of_the_whole_head(family: str):
    model, few = fresh(family), Looks()
    found = evaluate(model, worlds_of(model), few, engine="packed", prune=False).values
    whole = evaluate(model, worlds_of(model), lambda logits, worlds: logits[:, 0, list(FEW)], engine="packed").values
    assert {*few.seen} == {len(FEW)}
    assert_allclose(found, whole, rtol=0, atol=1e-5)
    assert abs(found).max() > 0.1


def test_a_head_whose_rows_say_something_else_is_computed_whole():
    model, few = fresh("llama"), Looks()
    model.network.lm_head.register_forward_hook(lambda module, args, logits: logits - logits.mean(-1, keepdim=True))
    found = evaluate(model, worlds_of(model), few, engine="packed", prune=False).values
    assert {*few.seen} == {97}
    assert_allclose(found, evaluate(model, worlds_of(model), Looks(), engine="replay").values, rtol=0, atol=1e-5)


def test_a_head_of_another_kind_is_computed_whole():
    model, few = fresh("llama"), Looks()

    class Other(torch.nn.Linear):
        """A head that is stored otherwise, as quantised ones are."""

    model.network.lm_head.__class__ = Other
    evaluate(model, worlds_of(model), few, engine="packed", prune=False)
    assert {*few.seen} == {97}


def test_the_head_is_left_as_it_was():
    model = fresh("llama")
    evaluate(model, worlds_of(model), Looks(), engine="packed")
    assert "forward" not in vars(model.network.lm_head)
    assert model.network(torch.tensor([[11, 12]])).logits.shape[-1] == 97


def test_what_is_raised_leaves_it_too():
    model = fresh("llama")

    class Fails(Looks):
        def of_words(self, logits: torch.Tensor, worlds: Sequence[World], words: Sequence[int]) -> torch.Tensor:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(model, worlds_of(model), Fails(), engine="packed")
    assert "forward" not in vars(model.network.lm_head)
