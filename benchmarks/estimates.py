"""Times estimates of all edges of one pair, in plain forwards of its prompt; prints a table.

    python benchmarks/estimates.py [--rounds 5] [--at last,all] [--method eap,eap-ig,reception]

Senders are all heads, MLPs and the embedding, receivers all queries, keys, values, MLPs and the logits. Two paths are
patched exactly (`verify=1`, `sample=1`: no fewer can be asked for); they, the unedited runs and their repeats are timed
with the estimates. In every round plain forwards of the clean prompt are timed before and after; the ratio is one of
the processor's seconds, so that what else the machine does meets both alike. Medians are printed.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import causal_tracing as ct
from causal_tracing.prompts.example import EXAMPLE

STEPS = 5  # of eap-ig
FORWARDS = 10  # whose mean is one forward's time, on each side of the estimates


def seconds(work: Callable[[], object]) -> float:
    """The processor's seconds."""
    started = time.process_time()
    work()
    return time.process_time() - started


def forwards(model: Any, tokens: torch.Tensor) -> None:
    """Some plain forwards."""
    with torch.no_grad():
        for _ in range(FORWARDS):
            model.network(tokens, use_cache=False)


def row(model: Any, method: str, at: str, rounds: int) -> str:
    """The estimates' seconds, those of one forward, and the first by the second."""
    pair = ct.Pair(**EXAMPLE)
    tokens = torch.tensor([model.tokenizer(pair.clean)["input_ids"]])
    asked: dict[str, Any] = {"at": at, "verify": 1, "sample": 1, "spot_checks": 0, "progress": False}
    paths = ct.attribute(model, pair, method=method, steps=STEPS, **asked).estimates["path"].size
    times: list[tuple[float, float]] = []
    for _ in range(rounds):
        before = seconds(lambda: forwards(model, tokens))
        mine = seconds(lambda: ct.attribute(model, pair, method=method, steps=STEPS, **asked))
        times.append((mine, (before + seconds(lambda: forwards(model, tokens))) / (2 * FORWARDS)))
    mine, forward = (statistics.median(side) for side in zip(*times, strict=True))
    ratio = statistics.median(a / b for a, b in times)
    return f"| {method} | {at} | {paths:,} | {mine:.2f} | {forward * 1000:.0f} | {ratio:.0f} |"


def main() -> None:
    """Prints a row a method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--at", default="last,all")
    parser.add_argument("--method", default="eap,eap-ig,reception")
    asked = parser.parse_args()
    model = ct.load("demo", device="cpu", progress=False)
    print("| method | senders at | paths | CPU s | one forward, ms | forwards |\n|---|---|---|---|---|---|")
    for at in asked.at.split(","):
        for method in asked.method.split(","):
            print(row(model, method, at, asked.rounds), flush=True)


if __name__ == "__main__":
    main()
