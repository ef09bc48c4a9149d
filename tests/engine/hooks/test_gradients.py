"""Gradients at every kind of place against bare autograd, on several families; and what estimates are on paper."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from numpy.testing import assert_allclose
from torch import Tensor, nn

import causal_tracing as ct
from bare_hooks import PATHS, Paths, attention_written_out
from causal_tracing.engine.choose import plain_backend
from causal_tracing.engine.evaluate import evaluate
from causal_tracing.engine.hooks.gradients import gradients, linearised
from causal_tracing.engine.hooks.record import record
from causal_tracing.interventions.edits import Edit, From, Run, World
from causal_tracing.interventions.sites import MEDIATORS, Site
from causal_tracing.models.model import Model
from causal_tracing.patching.estimates.sites import integrated
from causal_tracing.testing import Copy, ToyLayer, ToyNetwork, toy_model
from loaded import fresh, shared

TOKENS, OTHER = (5, 17, 42, 11, 60, 33, 8), (5, 23, 42, 11, 71, 33, 8)
LAYERS, LENGTH, ANSWER, FOIL = 4, 7, 3, 7
NAMES = ("llama", "gpt2", "gemma2", "gpt_neox", "mixtral")
PROJECTIONS = {  # where heads' outputs go in, and neurons
    "llama": ("self_attn.o_proj", "mlp.down_proj"),
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
    "gemma2": ("self_attn.o_proj", "mlp.down_proj"),
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h"),
    "mixtral": ("self_attn.o_proj", None),
}
TOLERANCE = 1e-5  # of the largest gradient of a place


def logit_diff(logits: Tensor) -> Tensor:
    return logits[..., ANSWER] - logits[..., FOIL]


# Bare autograd: the value at one place is made a leaf, by hooks or by an attention of ours. No package code.


def leaf_of(network: Any, place: Any) -> Tensor:
    kept: list[Tensor] = []

    def leaf(value: Tensor) -> Tensor:
        kept.append(value.detach().clone().requires_grad_())
        return kept[0]

    with place(leaf):
        logits = network(input_ids=torch.tensor([TOKENS]), use_cache=False).logits[:, -1]
    (gradient,) = torch.autograd.grad(logit_diff(logits).sum(), kept)
    return gradient[0]


def on_output(module: nn.Module, leaf: Callable[[Tensor], Tensor]) -> Any:
    def hook(_: Any, __: Any, output: Any) -> Any:
        return (leaf(output[0]), *output[1:]) if isinstance(output, tuple) else leaf(output)

    return module.register_forward_hook(hook)


def on_input(module: nn.Module, leaf: Callable[[Tensor], Tensor]) -> Any:
    return module.register_forward_pre_hook(lambda _, args: (leaf(args[0]), *args[1:]))


@contextmanager
def hooked(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def only(layer: int, component: str, leaf: Callable[[Tensor], Tensor]) -> Any:
    return lambda at, name, tensor: leaf(tensor) if (at, name) == (layer, component) else tensor


def by_autograd(name: str, component: str, layer: int) -> Tensor:
    """[token, width]"""
    network: Any = shared(name).network
    paths = PATHS.get(name, Paths())
    block = network.get_submodule(f"{paths.layers}.{layer}")
    if component in ("q", "k", "v", "pattern"):
        found = leaf_of(network, lambda leaf: attention_written_out(network, only(layer, component, leaf)))
        return found.transpose(0, 1).flatten(1)  # [head, token, size]
    if component in ("z", "neurons"):
        module = block.get_submodule(PROJECTIONS[name][("z", "neurons").index(component)])
        return leaf_of(network, lambda leaf: hooked(on_input(module, leaf))).reshape(LENGTH, -1)
    if component == "resid_pre":
        return leaf_of(network, lambda leaf: hooked(on_input(block, leaf)))
    # The middle is the stream with attention's output added: it moves the metric as that does.
    path = {"resid_post": "", "attn_out": paths.attn, "resid_mid": paths.attn, "mlp_out": paths.mlp}[component]
    return leaf_of(network, lambda leaf: hooked(on_output(block.get_submodule(path), leaf))).reshape(LENGTH, -1)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_at_every_place_equal_bare_autograd(name):
    model = shared(name)
    components = (*model.anatomy.components, *model.anatomy.mediators)
    expected = {"resid_mid"} if name == "gpt_neox" else {"neurons"} if name == "mixtral" else set()
    assert set(components) == {"resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", *MEDIATORS} - expected
    places = [(component, layer) for component in components for layer in range(LAYERS)]
    found = gradients(model, [Run(TOKENS)], places, logit_diff)
    for component, layer in places:
        by_hand = by_autograd(name, component, layer)
        largest = by_hand.abs().max().item()
        if (component, layer) != ("q", 0):
            assert largest > 1e-3, (component, layer)
        assert_allclose(
            found[component, layer][0],
            by_hand,
            rtol=0,
            atol=TOLERANCE * max(largest, 1),
            err_msg=f"{component} {layer}",
        )


@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_are_the_models_own_to_the_bit(name):
    model = shared(name)
    places = [
        (name, layer) for name in (*model.anatomy.components, *model.anatomy.mediators) for layer in range(LAYERS)
    ]
    values, _ = linearised(model, [Run(TOKENS)], places, logit_diff)
    plain = record(model, [Run(TOKENS)], places)[Run(TOKENS)]
    for place in places:
        assert torch.equal(values[place][0], plain.activations[place]), place


def test_the_runs_of_a_batch_do_not_mix():
    model, places = shared("llama"), [("resid_post", 1), ("pattern", 2)]
    both = gradients(model, [Run(TOKENS), Run(OTHER)], places, logit_diff)
    for row, tokens in enumerate((TOKENS, OTHER)):
        alone = gradients(model, [Run(tokens)], places, logit_diff)
        for place in places:
            assert_allclose(both[place][row], alone[place][0], rtol=0, atol=1e-5)
    assert (both["resid_post", 1][0] - both["resid_post", 1][1]).abs().max() > 1e-3


# Law 39: nothing of ours stays behind.


@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad, torch.inference_mode])
def test_a_callers_mode_neither_matters_nor_changes(mode):
    model, run, place = shared("llama"), Run(TOKENS, (Edit(Site("z", 0, 2), From(Run(OTHER), 2), 0.5),)), ("q", 1)
    expected = gradients(model, [run], [place], logit_diff)[place]
    with mode():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        found = gradients(model, [run], [place], logit_diff)[place]
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
    assert torch.equal(found, expected)


def test_gradients_that_a_caller_keeps_are_left_alone():
    model = shared("llama")
    weight: Any = model.part(0, "mlp.down_proj").weight
    mine = weight.grad = torch.ones_like(weight)
    try:
        gradients(model, [Run(TOKENS)], [("resid_post", 0)], logit_diff)
        assert weight.grad is mine
        assert (mine == 1).all()
        assert weight.requires_grad
    finally:
        weight.grad = None


def test_what_a_caller_wants_gradients_of_is_left_so_where_weights_are_kept_elsewhere():
    """Every forward puts new parameters in the place of those."""
    model = fresh("llama")
    model.part(1, "mlp.down_proj").requires_grad_(False)
    cpu_offload(model.network, execution_device=torch.device("cpu"))
    gradients(model, [Run(TOKENS)], [("resid_post", 0)], logit_diff)
    frozen = [name for name, parameter in model.network.named_parameters() if not parameter.requires_grad]
    assert frozen == ["model.layers.1.mlp.down_proj.weight"]


# Law 23: on an affine model every estimate is the effect, of both directions and by both methods.


class Linear(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(torch.ones(weight.shape[0]))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states @ self.weight + self.bias


def affine() -> tuple[Model, ct.Pair]:
    generator = torch.Generator().manual_seed(2)
    words, width = ("a", "b", "c", "d", "yes", "no", *"efghijk"), 6
    layers = [
        ToyLayer(
            Copy(width, {0: 1, 1: 2, 2: 4, 3: 5}, back=back),
            Linear(0.4 * torch.randn(width, width, generator=generator)),
        )
        for back in (1, 2, 1)
    ]
    head = torch.randn(width, len(words), generator=generator)
    network = ToyNetwork(
        embedding=torch.randn(len(words), width, generator=generator),
        layers=layers,
        head=head,
        bias=torch.zeros(len(words)),
    )
    pair = ct.Pair(clean="a b c d", corrupt="a c c d", answer=" yes", foil=" no")
    return toy_model(network.double(), words, "affine"), pair


@pytest.mark.filterwarnings("ignore::causal_tracing.errors.EngineNote")  # toys attend by themselves
@pytest.mark.parametrize("direction", ["restoration", "disruption"])
@pytest.mark.parametrize("method", ["atp", "ig"])
def test_law_23_on_an_affine_model_estimates_are_effects(method, direction):
    model, pair = affine()
    components = ["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]
    found = ct.attribute(model, pair, components=components, method=method, steps=3, direction=direction, verify=1)
    other = ct.trace(model, pair, components=components, spot_checks=0).effects.sel(metric="logit_diff", pair="pair-0")
    assert abs(other.total_effect.item()) > 0.1
    for component in components:
        estimated = found.estimates[component].isel(pair=0)
        assert_allclose(estimated, other[direction].sel(component=component), rtol=0, atol=1e-9)
    assert np.abs(found.agreement.pearson - 1).max() < 1e-6
    assert abs(other[direction].sel(component="mlp_out")).max() > 0.1


# Laws 37 and 38 on a transformer written here, in float64 throughout.


class Softmax(nn.Module):
    def __init__(self, generator: torch.Generator, width: int) -> None:
        super().__init__()
        self.maps = nn.Parameter(0.2 * torch.randn(4, width, width, generator=generator, dtype=torch.float64))

    def forward(self, hidden_states: Tensor) -> Tensor:
        query, key, value = (hidden_states @ self.maps[n] for n in range(3))
        length = hidden_states.shape[1]
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        return (query @ key.transpose(1, 2)).masked_fill(later, -torch.inf).softmax(-1) @ value @ self.maps[3]


class Tanh(nn.Module):
    def __init__(self, generator: torch.Generator, width: int) -> None:
        super().__init__()
        self.maps = nn.Parameter(0.4 * torch.randn(2, width, width, generator=generator, dtype=torch.float64))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return torch.tanh(hidden_states @ self.maps[0]) @ self.maps[1]


@cache
def smooth() -> Model:
    generator, width, vocab = torch.Generator().manual_seed(4), 8, 97
    network = ToyNetwork(
        embedding=torch.randn(vocab, width, generator=generator, dtype=torch.float64),
        layers=[ToyLayer(Softmax(generator, width), Tanh(generator, width)) for _ in range(3)],
        head=torch.randn(width, vocab, generator=generator, dtype=torch.float64),
        bias=torch.zeros(vocab, dtype=torch.float64),
    )
    return toy_model(network, [f"w{n}" for n in range(vocab)], "smooth")


def moved(site: Site, alpha: float) -> float:
    """metric(patched, alpha of the way) − metric(base)."""
    base, edit = Run(TOKENS), Edit(site, From(Run(OTHER), site.position), alpha)
    worlds = [World(base, (), (LENGTH - 1,)), World(base, (edit,), (LENGTH - 1,))]
    values = evaluate(smooth(), worlds, lambda logits, _: logit_diff(logits[:, -1])[:, None], prune=False).values
    return float(values[1, 0] - values[0, 0])


def difference(site: Site) -> Tensor:
    kept = record(smooth(), [Run(TOKENS), Run(OTHER)], [(site.component, site.layer)])
    one, other = (
        kept[Run(tokens)].activations[site.component, site.layer][site.position] for tokens in (OTHER, TOKENS)
    )
    return one - other


SITES = [Site("resid_pre", 1, 4), Site("attn_out", 0, 4), Site("resid_mid", 1, 1), Site("mlp_out", 0, 1)]


@pytest.mark.parametrize("site", SITES, ids=str)
def test_law_37_the_error_of_attribution_patching_is_quadratic(site):
    slope = gradients(smooth(), [Run(TOKENS)], [(site.component, site.layer)], logit_diff)
    estimate = (difference(site) * slope[site.component, site.layer][0, site.position]).sum().item()
    errors = np.array([abs(moved(site, alpha) - alpha * estimate) for alpha in (4e-3, 2e-3, 1e-3)])
    assert_allclose(errors[:-1] / errors[1:], 4, rtol=0.05)
    assert errors[-1] > 1e-10  # far above float64's rounding: it is the curvature that is seen


@pytest.mark.parametrize("site", SITES, ids=str)
def test_law_38_integrated_gradients_of_one_site_are_complete(site):
    errors = []
    for steps in (8, 32, 128):
        (mean,) = integrated(plain_backend(smooth()), Run(TOKENS), Run(OTHER), [site], logit_diff, steps)
        errors.append(abs((difference(site) * mean).sum().item() - moved(site, 1.0)))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-4 * abs(moved(site, 1.0))
    assert abs(moved(site, 1.0)) > 1e-3
