"""Times this project's sweeps against other tools' and against two bounds: `make bench`.

Everything runs in one process, interleaved, after all have been found to give the same numbers; what is reported are
ratios of medians. The task: `resid_post` of the clean run restored in the corrupt one, every layer and position.
"""

import argparse
import json
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["TQDM_DISABLE"] = "1"

import numpy as np
import psutil
import torch
import transformers
from bounds import large_product, operations, products, projections_alone
from peers import PEERS, Task, agreement, all_cells
from torch import Tensor

import causal_tracing as ct
from causal_tracing.engine.backend import Evaluation
from causal_tracing.engine.evaluate import evaluate
from causal_tracing.interventions.edits import Edit, From, Run, World
from causal_tracing.interventions.sites import Site
from causal_tracing.models.model import Model
from causal_tracing.patching.options.choices import BLOCKS as COMPONENTS
from causal_tracing.prompts.example import EXAMPLE
from causal_tracing.prompts.pairs import tokenize_pairs

SUBSETS = {
    "nnsight_loop": 30,
    "nnsight_invokes": 60,
    "transformer_lens": 30,
    "bare_hooks": 30,
    "bare_hooks_batched": 96,
}
LABELS = {
    "packed": "causal-tracing, packed",
    "trace": "causal-tracing, `ct.trace` from prompts to result",
    "replay": "causal-tracing, replay",
    "nnsight_loop": "(a) nnsight, the recipe's loop",
    "nnsight_invokes": "(b) nnsight, ten invokes a trace",
    "transformer_lens": "(c) TransformerLens patching",
    "bare_hooks": "(d) bare hooks, one forward a patch",
    "bare_hooks_batched": "(e) bare hooks, batches of 32",
    "projections": "(f) the layers' projections alone",
    "operations": "(g) the operations at a large product's speed",
}
SENTENCE = (
    ", about which my old friend from the university told me yesterday afternoon, when the long meeting about the "
    "budget of the coming year had finally come to an end and everyone else had gone home, over a cup of coffee in "
    "the small cafe near the station, that in spite of everything that he had read about it in the newspapers for "
    "years it really is"
)


def worlds_of(clean: Run, corrupt: Run, components: Sequence[str], directions: int, layers: int) -> list[World]:
    """Every cell of the map, as worlds."""
    both = ((corrupt, clean), (clean, corrupt))[:directions]
    length = len(clean.tokens)
    return [
        World(base, (Edit(Site(component, layer, position), From(donor, position)),), (length - 1,))
        for base, donor in both
        for component in components
        for layer in range(layers)
        for position in range(length)
    ]


class Ours:
    """A sweep on one of this project's engines."""

    def __init__(
        self, model: Model, engine: str, components: Sequence[str] = ("resid_post",), directions: int = 1
    ) -> None:
        self.model = model
        self.engine = engine
        self.components = components
        self.directions = directions
        self.worlds_run = 0

    def __call__(self, task: Task) -> np.ndarray:
        """The logit differences: [layers, positions] of each component in each direction."""

        layers = self.model.num_layers
        worlds = worlds_of(Run(task.clean), Run(task.corrupt), self.components, self.directions, layers)
        found = evaluated(self.model, worlds, task, self.engine)
        self.worlds_run = found.worlds_run
        return found.values.reshape(-1, layers, len(task.clean))


def traced(model: Model) -> np.ndarray:
    """The same sweep as a user asks for it: with its repeats and spot checks, all metrics, and a Trace at the end."""
    found = ct.trace(
        model, ct.Pair(**EXAMPLE), components=["resid_post"], directions=["restoration"], progress=False
    ).measurements.maps["blocks"]
    return found.restored.sel(metric="logit_diff").squeeze().transpose("layer", "position").values


