"""Two traces of the same pairs against each other: two models, metrics or corruptions, or a control and the thing."""

from dataclasses import fields
from typing import Any

from causal_tracing.errors import InvalidOption
from causal_tracing.experiments.trace_result import Trace
from causal_tracing.report.document import comparison_document
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
        return comparison_document(self)

    def __repr__(self) -> str:
        return self.summary()


def compare(
    first: Trace,
    second: Trace,
    *,
    metric: str | None = None,
    second_metric: str | None = None,
    of: str | None = None,
    seed: int = 0,
) -> Comparison:
    """The first trace minus the second on the pairs (by id) and cells that both have, with intervals and tests.

    Differences of effects are in the metric's unit, and NaN where the two units differ; fractions of the total effect
    are compared too. Positive: larger in the first trace.

    first, second: traces of the same pairs, such as `open_trace` gives.
    metric: of both, unless `second_metric` is given (default: the one that the first trace shows).
    second_metric: the metric of the second trace.
    of: the map, "blocks", "heads", "neurons", "sets", "knockout", … (default: the first trace's first).
    seed: chooses the resamples and flips.

    Raises InvalidOption where the two share fewer than two pairs, or no cells that mean the same.

    Example:
        print(ct.compare(ct.open_trace("run-a"), ct.open_trace("run-b")).summary())
    """
    for each in (first, second):
        if not isinstance(each, Trace):
            raise InvalidOption(f"Two traces are compared, such as open_trace(folder) gives; this is {each!r:.200}.")
    both = first.measurements, second.measurements
    found = differences(*both, metric=metric, second_metric=second_metric, seed=seed, of=of)
    return Comparison(**{field.name: getattr(found, field.name) for field in fields(found)})
