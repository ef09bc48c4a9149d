"""How far estimates of paths agree with exact ones, over many pairs of the demo model; prints a table with intervals.

    python benchmarks/edge_estimates.py [--data facts] [--pairs 40] [--direction restoration] [--strongest 20]

Senders are all heads, MLPs and the embedding at the last token, receivers all queries, keys, values, MLPs behind them,
and the logits. Of each pair, the strongest paths by each method and random others are patched exactly; on all of them
together every method is held against the exact effects: R2 is 1 - (squared error) / (variance), `recall` the share of
as many strongest exact ones that are among a method's own. Rows are means over pairs with bootstrap intervals of 95 %;
the difference to EAP-IG is paired. The paths to the logits are left out: reception measures these.
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

import causal_tracing as ct

METHODS = ("eap", "eap-ig", "reception")
RESAMPLES = 10_000
TARGET = {"q": "queries", "k": "keys", "v": "values", "m": "MLPs"}


def agreement(exact: np.ndarray, estimate: np.ndarray, top: int) -> dict[str, float]:
    """How well estimates say what the exact effects are."""
    strongest = {*np.argsort(-abs(exact))[:top]}
    named = {*np.argsort(-abs(estimate))[:top]}
    return {
        "R2": 1 - ((exact - estimate) ** 2).sum() / ((exact - exact.mean()) ** 2).sum(),
        "recall": len(strongest & named) / top,
    }


def of_pair(model: Any, pair: ct.Pair, args: argparse.Namespace) -> dict[tuple[str, str], float]:
    """What every method reaches on one pair, and the seconds that each took."""
    made, exact = {}, dict[tuple[str, str], float]()
    for method in METHODS:
        started = time.process_time()
        found = ct.attribute(
            model, pair, method=method, steps=5, direction=args.direction, verify=args.strongest, sample=args.random,
            spot_checks=0, progress=False,
        )  # fmt: skip
        made[method] = found.estimates["path"].isel(pair=0), time.process_time() - started
        exact |= {(one.at["sender"], one.at["receiver"]): one.exact for one in found.checked}
    cells = [cell for cell in exact if cell[1] != "logits"]
    truth = np.array([exact[cell] for cell in cells])
    result = {}
    for method, (table, seconds) in made.items():
        said = np.array([float(table.sel(sender=sender, receiver=receiver)) for sender, receiver in cells])
        result |= {(method, name): value for name, value in agreement(truth, said, args.strongest).items()}
        for letter, name in TARGET.items():
            mine = np.array([receiver.startswith(letter) for _, receiver in cells])
            error = ((truth - said)[mine] ** 2).sum()
            result[method, f"error in {name}"] = error / ((truth - truth.mean()) ** 2).sum()
        result[method, "CPU s"] = seconds
    return result


def interval(values: Sequence[float]) -> str:
    """The mean over pairs and its bootstrap interval."""
    array, random = np.array(values), np.random.default_rng(0)
    means = array[random.integers(len(array), size=(RESAMPLES, len(array)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{array.mean():.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="facts")
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--direction", default="restoration")
    parser.add_argument("--strongest", type=int, default=20)
    parser.add_argument("--random", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = ct.load("demo", progress=False)
    pairs = ct.read_pairs(args.data)[: args.pairs]
    found = [of_pair(model, pair, args) for pair in pairs]
    print(f"{args.data}, {len(pairs)} pairs, {args.direction}")
    for name in dict.fromkeys(name for _, name in found[0]):
        for method in METHODS:
            print(f"{name:18}{method:11}{interval([each[method, name] for each in found])}")
    for method in ("eap", "reception"):
        apart = [each[method, "R2"] - each["eap-ig", "R2"] for each in found]
        print(
            f"R2 of {method} less that of eap-ig: {interval(apart)}; better on {sum(each > 0 for each in apart)} pairs"
        )


if __name__ == "__main__":
    main()
