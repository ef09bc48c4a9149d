"""What is known of a world follows from the rules that were proved of a model, and from nothing else."""

from dataclasses import replace

import pytest

from causal_tracing.interventions.edits import Edit, From, Run, World
from causal_tracing.interventions.known import Rules, effective, is_cut, plan
from causal_tracing.interventions.sites import Site

BASE, DONOR = Run((1, 2, 3, 4)), Run((1, 5, 3, 4))
RULES, LAST = Rules(num_layers=3), 3


def world(component: str, layer: int, *positions: int) -> World:
    edits = tuple(Edit(Site(component, layer, position), From(DONOR, position)) for position in positions)
    return World(BASE, edits, (LAST,))


@pytest.mark.parametrize(("component", "layer"), [("mlp_out", 2), ("resid_post", 2), ("z", 2), ("resid_mid", 2)])
def test_behind_the_last_mixing_nothing_reaches_a_later_token(component: str, layer: int):
    inner = world(component, layer, 1)
    assert effective(inner, RULES) == ()
    assert effective(world(component, layer, LAST), RULES)
    assert effective(inner, replace(RULES, num_layers=4)) == inner.edits
    # A model of which it was proved that this component mixes tokens too.
    assert effective(inner, replace(RULES, mixing=(*RULES.mixing, component))) == inner.edits


def test_what_the_token_alone_decides_is_known_in_layer_0():
    behind = world("q", 0, 2)  # the token is the same, and one before it differs
    assert effective(behind, RULES) == ()
    assert effective(behind, replace(RULES, tokenwise=("resid_pre",))) == behind.edits
    assert effective(world("q", 1, 2), RULES)
    assert effective(world("q", 0, 0), replace(RULES, tokenwise=())) == ()  # nothing before it differs either


def test_a_cut_holds_by_the_rules():
    whole = world("resid_pre", 1, 1, 2, 3)
    assert is_cut(whole, RULES)
    assert not is_cut(whole, replace(RULES, cut=False))
    assert not is_cut(world("resid_pre", 1, 1, 2), RULES)
    assert is_cut(world("resid_pre", 0, 1), RULES)
    assert not is_cut(world("resid_pre", 0, 1), replace(RULES, tokenwise=()))
    assert is_cut(world("resid_mid", 2, LAST), RULES)
    assert not is_cut(world("resid_mid", 2, LAST), replace(RULES, mixing=(*RULES.mixing, "resid_mid")))


def test_a_plan_runs_equal_worlds_once_and_zeros_as_their_base_run():
    asked = [world("mlp_out", 1, 1), world("mlp_out", 2, 1), world("mlp_out", 1, 1), World(BASE, (), (LAST,))]
    planned = plan(asked, RULES)
    assert planned.worlds == (asked[0], asked[3])
    assert planned.index == (0, 1, 0, 1)
    assert planned.structural_zero == (False, True, False, False)
    assert plan(asked, RULES, prune=False).worlds == tuple(asked)
