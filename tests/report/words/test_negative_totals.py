"""Where answer and foil are in each other's place every number turns, and what sites do together stays what it is."""

import re

import numpy as np
import pytest

import causal_tracing as ct
from causal_tracing.results.select import pattern
from causal_tracing.results.storage.join import joined
from causal_tracing.testing import circuit
from made import measurements, taken_apart

pytestmark = pytest.mark.filterwarnings("ignore::causal_tracing.errors.EngineNote")  # toys attend by themselves
A, B = "mlp_out 0 @ last", "mlp_out 1 @ last"


def meanings(name: str, *, turned: bool) -> list[str]:
    """What is said of two sites of a toy in either direction, behind the numbers."""
    model, pair = circuit(name)
    if turned:
        assert isinstance(pair.foil, str)
        pair = ct.Pair(clean=pair.clean, corrupt=pair.corrupt, answer=pair.foil, foil=pair.answer)
    trace = ct.trace(model, pair, components=[], interactions=[A, B], progress=False)
    assert (trace.of("interactions").total_effect.sel(metric="logit_diff").item() < 0) == turned
    return re.findall(r"than the sum: (.*)\.", trace.summary())


@pytest.mark.parametrize("gate", ["or", "and"])
def test_a_gate_is_the_same_gate(gate: str) -> None:
    assert len(meanings(gate, turned=False)) == 2
    assert meanings(gate, turned=True) == meanings(gate, turned=False)


def test_a_site_against_a_negative_total_effect_supports_the_answer() -> None:
    assert pattern(-0.4, -0.2) == "opposes the clean answer"
    assert pattern(-0.4, -0.2, total=-3.0) == "supports the clean answer, against the total effect"
    assert pattern(0.9, 0.7, total=-3.0) == pattern(0.9, 0.7)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_peak_that_needs_partners_needs_them_whatever_its_sign(sign: int) -> None:
    """Of nine pairs with total effects of about 4 a site loses 2, and brings back 1/2."""
    random = np.random.default_rng(0)
    parts, made = [], measurements([[0.0] * 3], [[0.0] * 3])
    for n in range(9):
        corrupt, clean = 0.0, sign * random.normal(4, 0.1)
        back, lost = sign * random.normal([[0, 0.5, 0]], 0.01), sign * random.normal([[0, 2.0, 0]], 0.01)
        made = measurements(corrupt + back, clean - lost, clean=clean, corrupt=corrupt)
        parts.append(taken_apart(made.numbers().assign_coords(pair=[f"p{n}"]), {}))
    told = ct.Trace(joined(parts, {**made.provenance, "pairs": [{"id": f"p{n}"} for n in range(9)]})).summary()
    assert "(AND-like: the site needs partners)" in told
    assert "OR-like" not in told
