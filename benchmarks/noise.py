"""ROME's noise trace of the demo model: this project's against ROME's own scheme written with bare hooks.

`python benchmarks/noise.py` traces all three kinds (the stream, windows of ten layers of MLPs and of attention), ten
draws, every layer and position. ROME's scheme is one forward of eleven rows a cell: the clean run, and ten noised ones
into which its state is put. It runs a sample of the cells in each round, for its time does not depend on which.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from bounds import large_product, operations, products
from speed import seconds

import causal_tracing as ct
from causal_tracing.models.model import Model
from causal_tracing.patching.noise import draws
from causal_tracing.prompts.pairs import tokenize

PROMPTS = {
    "Colosseum": ("The Colosseum is located in the city of", "The Colosseum", " Rome"),
    "Space Needle": ("The Space Needle is in downtown", "The Space Needle", " Seattle"),
    "Eiffel Tower": ("The Eiffel Tower is located in the city of", "The Eiffel Tower", " Paris"),
    "Louvre": ("The Louvre is a famous museum in the city of", "The Louvre", " Paris"),
}
MODULES = {"resid_post": "", "attn_out": "self_attn", "mlp_out": "mlp"}
NOISE = ct.Noise(scale=3.0, draws=10, seed=0)
WINDOW = 10
SAMPLE = 60

Cell = tuple[str, int, int]  # component, layer, position


class Rome:
    """One forward of eleven rows a cell, by bare hooks: row 0 is clean, the others are noised and restored from it."""

    def __init__(self, model: Model, prompt: str, subject: str, answer: str) -> None:
        self.network: Any = model.network
        pair = tokenize(ct.Pair(clean=prompt, subject=subject, answer=answer), model.tokenizer, noise=True)
        self.ids = torch.tensor([pair.clean.tokens] * (NOISE.draws + 1))
        self.subject, self.answer = list(pair.noised), pair.answer
        embedded = self.network.get_input_embeddings()(self.ids[0])
        self.noise = NOISE.scale * embedded.std().item() * draws(pair, NOISE, embedded.shape[-1])

    def __call__(self, cells: Sequence[Cell]) -> np.ndarray:
        """The mean probability of the answer over the noised rows, for each cell."""
        return np.array([self.restored(*cell) for cell in cells])

    def restored(self, component: str, layer: int, position: int) -> float:
        def add(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
            changed = output.clone()
            changed[1:, self.subject] += self.noise
            return changed

        def put(_: Any, __: Any, output: Any) -> Any:
            changed = output[0] if isinstance(output, tuple) else output
            changed[1:, position] = changed[0, position]
            return output

        layers = self.network.model.layers
        modules = [layers[each].get_submodule(MODULES[component]) for each in window(component, layer, len(layers))]
        handles = [self.network.get_input_embeddings().register_forward_hook(add)]
        handles += [module.register_forward_hook(put) for module in modules]
        with torch.no_grad():
            probs = self.network(input_ids=self.ids, use_cache=False, logits_to_keep=1).logits[1:, -1].softmax(-1)
        for handle in handles:
            handle.remove()
        return probs[:, self.answer].double().mean().item()


def window(component: str, layer: int, layers: int) -> range:
    """The layers that are restored together, where there is a whole window."""
    return range(layer, layer + 1) if component == "resid_post" else range(layer - 4, layer + 6)


def cells(layers: int, length: int) -> list[Cell]:
    """Every cell of the three maps."""
    return [
        (component, layer, position)
        for component in MODULES
        for layer in range(layers)
        for position in range(length)
        if component == "resid_post" or 4 <= layer < layers - 5
    ]


def traced(model: Model, prompt: str, subject: str, answer: str) -> ct.Trace:
    """The whole trace, as a user asks for it."""
    pair = ct.Pair(clean=prompt, subject=subject, answer=answer)
    widths = {"attn_out": WINDOW, "mlp_out": WINDOW}
    return ct.trace(model, pair, noise=NOISE, window=widths, window_sums=False, metric="prob")


def compared(model: Model, said: tuple[str, str, str], repeats: int) -> dict[str, Any]:
    """One prompt: both sides' numbers on a sample of the cells, then their times, interleaved, and the bound."""
    rome, random, trace = Rome(model, *said), np.random.default_rng(0), traced(model, *said)
    found = trace.measurements.numbers().restored.sel(metric="prob", pair="pair-0")
    every = cells(model.num_layers, found.sizes["position"])
    chosen = [every[n] for n in random.choice(len(every), SAMPLE, replace=False)]
    theirs = rome(chosen)
    ours = [found.sel(component=name, layer=layer, position=position).item() for name, layer, position in chosen]
    apart = float(np.max(np.abs(theirs - np.array(ours))))
    if apart > 1e-4:
        raise SystemExit(f"The two differ by {apart:.1e} in probability: there is nothing to time.")
    record = trace.provenance
    calls = products(model, lambda: traced(model, *said))
    work = operations(model, calls, record["worlds"] - record["worlds_skipped"])
    sides: dict[str, Callable[[], object]] = {"ours": lambda: traced(model, *said), "rome": lambda: rome(chosen)}
    took: dict[str, list[float]] = {name: [] for name in sides}
    product, speeds = large_product(), []
    for _ in range(repeats):
        for name, run in sides.items():
            took[name].append(seconds(run))
        speeds.append(statistics.median(product() for _ in range(5)))
    ours_median = statistics.median(took["ours"])
    rome_median = statistics.median(took["rome"]) / SAMPLE * len(every)
    return {
        "cells": len(every),
        "worlds_run": record["worlds"] - record["worlds_skipped"],
        "seconds": ours_median,
        "rome_seconds": rome_median,
        "times_faster": rome_median / ours_median,
        "operations": work,
        "times_bound": ours_median / (work / statistics.median(speeds)),
        "largest_difference": apart,
    }


def main() -> None:
    """Runs the prompts and prints a table and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=PROMPTS, default=None)
    asked = parser.parse_args()
    model = ct.load("demo", device="cpu", progress=False)
    print("| prompt | cells | worlds | seconds | ROME's scheme, s (extrapolated) | ratio | times bound | difference |")
    print("|---|---|---|---|---|---|---|---|")
    for name, said in PROMPTS.items():
        if asked.only in (None, name):
            found = compared(model, said, asked.repeats)
            print(
                f"| {name} | {found['cells']} | {found['worlds_run']:,} | {found['seconds']:.1f} "
                f"| {found['rome_seconds']:.0f} | {found['times_faster']:.1f} | {found['times_bound']:.2f} "
                f"| {found['largest_difference']:.1e} |"
            )
            print(json.dumps(found))


if __name__ == "__main__":
    main()
