"""Options that several verbs have: said once more, they have the type that they have of a trace."""

from dataclasses import fields
from typing import Any

import pytest

from causal_tracing.patching.options.circuit import CircuitRunOptions
from causal_tracing.patching.options.declare import specs
from causal_tracing.patching.options.estimate import EstimateOptions
from causal_tracing.patching.options.follow import FollowRunOptions
from causal_tracing.patching.options.knockout import KnockoutRunOptions
from causal_tracing.patching.options.trace import RunOptions


@pytest.mark.parametrize("declared", [CircuitRunOptions, EstimateOptions, FollowRunOptions, KnockoutRunOptions])
def test_the_same_option_takes_the_same_values(declared: Any) -> None:
    """By these types a type checker says whether a keyword may be given."""
    of_a_trace, said = {each.name: each.type for each in fields(RunOptions)}, specs(declared)
    # One with a help of its own may take less: estimates have one metric.
    shared = [name for name, spec in said.items() if name in of_a_trace and spec.help == specs(RunOptions)[name].help]
    assert {"align", "engine", "seed"} <= {*shared}
    taken = {each.name: each.type for each in fields(declared) if each.name in shared}
    assert taken == {name: of_a_trace[name] for name in shared}
