"""A tiny llama whose layers differ in their heads, keys and neurons."""

import copy
from typing import Any

import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

from tiny import tiny_model

SIZE = 8  # of a head
# Heads of queries, of keys and values, and neurons of each layer.
LAYERS = ((2, 1, 16), (4, 4, 64), (6, 2, 24), (1, 1, 64))


def network() -> nn.Module:
    """A llama each of whose layers has an attention and an MLP of its own size."""
    whole: Any = tiny_model("llama", head_dim=SIZE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for number, (heads, shared, neurons) in enumerate(LAYERS):
            config: Any = copy.deepcopy(whole.config)
            config.num_attention_heads, config.num_key_value_heads, config.intermediate_size = heads, shared, neurons
            layer = whole.model.layers[number]
            layer.self_attn, layer.mlp = LlamaAttention(config, number), LlamaMLP(config)
            for weight in (*layer.self_attn.parameters(), *layer.mlp.parameters()):
                nn.init.normal_(weight, std=0.3)
    return whole.eval()
