"""Estimates of models that somebody wrote: refused where their gradients are not those of activations."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import causal_tracing as ct
from causal_tracing.errors import UnsupportedModel
from loaded import WORDS
from own_networks import PAIR, Layer, Own, made

pytestmark = pytest.mark.filterwarnings("ignore::causal_tracing.errors.Note")


class WithoutGradients(Own):
    @torch.no_grad()
    def forward(self, input_ids: Tensor) -> Any:
        return super().forward(input_ids)


class InPlace(Layer):
    def forward(self, stream: Tensor) -> Tensor:
        stream += super().forward(stream)
        stream += self.mlp(self.norms[1](stream))
        return stream


class WrittenOver(Own):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([InPlace(lambda stream: stream) for _ in range(2)])


class RunAgain(Own):
    def logits(self, tokens: Tensor) -> Tensor:
        stream = self.words(tokens) + self.places(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            stream = checkpoint(block, stream, use_reentrant=False)
        return self.out(stream)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (WithoutGradients, r"has no gradients: its forward turns them off, .*\. Use trace\(\)"),
        (WrittenOver, r"its forward writes over numbers that they need, as x \+= y does\. Use trace\(\)"),
        (RunAgain, r"its forward is run again on the way back \(torch\.utils\.checkpoint\)"),
    ],
)
def test_what_gradients_do_not_pass_is_said(kind: Any, said: str):
    model = ct.load(made(kind), tokenizer=WORDS)
    with pytest.raises(UnsupportedModel, match=said):
        ct.attribute(model, PAIR, components=["resid_pre"], progress=False)
