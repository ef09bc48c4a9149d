"""How often the intervals of `causal_tracing.statistics` hold the truth: simulated data sets whose truth is known.

`python benchmarks/coverage.py` prints the table of docs/statistics.md in half a minute. Every data set is a cell of one
map, so all share the same resamples.
"""

import sys
from collections.abc import Callable

import numpy as np

from causal_tracing.results.statistics.bootstrap import Interval, mean_interval, ratio_interval

UNITS = (8, 12, 20, 50, 200)
REPETITIONS = 4000
Draw = Callable[[np.random.Generator, tuple[int, int]], tuple[np.ndarray, np.ndarray]]


def normal(generator: np.random.Generator, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Effects of mean 2 and deviation 1.1, total effects of mean 4 and deviation 1, correlated."""
    total = generator.normal(4, 1, shape)
    return total / 2 + generator.normal(0, 1, shape), total


def skewed(generator: np.random.Generator, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Log-normal total effects of mean 4 (σ = 0.8), and effects that are a log-normal half of them."""
    total = 4 * generator.lognormal(-0.32, 0.8, shape)
    return total / 2 * generator.lognormal(-0.125, 0.5, shape), total


def coverage(units: int, *, draw: Draw, level: float = 0.95, repetitions: int = REPETITIONS, seed: int) -> list[float]:
    """The share of intervals that hold the true mean (2), and of those that hold the true ratio (1/2)."""
    effects, totals = draw(np.random.default_rng(seed), (units, repetitions))
    found = (
        mean_interval(effects, level=level, seed=seed + 1),
        ratio_interval(effects, totals, level=level, seed=seed + 1),
    )
    return [held(interval, truth) for interval, truth in zip(found, (2.0, 0.5), strict=True)]


def held(interval: Interval, truth: float) -> float:
    """The share of the defined intervals that hold the truth."""
    defined = np.isfinite(interval.low)
    return float(((interval.low <= truth) & (truth <= interval.high))[defined].mean())


def main() -> None:
    print("| units | mean, normal | mean, skewed | ratio, normal | ratio, skewed |")
    print("|---|---|---|---|---|")
    for units in UNITS:
        by_draw = [coverage(units, draw=draw, seed=units) for draw in (normal, skewed)]
        shares = [by_draw[draw][statistic] for statistic in (0, 1) for draw in (0, 1)]
        print(f"| {units} | " + " | ".join(f"{100 * share:.1f} %" for share in shares) + " |", flush=True)
    error = 100 * np.sqrt(0.95 * 0.05 / REPETITIONS)
    print(f"Each of {REPETITIONS} data sets; the standard error of a share is {error:.1f} points.", file=sys.stderr)


if __name__ == "__main__":
    main()
