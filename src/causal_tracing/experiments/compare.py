"""Two traces of the same pairs against each other: two models, metrics or corruptions, or a control and the thing."""

from typing import Any

from causal_tracing.experiments.trace_result import Trace
from causal_tracing.report.document import SCHEMA, interval, maps, plain
from causal_tracing.report.words.comparison import words
from causal_tracing.results.comparison import Differences, differences


class Comparison(Differences):
    """The differences of two traces, in words and as JSON."""

    __slots__ = ()

    def summary(self) -> str:
        """What was compared, the largest differences with their intervals and tests, and what they do not show."""
        return words(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values that JSON can hold: null where a number is undefined."""
        sides = zip(self.models, self.metrics, self.units, self.totals, strict=True)
        both = [{"model": model, "metric": metric, "unit": unit, "total": interval(total)}
                for model, metric, unit, total in sides]  # fmt: skip
        return {
            "schema": SCHEMA,
            "of": self.of,
            "first": both[0],
            "second": both[1],
            "differing": {name: list(values) for name, values in self.differing.items()},
            "pairs": list(self.ids),
            "clusters": self.clusters,
            "undefined": list(self.undefined),
            "only_first": {kind: list(names) for kind, names in self.only_first.items()},
            "only_second": {kind: list(names) for kind, names in self.only_second.items()},
            "warnings": list(self.warnings),
            "total": interval(self.total),
            "reason": self.reason,
            **maps(self.cells),
            "smallest_p": plain(self.smallest_p),
            "seed": self.seed,
        }

    def __repr__(self) -> str:
        return self.summary()


def compare(
    first: Trace,
    second: Trace,
    *,
    metric: str | None = None,
    second_metric: str | None = None,
    of: str = "blocks",
    seed: int = 0,
) -> Comparison:
    """The first trace minus the second on the pairs (by id) and cells that both have, with intervals and tests.

    `of` is "blocks", "heads" or "neurons". `metric` is of both unless `second_metric` is given (default: the first
    trace's first). Differences of effects are in the metric's unit, and NaN where the two units differ; fractions of
    the total effect are compared then too.
    Raises InvalidOption where the two share fewer than two pairs, or no cells that mean the same.
    """
    both = first.measurements, second.measurements
    return Comparison(**differences(*both, metric=metric, second_metric=second_metric, seed=seed, of=of))
