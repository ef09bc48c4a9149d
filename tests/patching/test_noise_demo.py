"""Noise on the real model: random cells of all three kinds against a loop of bare hooks given the same noise."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import causal_tracing as ct
from bare_hooks import first, hooked, with_first
from causal_tracing.models.model import Model
from causal_tracing.patching.noise import draws
from causal_tracing.prompts.pairs import tokenize

PROMPTS = (  # the demo model gets the second one wrong
    ("The Colosseum is located in the city of", "The Colosseum", " Rome"),
    ("The Space Needle is in downtown", "The Space Needle", " Seattle"),
    ("The Eiffel Tower is located in the city of", "The Eiffel Tower", " Paris"),
    ("The Louvre is located in the city of", "The Louvre", " Paris"),
)
MODULES = {"resid_post": "", "attn_out": "self_attn", "mlp_out": "mlp"}
TOLERANCE = 1e-4  # probability


class ByHand:
    """The noised runs as one batch, a row a draw, with bare hooks on the network's own modules."""

    def __init__(self, model: Model, prompt: str, subject: str, answer: str, noise: Tensor) -> None:
        self.network, self.noise = model.network, noise
        encoded = model.tokenizer(prompt, return_offsets_mapping=True)
        self.ids = torch.tensor([encoded["input_ids"]] * len(noise))
        start, end = prompt.index(subject), prompt.index(subject) + len(subject)
        self.subject = [n for n, (a, b) in enumerate(encoded["offset_mapping"]) if a < end and b > start]
        self.answer = model.tokenizer(answer)["input_ids"][-1]
        self.clean: dict[Any, Tensor] = {}
        modules = [layer.get_submodule(path) for layer in self.network.model.layers for path in MODULES.values()]

        def keep(module: Any, _: Any, output: Any) -> None:
            self.clean[module] = first(output)[0].clone()

        self.run([(module, keep) for module in modules])

    def run(self, hooks: Sequence[tuple[Any, Callable[..., Any]]]) -> float:
        """The mean probability of the answer over the rows."""
        with hooked(hooks), torch.no_grad():
            probs = self.network(self.ids, logits_to_keep=1).logits[:, -1].softmax(-1)[:, self.answer]
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


def compare(found: Any, pair: str, by_hand: ByHand, windows: dict[str, Callable[[int], range]], count: int) -> float:
    """So many random cells of a trace, each kind in turn, with every layer list written by the caller."""
    at, random, sizes = {"metric": "prob", "pair": pair}, np.random.default_rng([*pair.encode()]), [0.0]
    base = by_hand.restored("resid_post", [], 0)
    assert found.corrupt.sel(at).item() == pytest.approx(base, abs=TOLERANCE)
    for number in range(count):
        component = list(windows)[number % len(windows)]
        positions = found.position.values[found.position.values < by_hand.ids.shape[1]]
        there = found.status.sel(at | {"component": component, "position": 2}) != "no_window"
        layer, position = int(random.choice(found.layer.values[there])), int(random.choice(positions))
        expected = by_hand.restored(component, windows[component](layer), position) - base
        cell = found.restoration.sel(at | {"component": component, "layer": layer, "position": position})
        assert cell.item() == pytest.approx(expected, abs=TOLERANCE), (component, layer, position)
        sizes.append(abs(expected))
    return max(sizes)


def assert_random_cells_equal(
    demo: Model, prompts: Sequence[tuple[str, str, str]], count: int, cells: int, **where: Any
) -> None:
    noise = ct.Noise(scale=3.0, draws=count, seed=3)
    pairs = [ct.Pair(clean=prompt, subject=subject, answer=answer, id=subject) for prompt, subject, answer in prompts]
    trace = ct.trace(
        demo, pairs, noise=noise, window={"attn_out": 10, "mlp_out": 10}, window_sums=False, spot_checks=0,
        metric="prob", **where,
    )  # fmt: skip
    wide = lambda layer: range(layer - 4, layer + 6)  # noqa: E731
    kinds = {"resid_post": lambda n: range(n, n + 1), "attn_out": wide, "mlp_out": wide}
    largest = []
    for pair, said in zip(pairs, prompts, strict=True):
        embedded = demo.network.get_input_embeddings()(torch.tensor([demo.tokenizer(pair.clean)["input_ids"]]))
        drawn = draws(tokenize(pair, demo.tokenizer, noise=True), noise, embedded.shape[-1])
        by_hand = ByHand(demo, *said, noise=3.0 * embedded.std().item() * drawn)
        largest.append(compare(trace.effects, said[1], by_hand, kinds, cells))
    assert max(largest) > 200 * TOLERANCE
    choices = trace.measurements.pairs.clean_top.isel(rank=0).values.tolist()
    right = [choice == pair.answer for choice, pair in zip(choices, pairs, strict=True)]
    assert right == [said != PROMPTS[1] for said in prompts]


def test_random_cells_of_two_prompts_equal_bare_hooks_given_the_same_noise(demo: Model):
    """Eighteen cells of all three kinds, of a prompt that the demo model gets right and of one that it gets wrong."""
    assert_random_cells_equal(demo, PROMPTS[:2], 4, 9, layers=[4, 17, 24], positions=[2, 3, 5])


@pytest.mark.slow
def test_random_cells_of_four_prompts_equal_bare_hooks_given_the_same_noise(demo: Model):
    """Sixty cells of all three kinds: ten draws, every position, layers from the first to the last."""
    assert_random_cells_equal(demo, PROMPTS, 10, 15, layers=[0, 4, 11, 17, 24, 29])


def test_romes_preset_equals_its_code_by_hand(demo: Model):
    """Noise and windows as in ROME's code: subjects alone, RandomState(1), range(l − 5, l + 5) cut at the edges."""
    prompt, subject, answer = PROMPTS[0]
    pair = ct.Pair(clean=prompt, answer=answer, subject=subject)
    trace = ct.trace(
        demo, pair, preset="rome", window_sums=False, layers=[0, 3, 29], positions=[2, 3, -1], spot_checks=0
    )
    network, layers = demo.network, len(demo.layers)
    alone = network.get_input_embeddings()(torch.tensor(demo.tokenizer(subject)["input_ids"]))
    level = 3 * alone.std().item()
    assert trace.provenance["noise"]["sigmas"][0] * 3 == pytest.approx(level, rel=1e-6)
    positions = len(trace.provenance["noise"]["positions"][0])
    drawn = np.random.RandomState(1).randn(10, positions, alone.shape[-1])
    by_hand = ByHand(demo, prompt, subject, answer, torch.from_numpy(level * drawn).float())
    assert len(by_hand.subject) == positions
    wide = lambda layer: range(max(0, layer - 5), min(layers, layer + 5))  # noqa: E731
    kinds = {"resid_post": lambda n: range(n, n + 1), "attn_out": wide, "mlp_out": wide}
    assert compare(trace.effects, "pair-0", by_hand, kinds, 9) > 500 * TOLERANCE
