"""Completeness and minimality of sets of nodes, by gates whose answers are known, and areas with their intervals."""

from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

import causal_tracing as ct
from causal_tracing.errors import InvalidOption
from causal_tracing.results.circuits import trapezoid
from causal_tracing.results.statistics.bootstrap import area_interval
from causal_tracing.testing import circuit

A, B, VALUE = "mlp_out 0", "mlp_out 1", "mlp_out 2"
IDLE = ["attn_out 0", "attn_out 1", "attn_out 2"]
pytestmark = pytest.mark.filterwarnings("ignore::causal_tracing.errors.EngineNote")
GATES = {"and": lambda a, b: a * b, "or": max, "sum": lambda a, b: (a + b) / 2}


def taken_apart(gate: str, first: list[str], **options: Any) -> ct.Trace:
    model, pair = circuit(gate)
    rest = [node for node in (A, B, VALUE, *IDLE) if node not in first]
    asked = {"ranking": [*first, *rest], "sizes": [len(first)], "tested": len(first), "spot_checks": 0}
    return ct.circuit(model, pair, **asked | options, progress=False)


def value(gate: str, kept: set[str]) -> float:
    """The gate's value when these are kept: what is ablated is as in the run where both inputs are off."""
    return GATES[gate](float(A in kept), float(B in kept)) if VALUE in kept else 0.0


@pytest.mark.parametrize(
    ("gate", "first"), [*product(GATES, ([VALUE, A, B], [VALUE, A], [VALUE, A, B, *IDLE]))], ids=str
)
def test_sets_without_nodes_by_hand(gate: str, first: list[str]) -> None:
    """F(C without K) and F(M without K), for every K that was taken out."""
    table = taken_apart(gate, first).circuit().completeness
    everything = {A, B, VALUE, *IDLE}
    for _, row in table.iterrows():
        removed = {*str(row["items"]).split("; ")} - {""}
        assert row.circuit == value(gate, {*first} - removed), row.removed
        assert row.model == value(gate, everything - removed), row.removed
        assert row.distance == abs(row.circuit - row.model)
    assert table.removed.tolist()[: len(first) + 1] == ["nothing", *first]
    assert len(table) == len(first) + 1 + (3 if len(first) > 2 else 0)  # and three random subsets


def test_half_of_an_or_gate_is_faithful_and_not_complete() -> None:
    """Without A the set has nothing left, and the model still has B: the backup is missing."""
    found = taken_apart("or", [VALUE, A]).circuit()
    assert found.curve.faithfulness.tolist() == [0, 1, 1]
    table = found.completeness.set_index("removed")
    assert table.distance["nothing"] == 0
    assert (table.circuit[A], table.model[A], table.gap[A]) == (0, 1, -1)
    whole = taken_apart("or", [VALUE, A, B]).circuit().completeness
    assert (whole.distance == 0).all()


def test_nodes_that_do_nothing_are_seen_by_minimality() -> None:
    table = taken_apart("and", [VALUE, A, B, *IDLE]).circuit().minimality.set_index("item")
    assert table.matters.to_dict() == {VALUE: True, A: True, B: True, **dict.fromkeys(IDLE, False)}
    assert (table.moved[IDLE] == 0).all()
    assert (table.share[[VALUE, A, B]] == 1).all()


def test_a_backup_matters_only_beside_what_it_backs_up() -> None:
    """In an OR gate neither input moves anything alone; each does where the other is out already."""
    model, pair = circuit("or")
    for seed in range(20):  # until a random subset has A and not B, or B and not A
        asked = {"ranking": [VALUE, A, B, *IDLE], "sizes": [6], "tested": 6, "subsets": 8, "seed": seed}
        found = ct.circuit(model, pair, **asked, spot_checks=0, progress=False).circuit()
        rows = found.minimality.set_index("item")
        taken = [{*nodes.split("; ")} for nodes in found.completeness["items"] if ";" in nodes]
        apart = [(A in each) != (B in each) and VALUE not in each for each in taken]
        if any(apart):
            break
    else:
        pytest.fail("no random subset takes the inputs apart")
    assert rows.matters[A] or rows.matters[B]
    single = taken_apart("or", [VALUE, A, B], subsets=0).circuit().minimality.set_index("item")
    assert single.matters.to_dict() == {VALUE: True, A: False, B: False}
    assert single.beside.tolist() == ["nothing"] * 3


@pytest.mark.parametrize(("size", "there"), [(2, 0), (3, 3), (4, 10), (5, 12)])
def test_no_random_subset_comes_twice_and_fewer_are_said(size: int, there: int) -> None:
    trace = taken_apart("and", [VALUE, A, B, *IDLE][:size], subsets=12)
    table = trace.circuit().completeness
    sets = [frozenset(each.split("; ")) for each in table["items"][table.removed.str.startswith("random")]]
    assert len(sets) == len({*sets}) == there
    few = f"Of 12 random subsets asked for there are {there}, and all were taken out."
    none = "So small a set has no subsets between one item and all."
    assert [text in trace.summary() for text in (few, none)] == [0 < there < 12, there == 0]


def test_random_subsets_are_chosen_by_the_seed() -> None:
    first = [VALUE, A, B, *IDLE]

    def subsets(seed: int) -> list[str]:
        return taken_apart("and", first, seed=seed).circuit().completeness["items"].tolist()[-3:]

    assert subsets(0) == subsets(0)
    assert subsets(0) != subsets(1)
    assert all(2 <= len(each.split("; ")) < len(first) for each in subsets(0))


