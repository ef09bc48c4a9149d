"""What a caller has set, hung on or started elsewhere does not change a number."""

import threading
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import causal_tracing as ct
from causal_tracing.errors import UnsupportedModel
from causal_tracing.models.at_rest import at_rest
from causal_tracing.models.devices import short_products
from causal_tracing.models.model import Model
from families import build
from joint import WORDS
from loaded import BY_NAME
from made import pair

ASKED: dict[str, Any] = {"components": ["resid_post"], "progress": False}


def loaded(name: str = "llama", network: nn.Module | None = None) -> Model:
    return ct.load(network or build(BY_NAME[name]), WORDS)


def traced(model: Model, number: int = 0) -> np.ndarray:
    return ct.trace(model, pair(number), **ASKED).effects.restoration.values


SETTINGS = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference mode": torch.inference_mode,
    "a default device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_callers_settings_change_no_bit(name: str):
    expected, network = traced(loaded()), build(BY_NAME["llama"])
    setting: AbstractContextManager[Any] = SETTINGS[name]()
    with setting:
        model = loaded(network=network)
        within = traced(model)
        estimates = ct.attribute(model, pair(0), verify=2, sample=2, progress=False).estimates
    np.testing.assert_array_equal(within, expected)
    outside = ct.attribute(loaded(), pair(0), verify=2, sample=2, progress=False).estimates
    for component, values in estimates.items():
        np.testing.assert_array_equal(values, outside[component])


def test_products_are_seen_without_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not short_products(torch.device("cpu"))


@pytest.mark.parametrize("what", ["the model", "a layer", "its forward"])
def test_what_is_compiled_runs_with_its_hooks(what: str):
    """Compiled code was made without them; here every layer is run as its modules say."""
    network: Any = build(BY_NAME["llama"])
    expected = traced(loaded())
    if what == "its forward":
        network.forward = torch.compile(network.forward, backend="eager")
    else:
        (network if what == "the model" else network.model.layers[1]).compile(backend="eager")
    np.testing.assert_array_equal(traced(loaded(network=network)), expected)


@pytest.mark.parametrize("one", [True, False], ids=["one model", "two models"])
def test_threads_wait_for_each_other(one: bool):
    """Hooks and attention functions of one thread would act in the forwards of another."""
    first = loaded()
    models = [first, first if one else loaded("qwen2")]
    expected = [traced(model, number) for number, model in enumerate(models)]
    found: dict[int, list[Any]] = {0: [], 1: []}

    def work(number: int) -> None:
        for _ in range(4):
            found[number].append(traced(models[number], number))

    threads = [threading.Thread(target=work, args=(number,)) for number in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, each in found.items():
        assert len(each) == 4
        for values in each:
            np.testing.assert_array_equal(values, expected[number])


def test_modes_are_put_back():
    network = build(BY_NAME["llama"]).train()
    network.get_submodule("model.layers.1").eval()
    before = {name: part.training for name, part in network.named_modules()}

    def fail() -> None:
        with at_rest(network):
            assert not any(part.training for part in network.modules())
            raise TimeoutError

    with pytest.raises(TimeoutError):
        fail()
    assert {name: part.training for name, part in network.named_modules()} == before


@pytest.mark.parametrize("more", [True, False])
def test_other_layers_than_were_loaded_are_another_model(more: bool):
    network: Any = build(BY_NAME["llama"])
    model, layers = loaded(network=network), network.model.layers
    network.model.layers = nn.ModuleList([*layers, layers[0]]) if more else layers[:3]
    network.config.num_hidden_layers = len(network.model.layers)
    with pytest.raises(
        UnsupportedModel, match=rf"had 4 layers when it was loaded, and has {5 if more else 3} now: load"
    ):
        traced(model)
