"""Flags that are made of declarations: what their help says."""

import inspect

from causal_tracing.cli.flags import flag_of, signature
from causal_tracing.patching.options.trace import RunOptions


def said() -> dict[str, str]:
    """The help of each flag."""
    found: dict[str, inspect.Parameter] = dict(signature({}, RunOptions).parameters)
    return {name: flag_of(each).help for name, each in found.items()}


def test_a_default_that_can_be_typed_is_told() -> None:
    found = said()
    for flag, default in {"seed": "0", "spot_checks": "8", "engine": "auto", "shard": "0/1", "lens": None}.items():
        assert found[flag].endswith(f" Default: {default}.") if default else "Default:" not in found[flag]
