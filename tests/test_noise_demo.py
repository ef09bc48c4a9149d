"""Noise on the real model: random cells of all three kinds against a loop of bare hooks given the same noise."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import causal_tracing as ct
from bare_hooks import first, hooked, with_first
from causal_tracing.model import Model
from causal_tracing.noise import draws
from causal_tracing.prompts import tokenize

PROMPT, SUBJECT, ANSWER = "The Colosseum is located in the city of", "The Colosseum", " Rome"
PAIR = ct.Pair(clean=PROMPT, answer=ANSWER, subject=SUBJECT)
MODULES = {"resid_post": "", "attn_out": "self_attn", "mlp_out": "mlp"}
TOLERANCE = 1e-4  # probability


class ByHand:
    """The noised runs as one batch, a row a draw, with bare hooks on the network's own modules."""

    def __init__(self, model: Model, noise: Tensor) -> None:
        self.network, self.noise = model.network, noise
        encoded = model.tokenizer(PROMPT, return_offsets_mapping=True)
        self.ids = torch.tensor([encoded["input_ids"]] * len(noise))
        self.subject = [n for n, (_, end) in enumerate(encoded["offset_mapping"]) if 0 < end <= len(SUBJECT)]
        self.answer = model.tokenizer(ANSWER)["input_ids"][-1]
        self.clean: dict[Any, Tensor] = {}
        modules = [layer.get_submodule(path) for layer in self.network.model.layers for path in MODULES.values()]

        def keep(module: Any, _: Any, output: Any) -> None:
            self.clean[module] = first(output)[0].clone()

        self.run([(module, keep) for module in modules])

    def run(self, hooks: Sequence[tuple[Any, Callable[..., Any]]]) -> float:
        """The mean probability of the answer over the rows."""
        with hooked(hooks), torch.no_grad():
            probs = self.network(self.ids).logits[:, -1].softmax(-1)[:, self.answer]
        return probs.double().mean().item()

    def restored(self, component: str, layers: Sequence[int], position: int) -> float:
        def add(_: Any, __: Any, output: Tensor) -> Tensor:
            changed = output.clone()
            changed[:, self.subject] += self.noise
            return changed

        def put(module: Any, _: Any, output: Any) -> Any:
            changed = first(output).clone()
            changed[:, position] = self.clean[module][position]
            return with_first(output, changed)

        modules = [self.network.model.layers[layer].get_submodule(MODULES[component]) for layer in layers]
        return self.run([(self.network.get_input_embeddings(), add), *((module, put) for module in modules)])


def compare(found: Any, by_hand: ByHand, windows: dict[str, Callable[[int], range]], count: int = 20) -> None:
    """So many random cells of a trace, each kind in turn, with every layer list written by the caller."""
    at, random, sizes = {"metric": "prob", "pair": "pair-0"}, np.random.default_rng(0), []
    base = by_hand.restored("resid_post", [], 0)
    assert found.corrupt.sel(at).item() == pytest.approx(base, abs=TOLERANCE)
    assert found.clean.sel(at).item() - base > 0.3
    for number in range(count):
        component = list(windows)[number % len(windows)]
        layer, position = (int(random.choice(found[name].values)) for name in ("layer", "position"))
        expected = by_hand.restored(component, windows[component](layer), position) - base
        cell = found.restoration.sel(at | {"component": component, "layer": layer, "position": position})
        assert cell.item() == pytest.approx(expected, abs=TOLERANCE), (component, layer, position)
        sizes.append(abs(expected))
    assert max(sizes) > 500 * TOLERANCE


def test_random_cells_equal_bare_hooks_given_the_same_noise(demo: Model):
    noise = ct.Noise(scale=3.0, draws=2, seed=3)
    trace = ct.trace(
        demo, PAIR, noise=noise, window={"attn_out": 10, "mlp_out": 10}, window_sums=False,
        layers=range(4, 25, 5), spot_checks=0, metric="prob",
    )  # fmt: skip
    embedded = demo.network.get_input_embeddings()(torch.tensor([demo.tokenizer(PROMPT)["input_ids"]]))
    drawn = draws(tokenize(PAIR, demo.tokenizer, noise=True), noise, embedded.shape[-1])
    by_hand = ByHand(demo, 3.0 * embedded.std().item() * drawn)
    wide = lambda layer: range(layer - 4, layer + 6)  # noqa: E731
    compare(trace.effects, by_hand, {"resid_post": lambda n: range(n, n + 1), "attn_out": wide, "mlp_out": wide})


def test_romes_preset_equals_its_code_by_hand(demo: Model):
    """Noise and windows as in ROME's code: subjects alone, RandomState(1), range(l − 5, l + 5) cut at the edges."""
    trace = ct.trace(
        demo, PAIR, preset="rome", window_sums=False, layers=[0, 3, 29], positions=[2, 3, -1], spot_checks=0
    )
    network, layers = demo.network, len(demo.layers)
    alone = network.get_input_embeddings()(torch.tensor(demo.tokenizer(SUBJECT)["input_ids"]))
    level = 3 * alone.std().item()
    assert trace.provenance["noise"]["sigmas"][0] * 3 == pytest.approx(level, rel=1e-6)
    positions = len(trace.provenance["noise"]["positions"][0])
    drawn = np.random.RandomState(1).randn(10, positions, alone.shape[-1])
    by_hand = ByHand(demo, torch.from_numpy(level * drawn).float())
    assert len(by_hand.subject) == positions
    wide = lambda layer: range(max(0, layer - 5), min(layers, layer + 5))  # noqa: E731
    compare(trace.effects, by_hand, {"resid_post": lambda n: range(n, n + 1), "attn_out": wide, "mlp_out": wide}, 9)
