"""What is computed once of each trace: words, tables, pages and documents ask for the same, one after the other."""

from collections.abc import Callable, MutableMapping
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from causal_tracing.results.measurements import Measurements

P = ParamSpec("P")
Found = TypeVar("Found")


def once(
    compute: Callable[Concatenate[Measurements, P], Found],
) -> Callable[Concatenate[Measurements, P], Found]:
    """The same function, whose results are kept as long as the measurements that they are of, by its arguments.

    From then on these cannot be changed in place: what is kept would be of other numbers.
    """
    kept: MutableMapping[Measurements, dict[Any, Any]] = WeakKeyDictionary()

    @wraps(compute)
    def found(measurements: Measurements, *given: Any, **named: Any) -> Found:
        mine = kept.setdefault(measurements, {})
        key = given, tuple(sorted(named.items()))
        if key not in mine:
            _freeze(measurements)
            mine[key] = compute(measurements, *given, **named)
        return mine[key]

    return found


def _freeze(measurements: Measurements) -> None:
    for data in (measurements.pairs, *measurements.maps.values()):
        for variable in data.data_vars.values():
            variable.values.flags.writeable = False
