"""Models of the library that somebody changed: what is offered of them is exact."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import causal_tracing as ct
from causal_tracing.errors import UnsupportedModel
from loaded import WORDS
from own_networks import AT, CLEAN, CORRUPT, PAIR
from tiny import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::causal_tracing.errors.Note")


class Adapted(nn.Module):
    """A matrix with two small ones beside it, as LoRA has them: no weight by that name."""

    def __init__(self, whole: nn.Linear) -> None:
        super().__init__()
        self.whole, self.down = whole, nn.Parameter(torch.randn(whole.in_features, 4) * 0.3)
        self.up = nn.Parameter(torch.randn(4, whole.out_features) * 0.3)

    def forward(self, value: Tensor) -> Tensor:
        return self.whole(value) + value @ self.down @ self.up


def llama_logits(network: Any, tokens: Sequence[int]) -> Tensor:
    return network(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]


def test_heads_go_into_what_wraps_the_last_projection():
    network = tiny_model("llama")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for layer in network.model.layers:
            layer.self_attn.o_proj = Adapted(layer.self_attn.o_proj)
    trace = ct.trace(ct.load(network, tokenizer=WORDS), PAIR, components=(), heads=["z"], progress=False)
    found = trace.heads.restoration.sel(AT).sel(component="z", layer=2)
    seen: list[Tensor] = []
    path = "model.layers.2.self_attn.o_proj"
    assert found.notnull().all()
    handle = network.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    with torch.no_grad():
        llama_logits(network, CLEAN)
        handle.remove()
        corrupt = llama_logits(network, CORRUPT)

    def put(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        changed = args[0].clone()
        changed[:, 4, 8:16] = seen[0][:, 4, 8:16]
        return (changed,)

    handle = network.get_submodule(path).register_forward_pre_hook(put)
    with torch.no_grad():
        patched = llama_logits(network, CORRUPT)
    handle.remove()
    moved = patched - corrupt
    assert found.sel(head=1).isel(position=4).item() == pytest.approx((moved[9] - moved[12]).item(), abs=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:flex_attention called:UserWarning")
def test_where_no_pattern_can_be_made_the_rest_of_the_heads_is_traced():
    """Flex attention has masks of its own, which eager attention cannot read, and no gradients on a CPU."""
    network = tiny_model("llama", num_hidden_layers=2)
    network.set_attn_implementation("flex_attention")
    model = ct.load(network, tokenizer=WORDS)
    assert dict(model.anatomy.refused)["pattern"].endswith("a form that eager attention cannot read.")
    trace = ct.trace(model, PAIR, components=["mlp_out"], heads=["z", "v"], progress=False)
    plain = tiny_model("llama", num_hidden_layers=2)
    other = ct.trace(ct.load(plain, tokenizer=WORDS), PAIR, components=["mlp_out"], heads=["z", "v"], progress=False)
    both = [torch.tensor(one.heads.restoration.sel(AT).values) for one in (trace, other)]
    torch.testing.assert_close(*both, rtol=0, atol=1e-4, equal_nan=True)
    with pytest.raises(UnsupportedModel, match=r"has no gradients here: FlexAttention .* Use trace\(\)"):
        ct.attribute(model, PAIR, components=["mlp_out"], progress=False)


class OneOfTwo(nn.Module):
    """Each row goes to one of two MLPs, by its first token."""

    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.both = nn.ModuleList([one, other])

    def forward(self, stream: Tensor) -> Tensor:
        return torch.cat([self.both[int(row[0, 0] > 0)](row[None]) for row in stream])


def test_heads_need_no_neurons_that_are_passed_once():
    network = tiny_model("llama")
    for layer, other in zip(network.model.layers, tiny_model("llama", seed=1).model.layers, strict=True):
        layer.mlp = OneOfTwo(layer.mlp, other.mlp)
    model = ct.load(network, tokenizer=WORDS)
    trace = ct.trace(model, PAIR, components=(), heads=["z"], progress=False)
    assert trace.heads.restoration.sel(AT).sel(component="z").notnull().all()
    with pytest.raises(UnsupportedModel, match=r"neurons of layer \d was passed \d times in one run"):
        ct.trace(model, PAIR, components=(), neurons={1: []}, neuron_positions=[4], progress=False)
