"""Gradients against bare autograd and finite differences, and the laws of estimates that are made of them."""

from typing import Any

import pytest
import torch
from numpy.testing import assert_allclose

import causal_tracing as ct
from causal_tracing.engine.choose import plain_backend
from causal_tracing.engine.evaluate import evaluate
from causal_tracing.engine.hooks.gradients import gradients
from causal_tracing.engine.hooks.record import record
from causal_tracing.interventions.edits import Edit, From, Plus, Run, World
from causal_tracing.interventions.sites import Site
from causal_tracing.models.model import Model
from causal_tracing.patching.estimates.sites import integrated
from causal_tracing.testing import circuit
from differentiated import CLEAN, CORRUPT, LAYERS, LENGTH, WHERE, ids, load, logit_diff


@pytest.fixture(scope="module")
def model() -> Model:
    return load("llama")


# Gradients.


def by_autograd(network: Any, module: Any, *, of_input: bool) -> torch.Tensor:
    """d logit_diff / d a module's output or input, by a tensor that is told to keep its gradient."""
    kept: list[torch.Tensor] = []

    def leaf(value: torch.Tensor) -> torch.Tensor:
        kept.append(value.detach().requires_grad_())
        return kept[0]

    def on_input(_: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (leaf(args[0]), *args[1:])

    def on_output(_: Any, __: Any, output: Any) -> Any:
        return (leaf(output[0]), *output[1:]) if isinstance(output, tuple) else leaf(output)

    handle = module.register_forward_pre_hook(on_input) if of_input else module.register_forward_hook(on_output)
    logit_diff(network(torch.tensor([ids(CORRUPT)])).logits[:, -1]).sum().backward()
    handle.remove()
    network.zero_grad(set_to_none=True)
    assert kept[0].grad is not None
    return kept[0].grad[0]


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2"])
def test_gradients_equal_bare_autograd(name):
    model = load(name)
    places = [(component, layer) for component in WHERE for layer in range(LAYERS)]
    found = gradients(model, [Run(ids(CORRUPT))], places, logit_diff)
    for component, (module, of_input) in WHERE.items():
        for layer in range(LAYERS):
            expected = by_autograd(model.network, module(model.network, layer), of_input=of_input)
            assert_allclose(found[component, layer][0], expected.reshape(LENGTH, -1), rtol=0, atol=1e-5)
            assert expected.abs().max() > 1e-3


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text", "gpt_neox", "gpt_oss"])
def test_gradients_equal_finite_differences(name):
    """Central differences of the patched metric itself, for every component.

    In float64; the norms of transformers compute in float32 even then, so the step cannot be smaller.
    """
    model, run, step = load(name, torch.float64), Run(ids(CORRUPT)), 2e-3
    components = (*model.anatomy.components, *model.anatomy.mediators)
    generator = torch.Generator().manual_seed(1)
    found = gradients(model, [run], [(component, 1) for component in components], logit_diff)
    for component in components:
        for position in (2, 4):
            slope = found[component, 1][0, position]
            way = torch.randn(slope.shape, generator=generator, dtype=torch.float64)
            edits = [(Edit(Site(component, 1, position), Plus(sign * step * way)),) for sign in (1, -1)]
            worlds = [World(run, edit, (LENGTH - 1,)) for edit in edits]
            values = evaluate(model, worlds, lambda logits, _: logit_diff(logits[:, -1])[:, None]).values[:, 0]
            expected = (values[0] - values[1]) / (2 * step)
            assert (slope * way).sum().item() == pytest.approx(expected, abs=5e-4, rel=1e-3), component


def test_a_model_is_left_as_it_was(model):
    parameters = list(model.network.parameters())
    parameters[0].requires_grad_(False)
    model.network.train()

    def fails(_: torch.Tensor) -> torch.Tensor:
        raise KeyError("in the middle")

    for measure in (logit_diff, fails):
        try:
            gradients(model, [Run(ids(CORRUPT))], [("pattern", 0), ("resid_post", 1)], measure)
        except KeyError:
            assert measure is fails
        assert [parameter.requires_grad for parameter in parameters] == [False, *[True] * (len(parameters) - 1)]
        assert all(parameter.grad is None for parameter in parameters)
        assert model.network.training
        assert torch.is_grad_enabled()
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.network.modules())
    parameters[0].requires_grad_(True)
    model.network.eval()


