"""How many pairs a minute go into a run folder, beside the nnsight loop on the same pairs.

    python benchmarks/throughput.py [--pairs 24] [--repeats 5]

A sample of `facts`, default components, both directions, all metrics, with the repeats and spot checks that every trace
makes. The loop runs one patch a forward; it is timed on random cells of the same pairs, and its time for all cells of
the default trace is extrapolated, for a forward's time does not depend on which cell it patches. Beside it, the share
of our time in which the rows of a chunk are committed, and nothing computes.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from peers import PEERS, Task

import causal_tracing as ct
from causal_tracing.prompts.pairs import tokenize_pairs
from causal_tracing.results.storage.run_folder import Store, read_manifest

CELLS_EACH = 3  # of every pair, that the loop runs
COMPONENTS, DIRECTIONS = 3, 2


def main() -> None:
    """Prints pairs a minute of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    model = ct.load("demo", device="cpu", progress=False)
    random = np.random.default_rng(0)
    everything = ct.read_pairs("facts")
    pairs = [everything[n] for n in sorted(random.permutation(len(everything))[: asked.pairs])]
    tokens = tokenize_pairs(pairs, model.tokenizer)
    tasks = [Task(p.clean.tokens, p.corrupt.tokens, p.answer, p.foil or 0) for p in tokens]
    lengths = [len(task.clean) for task in tasks]
    cells = [
        list(zip(random.integers(model.num_layers, size=CELLS_EACH).tolist(),
                 random.integers(length, size=CELLS_EACH).tolist(), strict=True))
        for length in lengths
    ]  # fmt: skip
    loop = PEERS["nnsight_loop"](model.network, model.tokenizer)
    times: dict[str, list[float]] = {"ours": [], "loop": [], "disk": []}
    apart = 0.0
    for _ in range(asked.repeats):
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            trace = ct.run(model, pairs, Path(folder) / "run")
            times["ours"].append((time.perf_counter() - started) / len(pairs))
            times["disk"].append(committing(Path(folder)) / len(pairs))
        started = time.perf_counter()
        found = [loop(task, some) for task, some in zip(tasks, cells, strict=True)]
        patch = (time.perf_counter() - started) / sum(map(len, cells))
        times["loop"].append(patch * COMPONENTS * DIRECTIONS * model.num_layers * statistics.mean(lengths))
        restored = trace.measurements.numbers().restored.sel(metric="logit_diff", component="resid_post")
        for n, some in enumerate(cells):
            apart = max(apart, *(abs(found[n][cell] - restored[n].values[cell]) for cell in some))
    if apart > 1e-3:
        raise SystemExit(f"The two differ by {apart:.1e} logits: there is nothing to time.")
    ours, theirs, disk = (statistics.median(each) for each in times.values())
    print(f"largest difference {apart:.1e} logits over {sum(map(len, cells))} cells")
    print(f"ours {60 / ours:.1f} pairs a minute, the loop {60 / theirs:.2f}: {theirs / ours:.1f} times as many")
    print(f"committing takes {1000 * disk:.1f} ms a pair, {disk / ours:.2%} of our time")


def committing(folder: Path) -> float:
    """Seconds that it takes to commit the run's rows again, chunk by chunk, into a database beside it."""
    spec = read_manifest(folder / "run")["spec_sha256"]
    done = Store(folder / "run", spec)
    rows, size = list(done.rows().values()), read_manifest(folder / "run")["spec"]["chunk"]
    (folder / "again").mkdir()
    again = Store(folder / "again", spec)
    again.chunks()  # the database is there
    started = time.perf_counter()
    for chunk, record in done.chunks().items():
        again.add(chunk, rows[chunk * size : (chunk + 1) * size], record)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
