"""Tiny llamas of which a layer has no attention, or no MLP."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from tiny import tiny_model

EVERY, ATTENDS, HAS_MLP = (0, 1, 2, 3), (0, 2, 3), (0, 1, 3)


class PrunedLayer(LlamaDecoderLayer):
    """A layer of what is left of it."""

    def forward(self, hidden_states: Tensor, **others: Any) -> Tensor:  # type: ignore[override]
        if self.self_attn is not None:
            hidden_states = hidden_states + self.self_attn(self.input_layernorm(hidden_states), **others)[0]
        if self.mlp is not None:
            hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states


def network(attends: Sequence[int] = ATTENDS, has_mlp: Sequence[int] = HAS_MLP) -> nn.Module:
    """Four layers, of which the second has lost its attention, and the third its MLP, unless said otherwise."""
    whole: Any = tiny_model("llama")
    for number, layer in enumerate(whole.model.layers):
        layer.__class__ = PrunedLayer
        layer.self_attn = layer.self_attn if number in attends else None
        layer.mlp = layer.mlp if number in has_mlp else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        for weight in whole.model.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=0.25)
    return whole.eval()