# Laws 37 and 38.


def exact(model: Model, sites: list[Site], alpha: float = 1.0) -> float:
    base, donor = Run(ids(CORRUPT)), Run(ids(CLEAN))
    edits = tuple(Edit(site, From(donor, site.position), alpha) for site in sites)
    worlds = [World(base, (), (LENGTH - 1,)), World(base, edits, (LENGTH - 1,))]
    values = evaluate(model, worlds, lambda logits, _: logit_diff(logits[:, -1])[:, None]).values[:, 0]
    return float(values[1] - values[0])


@pytest.mark.parametrize("component", ["resid_post", "mlp_out", "z", "pattern"])
def test_the_error_of_attribution_patching_is_quadratic(component):
    model = load("llama", torch.float64)
    base, donor, place = Run(ids(CORRUPT)), Run(ids(CLEAN)), (component, 1)
    kept = record(model, [base, donor], [place])
    apart = kept[donor].activations[place][4] - kept[base].activations[place][4]
    slope = gradients(model, [base], [place], logit_diff)[place][0, 4]
    # The first order alone: the estimate's error must fall with the square of alpha.
    errors = [abs(exact(model, [Site(component, 1, 4)], a) - a * (apart * slope).sum().item()) for a in (0.02, 0.01)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("component", ["resid_post", "mlp_out", "z", "v"])
def test_integrated_gradients_of_one_site_are_complete(component):
    model = load("llama", torch.float64)
    base, donor, sites = Run(ids(CORRUPT)), Run(ids(CLEAN)), [Site(component, 1, 4)]
    kept = record(model, [base, donor], [(component, 1)])
    apart = kept[donor].activations[component, 1][4] - kept[base].activations[component, 1][4]
    errors = []
    for steps in (2, 16, 64):
        mean = integrated(plain_backend(model), base, donor, sites, logit_diff, steps)[0]
        errors.append(abs((apart * mean).sum().item() - exact(model, sites)))
    assert errors[2] < 1e-3 * max(abs(exact(model, sites)), 0.01)
    assert errors[2] < errors[1] < errors[0]


# Law 23: where the model is affine on the way, every estimate is exact.


@pytest.mark.filterwarnings("ignore::causal_tracing.errors.EngineNote")  # toys attend by themselves
@pytest.mark.parametrize(("method", "direction"), [("atp", "disruption"), ("ig", "disruption"), ("ig", "restoration")])
def test_on_an_affine_model_estimates_are_exact(method, direction):
    """The SUM circuit's neurons all fire in the clean run; in the corrupt one they are at their kink."""
    affine, pair = circuit("sum")
    components = ["attn_out", "mlp_out"]
    found = ct.attribute(affine, pair, components=components, method=method, direction=direction, sample=1)
    exact = {(one.site.component, one.site.layer): one.exact for one in found.checked}
    assert exact["mlp_out", 0] == pytest.approx(0.5)
    assert exact["mlp_out", 2] == pytest.approx(1.0)
    for one in found.checked:
        assert one.estimate == pytest.approx(one.exact, abs=1e-6)


@pytest.mark.filterwarnings("ignore::causal_tracing.errors.EngineNote")  # toys attend by themselves
def test_a_kink_is_where_an_estimate_is_wrong_and_the_check_says_so():
    affine, pair = circuit("sum")
    found = ct.attribute(affine, pair, components=["mlp_out"], sample=1)
    wrong = [one for one in found.checked if one.site.layer < 2]
    assert [(one.estimate, one.exact) for one in wrong] == [(0.0, pytest.approx(0.5))] * 2
    assert found.agreement.same_sign["mlp_out"] == pytest.approx(1 / 3)
