"""Every head and every neuron of the demo model, exactly: against the operations that must be done, and forwards.

`python benchmarks/mediators.py` runs all heads at all positions, and all neurons at the last position; `--position 2`
takes the neurons there instead, which is five times the work. Peers are extrapolated from 100 forwards.
"""

import argparse
import json
import statistics
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import torch
from bounds import large_product, operations, products
from peers import Task
from speed import demo_task, evaluated, seconds

import causal_tracing as ct
from causal_tracing.interventions.edits import Edit, From, Run, World
from causal_tracing.interventions.sites import Site
from causal_tracing.models.model import Model

FORWARDS = 100
AT_ONCE = 8192
CHECKED = 20


def worlds(model: Model, task: Task, component: str, positions: list[int]) -> list[World]:
    """Every head or neuron of the clean run, one at a time, in the corrupt run."""
    base, donor = Run(task.corrupt), Run(task.clean)
    readout = (len(task.clean) - 1,)
    return [
        World(base, (Edit(Site(component, layer, position, unit), From(donor, position)),), readout)
        for layer in range(model.num_layers)
        for position in positions
        for unit in range(model.parts(component))
    ]


def sweep(model: Model, asked: list[World], task: Task, done: list[int]) -> np.ndarray:
    """The logit differences of all worlds, some thousands at a time; adds up how many were really run."""
    values = []
    for start in range(0, len(asked), AT_ONCE):
        found = evaluated(model, asked[start : start + AT_ONCE], task, "packed")
        values.append(found.values[:, 0])
        done.append(found.worlds_run)
    return np.concatenate(values)


def one_forward_each(model: Model, asked: list[World], task: Task) -> np.ndarray:
    """The same by bare hooks, a whole forward for each world."""
    return np.array([_by_hand(model, world, task) for world in asked])


def _by_hand(model: Model, world: World, task: Task) -> float:
    site = world.edits[0].site
    layer: Any = model.layers[site.layer]
    module = layer.self_attn.o_proj if site.component == "z" else layer.mlp.down_proj
    size = module.in_features // model.parts(site.component)
    columns = slice((site.part or 0) * size, ((site.part or 0) + 1) * size)
    seen: list[torch.Tensor] = []

    def run(tokens: tuple[int, ...], hook: Callable[..., Any]) -> torch.Tensor:
        handle = module.register_forward_pre_hook(hook)
        try:
            return model.network(input_ids=torch.tensor([tokens]), use_cache=False, logits_to_keep=1).logits[0, -1]
        finally:
            handle.remove()

    def write(_: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        changed = args[0].clone()
        changed[0, site.position, columns] = seen[0][0, site.position, columns]
        return (changed,)

    with torch.no_grad():
        run(task.clean, lambda _, args: seen.append(args[0].clone()))
        logits = run(task.corrupt, write)
    return (logits[task.answer] - logits[task.foil]).item()


def peak(run: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and the MB that it took at most above what there was."""
    process, done, highest = psutil.Process(), threading.Event(), [0]

    def watch() -> None:
        while not done.wait(0.01):
            highest[0] = max(highest[0], process.memory_info().rss)

    before, watcher = process.memory_info().rss, threading.Thread(target=watch)
    watcher.start()
    try:
        found = run()
    finally:
        done.set()
        watcher.join()
    return found, (highest[0] - before) / 2**20


def measured(model: Model, task: Task, component: str, positions: list[int]) -> dict[str, Any]:
    """One sweep: its time, memory and operations, the speed of a large product, and the forwards' time."""
    asked, run_worlds = worlds(model, task, component, positions), []
    random = np.random.default_rng(0)
    chosen = [asked[n] for n in sorted(random.choice(len(asked), min(FORWARDS, len(asked)), replace=False))]
    product = large_product()
    speeds = [statistics.median(product() for _ in range(5))]
    took: list[float] = []
    values: list[np.ndarray] = []

    def timed() -> None:
        took.append(seconds(lambda: values.append(sweep(model, asked, task, run_worlds))))

    called: list[Any] = []
    _, mb = peak(lambda: called.extend(products(model, timed)))
    speeds.append(statistics.median(product() for _ in range(5)))
    by_hand: list[np.ndarray] = []
    forwards = (
        seconds(lambda: by_hand.append(one_forward_each(model, chosen, task))) / len(chosen) / 2
    )  # two forwards each
    index = {id(world): n for n, world in enumerate(asked)}
    apart = max(abs(values[0][index[id(world)]] - value) for world, value in zip(chosen, by_hand[0], strict=True))
    work = operations(model, called, sum(run_worlds))
    bound = work / statistics.mean(speeds)
    return {
        "component": component,
        "positions": positions,
        "worlds": len(asked),
        "worlds_run": sum(run_worlds),
        "seconds": took[0],
        "operations": work,
        "times_bound": took[0] / bound,
        "times_faster": forwards * len(asked) / took[0],
        "peak_mb": mb,
        "largest_difference": float(apart),
    }


def main() -> None:
    """Runs both sweeps and prints a table and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--position", type=int, default=None, help="where neurons are patched (default: the last)")
    parser.add_argument("--only", choices=("heads", "neurons"), default=None)
    asked = parser.parse_args()
    model = ct.load("demo", device="cpu", progress=False)
    task = demo_task(model)
    last = len(task.clean) - 1
    jobs = {
        "heads": ("z", list(range(len(task.clean)))),
        "neurons": ("neurons", [last if asked.position is None else asked.position]),
    }
    print("| sweep | worlds | seconds | times the operations' bound | times one forward each | MB | difference |")
    print("|---|---|---|---|---|---|---|")
    for name, (component, positions) in jobs.items():
        if asked.only in (None, name):
            found = measured(model, task, component, positions)
            print(
                f"| {name}, {len(positions)} positions | {found['worlds']:,} | {found['seconds']:.1f} "
                f"| {found['times_bound']:.2f} | {found['times_faster']:.1f} | {found['peak_mb']:.0f} "
                f"| {found['largest_difference']:.1e} |"
            )
            print(json.dumps(found))


if __name__ == "__main__":
    main()