def test_weights_of_the_trapezoid_rule() -> None:
    """Law C5: MIB's ten points weigh 0.999 in all, of which the three largest have 0.85."""
    shares = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    weights = trapezoid(shares)
    assert_allclose(weights, [0.0005, 0.002, 0.004, 0.0075, 0.02, 0.04, 0.075, 0.2, 0.4, 0.25])
    one, nothing = np.ones((9, 10)), np.zeros((9, 10))
    for numerator, distance, expected in (
        (one, True, 0),
        (nothing, True, 0.999),
        (one, False, 0.999),
        (nothing, False, 0),
    ):
        found = area_interval(numerator, np.ones(9), weights, distance=distance, seed=0)
        assert_allclose([found.estimate, found.low, found.high], expected, atol=1e-12)


def test_the_interval_of_an_area_is_that_of_a_bootstrap() -> None:
    """CPR is a ratio of two means, of which scipy has the interval; CMD differs where f passes 1."""
    from scipy.stats import bootstrap

    random = np.random.default_rng(3)
    whole = random.normal(4, 0.5, size=24)
    part = whole[:, None] * random.uniform(0.2, 1.4, size=(24, 3))
    weights = np.array([0.2, 0.5, 0.3])

    def area(*columns: np.ndarray, axis: int = -1) -> np.ndarray:
        bottom = columns[-1].mean(axis)
        ratios = np.stack([each.mean(axis) / bottom for each in columns[:-1]], axis=-1)
        return abs(1 - ratios) @ weights

    expected = bootstrap(
        (*part.T, whole), area, paired=True, vectorized=True, n_resamples=9999, rng=np.random.default_rng(0)
    ).confidence_interval
    found = area_interval(part, whole, weights, distance=True, seed=0)
    assert_allclose(found.estimate, area(*part.T, whole))
    assert_allclose([found.low, found.high], [expected.low, expected.high], atol=0.01)
    few = area_interval(part[:7], whole[:7], weights, distance=True, seed=0)
    assert np.isnan(few.low)
    assert "fewer than 8" in str(few.reason)


def test_areas_of_a_ranking_that_ends_are_undefined() -> None:
    model, pair = circuit("and")
    found = ct.circuit(model, pair, ranking=[VALUE, A], sizes=[1, 2], spot_checks=0, progress=False).circuit()
    assert np.isnan(found.cmd.estimate)
    assert found.cmd.reason == "the ranking does not name all there is"
    own = taken_apart("and", [VALUE, A, B]).circuit()
    assert (own.cmd.of_mib, own.cmd.shares) == (False, (0.5, 1.0))
    assert (own.cpr.estimate, own.cmd.estimate) == (0.5, 0)


def test_what_was_not_measured_is_said() -> None:
    model, pair = circuit("and")
    plain = ct.trace(model, pair, components=["mlp_out"], spot_checks=0, progress=False)
    with pytest.raises(InvalidOption, match=r"This trace has no circuits. Measure them with trace\(..., circuit="):
        plain.circuit()
    found = ct.circuit(model, pair, ranking=[VALUE, A, B], sizes=[1], spot_checks=0, progress=False)
    with pytest.raises(InvalidOption, match="There is no metric 'kl'"):
        found.circuit(metric="kl")
    with pytest.raises(InvalidOption, match="There is no pair 'x' in this trace"):
        found.circuit(pair="x")
    assert found.circuit().tested is None
    same = ct.Pair(clean="the switch is on", corrupt="it switch is on", answer=" true", foil=" false")
    nothing = ct.circuit(model, same, ranking=[VALUE, A, B], sizes=[1], spot_checks=0, progress=False)
    assert nothing.circuit().curve.faithfulness.isna().all()
    assert "differ by too little" in nothing.summary()


def test_weighted_sizes_by_hand() -> None:
    """Of VALUE the logits alone read; of A, attention and MLPs of two layers and the logits: 5, of which 2 are kept."""
    curve = taken_apart("and", [VALUE, A]).circuit().curve
    assert_allclose(curve.weighted_size, [0, 1 + 2 / 5, 6])


def auroc(scores: dict[str, float], true: set[str]) -> float:
    """How often a true node is ranked before another one; half of a tie."""
    both = [(abs(scores[one]), abs(scores[other])) for one in true for other in {*scores} - true]
    return float(np.mean([(one > other) + 0.5 * (one == other) for one, other in both]))


def test_a_perfect_ranking_of_a_model_whose_circuit_is_known() -> None:
    """Law C6: single effects find all nodes of an AND gate, and none of the inputs that stand in for one another."""
    for gate, expected in (("and", 1.0), ("sum", 1.0), ("or", (1 + 0.5 + 0.5) / 3)):
        model, pair = circuit(gate)
        found = ct.circuit(model, pair, ranking="exact", spot_checks=0, progress=False)
        scores = found.provenance["options"]["circuit"]
        assert auroc(scores, {A, B, VALUE}) == pytest.approx(expected), gate
    restored = ct.circuit(*circuit("or"), ranking="exact", how="restored", spot_checks=0, progress=False)
    assert auroc(restored.provenance["options"]["circuit"], {A, B, VALUE}) == 1.0
