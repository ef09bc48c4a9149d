"""Mixtures that are none, or not as they seem: experts must be a sum that is linear in the router's weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from causal_tracing.engine.checks.check import accept, prove
from causal_tracing.engine.hooks.experts import call_of
from causal_tracing.errors import ComponentNotOffered, UnsupportedModel
from causal_tracing.interventions.sites import MIXTURE
from causal_tracing.models.model import Model
from families import build
from loaded import BY_NAME, WORDS
from model_types import recipes

pytestmark = pytest.mark.filterwarnings("ignore::causal_tracing.errors.Note")
Forward = Callable[..., Tensor]


def with_experts(change: Callable[[Forward, Any], Forward], layers: tuple[int, ...] = (0, 1, 2, 3)) -> Model:
    """A tiny mixture whose layers' experts compute something else."""
    network: Any = build(BY_NAME["mixtral"])
    for layer in layers:
        module = network.model.layers[layer].mlp.experts
        module.forward = change(module.forward, module)
    return accept(network, WORDS, name="changed")


def test_what_is_as_it_was_is_offered() -> None:
    assert with_experts(lambda own, _: lambda *call: own(*call)).anatomy.mixture == MIXTURE


def weighted_input(own: Forward, module: Any) -> Forward:
    """As Llama 4 has it: what experts read is multiplied, and not what they give."""

    def forward(hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        ones = torch.ones_like(weights[:, :1])
        found = [own(hidden * weights[:, [n]], index[:, [n]], ones) for n in range(weights.shape[-1])]
        return torch.stack(found).sum(0)

    return forward


CHANGED: dict[str, tuple[Callable[[Forward, Any], Forward], str]] = {
    "multiplied before": (weighted_input, "is not linear in their weights"),
    "biased": (lambda own, _: lambda *call: own(*call) + 0.1, "gives something where all weights are zero"),
    "normed": (
        lambda own, _: lambda *call: nn.functional.normalize(own(*call), dim=-1),
        "is not linear in their weights",
    ),
    "by the strongest alone": (
        lambda own, _: (
            lambda hidden, index, weights: own(
                hidden, index, weights * (weights == weights.max(-1, keepdim=True).values)
            )
        ),
        "is not linear in their weights|is not the sum of what its experts give",
    ),
    "never the same": (
        lambda own, module: lambda *call: own(*call) * (1 + 0.1 * next(module.turns)),
        "gives something else when it is called again",
    ),
}


@pytest.mark.parametrize("name", CHANGED)
def test_what_is_no_sum_over_experts_is_refused_with_the_reason(name: str) -> None:
    change, reason = CHANGED[name]

    def turning(own: Forward, module: Any) -> Forward:
        module.turns = iter(range(10_000))
        return change(own, module)

    if name == "never the same":
        with pytest.raises(UnsupportedModel):  # no run is as it was
            with_experts(turning)
        return
    model = with_experts(turning, layers=(2,))
    assert model.anatomy.mixture == ()
    with pytest.raises(ComponentNotOffered, match=rf"experts is not offered .*in layer 2 \(mlp.experts\).*({reason})"):
        model.anatomy.require("experts")
    assert "mlp_out" in model.anatomy.components
    assert dict(model.anatomy.missed)["experts"].startswith("in layer 2")


def capped(block: Any, capacity: int) -> Forward:
    """A mixture whose experts take so many tokens of a text, the first ones, and leave out the others."""

    def forward(hidden: Tensor) -> Tensor:
        batch, tokens, width = hidden.shape
        flat = hidden.view(-1, width)
        _, weights, index = block.gate(flat)
        taken = nn.functional.one_hot(index, 4).sum(1).view(batch, tokens, 4).cumsum(1).view(-1, 4)
        fits = taken.gather(1, index) <= capacity
        return block.experts(flat, index, weights * fits).view(batch, tokens, width)

    return forward


def test_routers_that_look_at_other_tokens_are_refused() -> None:
    network: Any = build(BY_NAME["mixtral"])
    for layer in network.model.layers:
        layer.mlp.forward = capped(layer.mlp, 1)
    model = accept(network, WORDS, name="capped")
    assert model.anatomy.mixture == ()
    with pytest.raises(ComponentNotOffered, match="the MLP mixes tokens, so that what a router chooses may depend"):
        model.anatomy.require("router")


def test_experts_whose_number_cannot_be_told_are_refused() -> None:
    class Bare(nn.Module):
        """Calls another module's experts, which are no part of it."""

        def __init__(self, own: nn.Module) -> None:
            super().__init__()
            self.own = (own,)

        def forward(self, *call: Tensor) -> Tensor:
            return self.own[0](*call)

    network: Any = build(BY_NAME["mixtral"])
    block = network.model.layers[1].mlp
    block.experts = Bare(block.experts)
    found = accept(network, WORDS, name="bare")
    with pytest.raises(ComponentNotOffered, match="cannot be told how many experts there are"):
        found.anatomy.require("experts")


def test_what_fails_when_patched_is_refused() -> None:
    """A second reader of the experts' sum, past the MLP: what they change is then more than mlp_out."""
    network: Any = build(BY_NAME["mixtral"])
    model = accept(network, WORDS, name="read twice")
    assert prove(model, MIXTURE)[0].anatomy.mixture == MIXTURE
    layer, seen = network.model.layers[2], list[Tensor]()
    own = layer.mlp.forward

    def forward(hidden: Tensor) -> Tensor:
        seen.append(own(hidden))
        return seen[-1].clone()

    layer.mlp.forward = forward
    layer.register_forward_hook(lambda _, __, output: output + 0.5 * seen.pop())
    refused, found = prove(model, MIXTURE)
    assert refused.anatomy.mixture == ()
    failed = {each.name for each in found if not each.holds}
    assert {"experts = mlp_out", "experts change mlp_out alone"} <= failed


def test_calls_of_experts_are_told_from_others() -> None:
    hidden, index, weights = torch.zeros(5, 8), torch.zeros(5, 2, dtype=torch.long), torch.ones(5, 2)
    found = call_of((hidden,), {"weights": weights, "index": index})
    assert found is not None
    assert found.places == (0, "index", "weights")
    assert call_of((weights, index, hidden), {}) is not None
    for call in ((hidden, index), (hidden, index, hidden), (hidden[:3], index, weights), (hidden, index > 0, weights)):
        assert call_of(call, {}) is None
    assert found.dense(3).tolist() == [[2, 0, 0]] * 5
    beyond = call_of((hidden, index + 1, weights), {})
    assert beyond is not None
    with pytest.raises(UnsupportedModel, match="chose an expert beyond the 1 that there are"):
        beyond.dense(1)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("llama4_text", "no module was found that is called with what a router chose"),
        ("jetmoe", "no module was found that is called with what a router chose"),
        ("granitemoeshared", r"in layer 0 \(block_sparse_moe.experts\) no MLP was found"),
        ("nemotron_h", r"in layer 1 \(mixer.experts\) no MLP was found"),
    ],
)
def test_types_whose_experts_are_not_offered_say_why(name: str, reason: str) -> None:
    model = accept(recipes.build(name), WORDS, name=name)
    assert model.anatomy.mixture == ()
    with pytest.raises(ComponentNotOffered, match=rf"experts is not offered on this model .*{reason}"):
        model.anatomy.require("experts")
