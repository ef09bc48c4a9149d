"""Law 39: whatever happens, the model and the process are left as they were."""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bare_hooks import first
from causal_tracing.engine.backend import Evaluation
from causal_tracing.engine.checks.check import accept
from causal_tracing.engine.evaluate import evaluate
from causal_tracing.engine.hooks.record import record
from causal_tracing.interventions.edits import Run, World
from causal_tracing.models.model import Model
from loaded import fresh
from single_edits import CLEAN, CORRUPT, LAYERS, all_logits, single


@dataclass
class Snapshot:
    """All that a sweep could leave changed."""

    hooks: list[tuple[list[int], ...]]
    forwards: list[Any]
    training: list[bool]
    requires_grad: list[bool]
    weights: list[Tensor]
    attention: Any
    gradients: tuple[bool, bool]
    torch_random: Tensor
    numpy_random: str
    modules: list[int]
    attention_functions: dict[str, Any]

    @classmethod
    def take(cls, network: nn.Module) -> "Snapshot":
        modules: list[Any] = list(network.modules())
        names = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
        backward = ("_backward_hooks", "_backward_pre_hooks", "_forward_hooks_always_called")
        config: Any = network.config
        return cls(
            hooks=[tuple(list(getattr(module, name)) for name in names + backward) for module in modules],
            forwards=[module.__dict__.get("forward") for module in modules],
            training=[module.training for module in modules],
            requires_grad=[parameter.requires_grad for parameter in network.parameters()],
            weights=[tensor.detach().clone() for tensor in network.state_dict().values()],
            attention=config._attn_implementation,
            gradients=(torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
            torch_random=torch.get_rng_state(),
            numpy_random=repr(np.random.get_state(legacy=False)["state"]["key"].tolist()),
            modules=[id(module) for module in modules],
            attention_functions=dict(ALL_ATTENTION_FUNCTIONS),
        )

    def assert_equals(self, other: "Snapshot") -> None:
        assert self.hooks == other.hooks
        assert all(one is two for one, two in zip(self.forwards, other.forwards, strict=True))
        assert self.training == other.training
        assert self.requires_grad == other.requires_grad
        assert all(torch.equal(one, two) for one, two in zip(self.weights, other.weights, strict=True))
        assert self.attention == other.attention
        assert self.gradients == other.gradients
        assert torch.equal(self.torch_random, other.torch_random)
        assert self.numpy_random == other.numpy_random
        assert self.modules == other.modules
        assert self.attention_functions == other.attention_functions


class Counter(ModelHook):
    """An accelerate hook, as models have that are spread over devices."""

    def __init__(self) -> None:
        self.calls = 0

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return args, kwargs


@dataclass
class InUse:
    """A model as a user has it in the middle of work, and what the user's own hooks have counted."""

    model: Model
    calls: list[str]
    accelerated: Counter


@pytest.fixture(params=["llama", "gpt2", "gpt_oss"])
def in_use(request: pytest.FixtureRequest) -> InUse:
    """In training mode with one layer in evaluation mode, a frozen weight, hooks of the user's and of accelerate."""
    model, calls, counter = fresh(request.param), [], Counter()
    network, layers = model.network, model.layers
    # Whatever loading has done is undone, so that it shows when it is done again.
    torch.rand(3)
    torch.set_grad_enabled(True)
    network.requires_grad_(True)
    network.train()
    layers[1].eval()
    next(network.parameters()).requires_grad_(False)
    layers[0].register_forward_hook(lambda *_: calls.append("layer"))
    network.register_forward_pre_hook(lambda *_: calls.append("network"))
    model.part(2, model.layout(2).mlp or "").register_forward_hook(lambda _, __, output: output)
    add_hook_to_module(layers[3], counter)
    return InUse(model=model, calls=calls, accelerated=counter)


def every_component(model: Model) -> list[World]:
    return [single(CORRUPT, CLEAN, component, layer, 3) for component in model.anatomy.components for layer in LAYERS]


@pytest.mark.parametrize("engine", ["replay", "packed"])
def test_a_sweep_leaves_everything_as_it_was(in_use, engine):
    before = Snapshot.take(in_use.model.network)
    found = evaluate(in_use.model, every_component(in_use.model), all_logits, engine=engine, rows=8)
    record(in_use.model, [Run(CLEAN)], [("resid_post", 1)])
    before.assert_equals(Snapshot.take(in_use.model.network))
    assert np.isfinite(found.values).all()
    forwards = in_use.calls.count("network")
    assert forwards > 3  # the donor's and some batches
    if engine == "replay":
        assert in_use.calls.count("layer") == in_use.accelerated.calls == forwards
    in_use.calls.clear()
    in_use.model.network(input_ids=torch.tensor([CLEAN]))
    assert in_use.calls == ["network", "layer"]


@pytest.mark.parametrize("engine", ["replay", "packed"])
def test_pythons_random_state_is_left_alone(in_use, engine):
    before = random.getstate()
    evaluate(in_use.model, every_component(in_use.model), all_logits, engine=engine)
    assert random.getstate() == before


def test_accepting_a_model_leaves_everything_as_it_was(in_use):
    before = Snapshot.take(in_use.model.network)
    again = accept(in_use.model.network, in_use.model.tokenizer, name="again")
    before.assert_equals(Snapshot.take(in_use.model.network))
    assert again.anatomy == in_use.model.anatomy


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("where", ["measure", "hook of the user", "progress"])
@pytest.mark.parametrize("engine", ["replay", "packed"])
def test_an_exception_leaves_everything_as_it_was(in_use, engine, where, error):
    def fail(place: str) -> None:
        if place == where and in_use.calls.count("network") >= 3:
            raise error("stop")

    def measure(logits: Tensor, _: Any) -> Tensor:
        fail("measure")
        return logits.flatten(1)

    def run() -> Evaluation:
        return evaluate(
            in_use.model,
            every_component(in_use.model),
            measure,
            engine=engine,
            rows=4,
            progress=lambda *_: fail("progress"),
        )

    in_use.model.part(2, in_use.model.layout(2).attn or "").register_forward_hook(lambda *_: fail("hook of the user"))
    before = Snapshot.take(in_use.model.network)
    with pytest.raises(error, match="stop"):
        run()
    before.assert_equals(Snapshot.take(in_use.model.network))


@pytest.mark.parametrize("engine", ["replay", "packed"])
def test_what_a_users_hook_has_kept_is_not_written_to(engine):
    model, kept = fresh("llama"), []
    for path in ("self_attn", "mlp", ""):
        model.part(1, path).register_forward_hook(
            lambda _, __, output: kept.append((first(output), first(output).clone()))
        )
    evaluate(model, every_component(model), all_logits, engine=engine, rows=8)
    assert len(kept) >= 9
    for output, copy in kept:
        assert torch.equal(output, copy)


def test_gradients_stay_off_where_the_caller_turned_them_off(in_use):
    with torch.no_grad():
        evaluate(in_use.model, every_component(in_use.model)[:2], all_logits)
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("engine", ["replay", "packed"])
def test_a_listener_stops_the_work_between_two_layers_and_nothing_is_left_behind(in_use, engine):
    last: list[int] = []

    def stop(done: int, total: int) -> None:
        last.append(done)
        if done > total // 3:
            raise KeyboardInterrupt("enough")

    before = Snapshot.take(in_use.model.network)
    with pytest.raises(KeyboardInterrupt, match="enough"):
        evaluate(in_use.model, every_component(in_use.model), all_logits, engine=engine, progress=stop)
    before.assert_equals(Snapshot.take(in_use.model.network))
    total = len(every_component(in_use.model)) * len(LAYERS)
    assert total // 3 < last[-1] < total
