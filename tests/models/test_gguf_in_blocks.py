"""GGUF weights that are kept in their blocks are traced as the matrices that the blocks hold."""

from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import GgufConfig
from transformers.integrations.gguf import kernels
from transformers.integrations.gguf.dequant import dequantize
from transformers.integrations.gguf.utils import replace_with_gguf_modules

import causal_tracing as ct
from quantised_by_hand import CLOSE, PAIR
from tiny import tiny_model, tiny_tokenizer

# GGUF kept as it is


class Kernel:
    """What transformers asks of a kernel from the hub, in plain torch: its products read the blocks."""

    def supports(self, ggml_type: int) -> bool:
        return True

    def mul_mat_vec(self, weight: Tensor, value: Tensor, ggml_type: int, rows: int) -> Tensor:
        return value.float() @ dequantize(weight, ggml_type, torch.float32).reshape(rows, -1).T


def in_blocks(network: Any, kernel: Kernel) -> Any:
    """The network with the modules that transformers keeps GGUF blocks in."""
    kind = gguf.GGMLQuantizationType.Q8_0
    weights = {name: weight.detach() for name, weight in network.named_parameters() if weight.ndim == 2}
    plan = dict.fromkeys(weights, int(kind))
    for name, module in replace_with_gguf_modules(network, plan, kernel, torch.float32).items():
        blocks = torch.from_numpy(gguf.quants.quantize(weights[name].numpy(), kind))
        module.weight = nn.Parameter(blocks, requires_grad=False)
    network.config.quantization_config = GgufConfig()
    return network


def unpacked(network: Any) -> Any:
    """The network with each matrix as its blocks give it."""
    kind = gguf.GGMLQuantizationType.Q8_0
    with torch.no_grad():
        for weight in (each for each in network.parameters() if each.ndim == 2):
            blocks = gguf.quants.quantize(weight.numpy(), kind)
            weight.copy_(torch.from_numpy(gguf.quants.dequantize(blocks, kind)))
    return network


def test_gguf_weights_that_are_kept_in_their_blocks(monkeypatch: pytest.MonkeyPatch):
    """Without a GPU transformers has no kernel for them: one stands in for it."""
    monkeypatch.setattr(kernels, "_gguf_kernel", Kernel())
    kept = ct.load(in_blocks(tiny_model(), Kernel()), tiny_tokenizer())
    assert kept.network.get_input_embeddings().weight.dtype == torch.uint8
    assert kept.dtype == "float32"
    assert kept.source["quantised"] == "gguf"
    both = (kept, ct.load(unpacked(tiny_model()), tiny_tokenizer()))
    found, want = (ct.trace(model, PAIR, positions="each", progress=False).effects for model in both)
    np.testing.assert_allclose(found.restoration, want.restoration, atol=CLOSE)
    assert abs(want.restoration.sel(metric="logit_diff")).max() > 50 * CLOSE