def seconds(run: Callable[[], object]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def sweeps(model: Model, task: Task, peers: Sequence[str], repeats: int) -> dict[str, Any]:
    """Seconds a patch of every sweep and of the bounds, after all have given the same numbers."""
    one, default = Ours(model, "packed"), Ours(model, "packed", COMPONENTS, 2)
    replay = Ours(model, "replay")
    prepared = {name: PEERS[name](model.network, model.tokenizer) for name in peers}
    cells = all_cells(model.num_layers, task)
    step = {name: cells[:: max(1, len(cells) // SUBSETS[name])][: SUBSETS[name]] for name in peers}
    results = {name: sweep(task, step[name]) for name, sweep in prepared.items()}
    results |= {"packed": one(task)[0], "replay": replay(task)[0], "default": default(task)[0]}
    results["trace"] = traced(model)
    apart = agreement(results)
    if apart > 1e-3:
        raise SystemExit(f"The sweeps differ by {apart:.1e} logits: there is nothing to time.")
    called = [products(model, lambda sweep=sweep: sweep(task)) for sweep in (one, default)]
    work, work_default = (
        operations(model, calls, sweep.worlds_run) for calls, sweep in zip(called, (one, default), strict=True)
    )
    alone, product = projections_alone(called[0]), large_product()
    times: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name, sweep in prepared.items():
            _note(times, name, seconds(lambda s=sweep, n=name: s(task, step[n])) / len(step[name]))
        _note(times, "replay", seconds(lambda: replay(task)) / len(cells))
        _note(times, "packed", seconds(lambda: one(task)) / len(cells))
        _note(times, "trace", seconds(lambda: traced(model)) / len(cells))
        _note(times, "projections", seconds(alone) / len(cells))
        speed = statistics.median(product() for _ in range(5))
        _note(times, "operations", work / speed / len(cells))
        _note(times, "default trace", seconds(lambda: default(task)))
        _note(times, "default operations", work_default / speed)
    medians = {name: statistics.median(values) for name, values in times.items()}
    counted = {"cells": len(cells), "worlds": one.worlds_run, "worlds_default": default.worlds_run}
    return {
        "largest_difference": apart,
        **counted,
        "operations": {"one": work, "default": work_default},
        "repeats": repeats,
        "seconds": medians,
        "all": times,
    }


def _note(times: dict[str, list[float]], name: str, value: float) -> None:
    times.setdefault(name, []).append(value)


def scaling(model: Model) -> list[dict[str, Any]]:
    """Cells and seconds of a `resid_post` sweep for longer prompts, and for more pairs.

    Replay's seconds are extrapolated from 64 worlds of one pair.
    """
    rows = []
    for length, pairs in ((10, 1), (20, 1), (40, 1), (80, 1), (10, 8), (10, 32)):
        task = demo_task(model, length)
        generator = np.random.default_rng(length)
        # Further pairs have other first tokens: no run is shared.
        firsts = [task.clean[0], *generator.integers(1000, 40000, pairs - 1).tolist()]
        worlds = [
            World(world.base, world.edits, world.readout, pair)
            for pair, first in enumerate(firsts)
            for world in worlds_of(
                Run((first, *task.clean[1:])), Run((first, *task.corrupt[1:])), ["resid_post"], 1, model.num_layers
            )
        ]
        row: dict[str, Any] = {"tokens": length, "pairs": pairs, "cells": len(worlds)}
        for engine in ("packed", "replay"):
            first = worlds[: len(worlds) // pairs]
            chosen = worlds if engine == "packed" else first[:: max(1, len(first) // 64)]
            repeats = 3 if len(worlds) < 2000 else 1
            took = [seconds(lambda e=engine, c=chosen, t=task: evaluated(model, c, t, e)) for _ in range(repeats)]
            row[engine] = statistics.median(took) / len(chosen) * len(worlds)
        rows.append(row)
    return rows


def evaluated(model: Model, worlds: Sequence[World], task: Task, engine: str) -> Evaluation:
    def logit_diff(logits: Tensor, _: Any) -> Tensor:
        return (logits[:, -1, task.answer] - logits[:, -1, task.foil])[:, None]

    return evaluate(model, worlds, logit_diff, engine=engine)


def demo_task(model: Model, length: int | None = None) -> Task:
    """The demo's pair; with a length, so many tokens of a long sentence between the buildings and the rest."""
    pair = tokenize_pairs([ct.Pair(**EXAMPLE)], model.tokenizer, align="strict")[0]
    clean, corrupt = pair.clean.tokens, pair.corrupt.tokens
    if length is not None and length != len(clean):
        between = tuple(model.tokenizer(SENTENCE, add_special_tokens=False)["input_ids"][: length - len(clean)])
        if len(clean) + len(between) < length:
            raise SystemExit(f"The long sentence has {len(between)} tokens: too few for {length}.")
        behind = pair.differing[-1] + 1
        clean, corrupt = ((*tokens[:behind], *between, *tokens[behind:]) for tokens in (clean, corrupt))
    return Task(clean=clean, corrupt=corrupt, answer=pair.answer, foil=pair.foil or 0)


def peak_memory(model: Model, pairs: int) -> dict[str, float]:
    """MB that a default trace of so many pairs takes above the loaded model, at its highest."""
    process, highest, done = psutil.Process(), 0, threading.Event()
    asked = [
        ct.Pair(**EXAMPLE | {"clean": f"{n}. {EXAMPLE['clean']}", "corrupt": f"{n}. {EXAMPLE['corrupt']}"})
        for n in range(pairs)
    ]

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.005):
            highest = max(highest, process.memory_info().rss)

    before = process.memory_info().rss
    watcher = threading.Thread(target=watch)
    watcher.start()
    ct.trace(model, asked, spot_checks=0)
    done.set()
    watcher.join()
    return {"pairs": pairs, "mb": (highest - before) / 2**20}


def table(found: dict[str, Any]) -> str:
    """The ratios, as Markdown."""
    medians = found["seconds"]
    lines = ["| sweep | ms a patch | times packed |", "|---|---|---|"]
    for name, label in LABELS.items():
        if name in medians:
            lines.append(f"| {label} | {1000 * medians[name]:.2f} | {medians[name] / medians['packed']:.2f} |")
    one = medians["packed"] * found["cells"]
    lines.append("")
    lines.append(
        f"Default trace (six sweeps of that size in one wave): {medians['default trace'] / one:.2f} times one sweep, "
        f"{medians['default trace'] / medians['default operations']:.2f} times (g). "
        f"All agree to {found['largest_difference']:.1e} logits; medians of {found['repeats']}, interleaved."
    )
    return "\n".join(lines)


def main() -> None:
    """Runs what was asked for, prints it, and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peers", default=",".join(PEERS), help="which peers, by name; empty: none")
    parser.add_argument("--no-scaling", action="store_true")
    parser.add_argument("--memory", type=int, default=0, help="only the peak memory of a trace of so many pairs")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.json"))
    asked = parser.parse_args()
    model = ct.load("demo", device="cpu", progress=False)
    if asked.memory:
        print(json.dumps(peak_memory(model, asked.memory)))
        return
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    found: dict[str, Any] = {"machine": machine, "transformers": transformers.__version__}
    found |= sweeps(model, demo_task(model), [name for name in asked.peers.split(",") if name], asked.repeats)
    print(table(found))
    if not asked.no_scaling:
        found["scaling"] = scaling(model)
        print("\n| tokens | pairs | cells | packed, s | replay, s | ratio |\n|---|---|---|---|---|---|")
        for row in found["scaling"]:
            print(
                f"| {row['tokens']} | {row['pairs']} | {row['cells']} | {row['packed']:.2f} | {row['replay']:.1f} "
                f"| {row['replay'] / row['packed']:.1f} |"
            )
    asked.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
