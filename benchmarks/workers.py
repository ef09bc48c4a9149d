"""Many pairs by workers against one process: the same threads in all, one of them each, and the same numbers.

    python benchmarks/workers.py [--workers 2] [--pairs 24] [--rounds 5]

One process computes on as many threads as there are workers; each worker computes on one. In turn, in one run; both
sides trace the residual stream of `facts:capital` on the demo model into a folder of their own. What it takes for the
workers to begin (each loads the model) is told apart from the work: the ratio that stays, however many pairs there are.
"""

import argparse
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

import causal_tracing as ct

LIMIT = 1e-4  # logits: other numbers of threads add in another order


def timed(model: Any, pairs: list[ct.Pair], folder: Path, workers: int | None) -> tuple[float, float, ct.Trace]:
    """Seconds until the first pair is being measured, seconds from there on, and the trace."""
    began, first = time.perf_counter(), []

    def progress(done: int, total: int) -> None:
        if done > 0 and not first:
            first.append(time.perf_counter())

    found = ct.run(model, pairs, folder, components=["resid_post"], workers=workers, progress=progress)
    ended = time.perf_counter()
    return first[0] - began, ended - first[0], found


def largest_child(stop: threading.Event, found: list[int]) -> None:
    """Notes the resident memory of the largest process that this one has begun."""
    while not stop.wait(0.2):
        for child in psutil.Process().children(recursive=True):
            try:
                found.append(child.memory_info().rss)
            except psutil.Error:
                continue


def main() -> None:
    """Prints one row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.workers)
    model, pairs = ct.load("demo", device="cpu", progress=False), ct.read_pairs("facts:capital")[: options.pairs]
    times: dict[str, list[float]] = {"one": [], "workers": [], "begin": []}
    memory: list[int] = []
    stop = threading.Event()
    watcher = threading.Thread(target=largest_child, args=(stop, memory), daemon=True)
    watcher.start()
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(options.rounds):
            _, one, here = timed(model, pairs, Path(scratch) / f"one-{number}", None)
            begin, many, there = timed(model, pairs, Path(scratch) / f"many-{number}", options.workers)
            apart = float(
                np.nanmax(np.abs(here.effects.restoration - there.effects.restoration).sel(metric="logit_diff"))
            )
            assert apart < LIMIT, f"the two differ by {apart}"
            for name, seconds in (("one", one), ("workers", many), ("begin", begin)):
                times[name].append(seconds)
    stop.set()
    medians = {name: statistics.median(each) for name, each in times.items()}
    print("| pairs | one process (s) | workers (s) | one / workers | to begin (s) | a worker's memory (MB) |")
    print("|---|---|---|---|---|---|")
    print(
        f"| {len(pairs)} | {medians['one']:.1f} | {medians['workers']:.1f} | "
        f"{medians['one'] / medians['workers']:.2f} | {medians['begin']:.1f} | {max(memory) / 1e6:.0f} |"
    )


if __name__ == "__main__":
    main()
