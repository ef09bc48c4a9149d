"""Checks of the options' single values: each raises InvalidOption for what cannot be meant."""

import re
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from causal_tracing import validation
from causal_tracing.errors import InvalidOption
from causal_tracing.interventions.noise import Noise
from causal_tracing.interventions.sites import HEADS, WHOLE
from causal_tracing.results.arms import DIRECT, DIRECTIONS, SEVERABLE
from causal_tracing.results.units import METRICS

FINAL_NORMS = ("live", "frozen")


def one_of(what: str, valid: Sequence[str], use: str = "") -> Callable[[Any], None]:
    """A check that a value is one of these names, or None where it is left open."""
    return lambda value: None if value is None else validation.one_of(what, value, valid, use)


def check_noise(value: Any) -> None:
    """A Noise, or none."""
    if value is not None and not isinstance(value, Noise):
        raise InvalidOption(f"noise= must be a Noise, such as Noise(scale=3.0); it is {value!r}.")


def check_directions(value: Any) -> None:
    """Of the directions, or all that are defined."""
    if value is not None:
        validation.names("direction", value, tuple(DIRECTIONS))


def check_components(value: Any) -> None:
    """Of the components of blocks, or none: then something else must be asked for."""
    if value not in ((), []):
        validation.names("component", value, WHOLE)


def check_severed(value: Any) -> None:
    """Of the parts that can be frozen, or none."""
    if value not in ((), []):
        validation.names("part to sever", value, SEVERABLE)


def asked_paths(value: bool | Sequence[str]) -> tuple[str, ...]:
    """Which direct paths an option names: all of them for True."""
    return DIRECT if value is True else tuple(value or ())


def check_listed(what: str, valid: Sequence[str], value: Any) -> None:
    """True, False, or a list of these names."""
    # By identity: 1 and 0 are equal to True and False, and are no lists.
    if value is not True and value is not False and value not in ((), []):
        validation.names(what, value, valid)


def check_direct(value: Any) -> None:
    """True, False, or of the direct paths."""
    check_listed("direct path", DIRECT, value)


def check_heads(value: Any) -> None:
    """True, False, or of the heads' components."""
    check_listed("heads' component", HEADS, value)


def check_column(name: str, value: Any) -> None:
    """One position, role or span."""
    # True is an int to isinstance.
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise InvalidOption(f'{name}= is one position, role or span, such as "last"; it is {value!r}.')


def by_layer(parts: str) -> Callable[[Any], None]:
    """A check that a value is True, False, or such parts (neurons, experts) by layer."""

    def check(value: Any) -> None:
        if not isinstance(value, (bool, Mapping)) or value == {}:
            raise InvalidOption(
                f"{parts}= is True (all {parts} of the layers), or a mapping from layers to {parts}, such as "
                f"{{5: [], 20: [14, 1035]}}; it is {value!r}."
            )

    return check


def check_measured(value: Any) -> None:
    """All, or names of built-in metrics, or what is the default."""
    if value is not None and value != "all" and value not in ((), []):
        validation.names("metric", value, METRICS)


def check_budget(value: Any) -> None:
    """Bytes, or what is free."""
    if value is not None:
        validation.whole("budget= (bytes)", value, least=1)


def check_shard(value: Any) -> None:
    """A part and how many there are."""
    parts = list(value) if isinstance(value, Sequence) else []
    # True is an int to isinstance.
    if not (len(parts) == 2 and all(type(n) is int for n in parts) and 0 <= parts[0] < parts[1]):
        raise InvalidOption(f"shard= is (i, n), the i-th of n from 0, such as (0, 4); it is {value!r}.")


def check_workers(value: Any) -> None:
    """A number of processes, ray with or without one, or none; Ray must be installed."""
    if isinstance(value, str) and re.fullmatch(r"ray(:[1-9][0-9]*)?", value):
        if find_spec("ray") is None:
            raise InvalidOption(f"workers={value!r} needs Ray: pip install 'causal-tracing[ray]'.")
        return
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidOption(f'workers= is a number of processes, "ray", or "ray:N" (N actors); it is {value!r}.')


def check_progress(value: Any) -> None:
    """True, False, or something that can be called."""
    if not (isinstance(value, bool) or callable(value)):
        raise InvalidOption(f"progress= is True, False, or called with (done, total); it is {value!r}.")
