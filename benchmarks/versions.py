"""Two versions of the package against each other: the same traces, in turn, each version in a process of its own.

    python benchmarks/versions.py OLD/src NEW/src [--rounds 5] [--case default,sweep,pairs,neurons,noise]
    python benchmarks/versions.py OLD/src NEW/src --case packed,default-packed,heads-packed,replay

Both load the demo model once and warm up; then they trace in turn, A B A B …, so that what else the machine does meets
both. The second line asks the engines alone: worlds in, two words' logits of each out. Printed are medians of seconds,
the median of the ratios pair by pair, and how far the numbers are apart (logits).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

WORKER = """
import json, sys, time
import numpy as np
import causal_tracing as ct
from causal_tracing.engine.evaluate import evaluate
try:
    from causal_tracing.interventions.edits import Edit, From, Run, World
    from causal_tracing.interventions.sites import Site
except ImportError:  # version 0.1.0
    from causal_tracing.edits import Edit, From, Run, World
    from causal_tracing.sites import Site

pair = ct.Pair(clean="The Colosseum is located in the city of", corrupt="The Eiffel Tower is located in the city of",
               answer=" Rome", foil=" Paris", subject="The Colosseum", corrupt_subject="The Eiffel Tower")
model = ct.load("demo", device="cpu", progress=False)
BLOCKS = ("resid_post", "attn_out", "mlp_out")
clean, corrupt = (Run(tuple(model.tokenizer(text)["input_ids"])) for text in (pair.clean, pair.corrupt))
words = [model.tokenizer(text)["input_ids"][0] for text in (" Rome", " Paris")]

def engine(name, components, both, parts=(None,)):
    worlds = [World(base, (Edit(Site(component, layer, position, part), From(donor, position)),), (9,))
              for base, donor in ((corrupt, clean), (clean, corrupt))[:both] for component in components
              for layer in range(30) for position in range(10) for part in parts]
    return evaluate(model, worlds, lambda logits, worlds: logits[:, 0, words], engine=name).values

cases = {
    "packed": lambda: engine("packed", BLOCKS[:1], 1),
    "default-packed": lambda: engine("packed", BLOCKS, 2),
    "heads-packed": lambda: engine("packed", ("z",), 1, range(9)),
    "replay": lambda: engine("replay", BLOCKS[:1], 1),
    "noise": lambda: ct.trace(model, ct.Pair(clean=pair.clean, answer=" Rome", subject=pair.subject),
                              noise=ct.Noise(scale=3.0, draws=10, seed=0), window={"attn_out": 10, "mlp_out": 10},
                              window_sums=False, metric="prob"),
    "default": lambda: ct.trace(model, pair),
    "sweep": lambda: ct.trace(model, pair, components=["resid_post"], directions=["restoration"]),
    "pairs": lambda: ct.trace(model, ct.read_pairs("facts:capital")[:4], components=["resid_post"]),
    "neurons": lambda: ct.trace(model, pair, components=["resid_post"], layers=range(20, 30),
                                positions=["last"], neurons=True, directions=["restoration"]),
}
for line in sys.stdin:
    started = time.perf_counter()
    found = cases[line.strip()]()
    seconds = time.perf_counter() - started
    if isinstance(found, np.ndarray):
        effects = found
    else:
        maps = found.neurons if line.strip() == "neurons" else found.effects
        effects = maps.restoration.sel(metric="prob" if line.strip() == "noise" else "logit_diff").values
    print(json.dumps([seconds, np.where(np.isnan(effects), 0.0, effects).ravel().tolist()]), flush=True)
"""


class Version:
    """One version, waiting to be asked."""

    def __init__(self, source: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONPATH": str(source.resolve())},
        )

    def trace(self, case: str) -> tuple[float, list[float]]:
        """Seconds, and every cell's restoration in logits."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(case, file=self.process.stdin, flush=True)
        seconds, numbers = json.loads(self.process.stdout.readline())
        return seconds, numbers


def compare(old: Version, new: Version, case: str, rounds: int) -> dict[str, Any]:
    """Medians of so many rounds, after one that is not counted."""
    apart = max(abs(a - b) for a, b in zip(old.trace(case)[1], new.trace(case)[1], strict=True))
    both = [(old.trace(case)[0], new.trace(case)[0]) for _ in range(rounds)]
    return {
        "case": case,
        "old": statistics.median(a for a, _ in both),
        "new": statistics.median(b for _, b in both),
        "ratio": statistics.median(b / a for a, b in both),
        "apart": apart,
    }


def main() -> None:
    """Prints a line a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", default="default,sweep,pairs")
    asked = parser.parse_args()
    old, new = Version(asked.old), Version(asked.new)
    print("| case | old (s) | new (s) | new / old | apart (logits) |\n|---|---|---|---|---|")
    for case in asked.case.split(","):
        row = compare(old, new, case, asked.rounds)
        print(f"| {case} | {row['old']:.2f} | {row['new']:.2f} | {row['ratio']:.3f} | {row['apart']:.1e} |", flush=True)


if __name__ == "__main__":
    main()
