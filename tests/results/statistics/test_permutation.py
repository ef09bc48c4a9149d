"""Sign-flip tests: held to their own definition in exact fractions, and to their error rates."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from causal_tracing.errors import InvalidOption
from causal_tracing.results.statistics import bootstrap as statistics
from causal_tracing.results.statistics.bootstrap import TOO_FEW, cluster_codes, cluster_means
from causal_tracing.results.statistics.permutation import OUTSIDE, SignFlip, sign_flip, smallest_p

NAN = np.nan
NUMBERS = ("p", "p_adjusted", "q")


def everywhere(values: np.ndarray) -> np.ndarray:
    return np.ones(values.shape[1:], bool)


def t_squared(column: list[int | None], signs: tuple[int, ...]) -> Fraction | float:
    """t² of the flipped values, exactly: infinite where they are all equal, 0 where they are all 0."""
    values = [Fraction(sign * value) for sign, value in zip(signs, column, strict=True) if value is not None]
    count, mean = len(values), sum(values) / Fraction(len(values))
    spread = sum((value - mean) ** 2 for value in values)
    if mean == 0:
        return Fraction(0)
    return math.inf if spread == 0 else mean**2 * count * (count - 1) / spread


def by_definition(columns: list[list[int | None]]) -> tuple[list[float], list[float]]:
    """p and step-down max-T adjusted p from every one of the 2^n flips."""
    flips = list(itertools.product((1, -1), repeat=len(columns[0])))
    table = [[t_squared(column, signs) for column in columns] for signs in flips]
    observed = table[0]
    alone = [sum(row[c] >= observed[c] for row in table) / len(flips) for c in range(len(columns))]
    order, adjusted, so_far = sorted(range(len(columns)), key=lambda c: -observed[c]), [0.0] * len(columns), 0.0
    for rank, cell in enumerate(order):
        rest = order[rank:]
        so_far = max(so_far, sum(max(row[c] for c in rest) >= observed[cell] for row in table) / len(flips))
        adjusted[cell] = so_far
    return alone, adjusted


def as_array(columns: list[list[int | None]]) -> np.ndarray:
    return np.array([[NAN if value is None else float(value) for value in column] for column in columns]).T


MAPS = st.integers(1, 7).flatmap(
    lambda units: st.lists(st.lists(st.integers(-3, 4), min_size=units, max_size=units), min_size=1, max_size=5)
)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(columns=MAPS)
def test_law_41_exact_p_and_max_t_are_their_full_enumeration(columns: list[list[int | None]]):
    values = as_array(columns)
    found = sign_flip(values, everywhere(values), seed=0)
    alone, adjusted = by_definition(columns)
    assert found.exact
    np.testing.assert_allclose(found.p, alone, rtol=1e-12)
    np.testing.assert_allclose(found.p_adjusted, adjusted, rtol=1e-12)


def test_a_unit_without_the_cell_has_no_weight_in_it():
    draw = np.random.default_rng(0)
    columns: list[list[int | None]] = [[int(n) for n in draw.integers(-4, 9, 9)] for _ in range(4)]
    columns[1][4], columns[2][0] = None, None
    values = as_array(columns)
    found = sign_flip(values, everywhere(values), seed=0)
    alone, adjusted = by_definition(columns)
    np.testing.assert_allclose(found.p, alone, rtol=1e-12)
    np.testing.assert_allclose(found.p_adjusted, adjusted, rtol=1e-12)
    dropped, _ = by_definition([[value for value in columns[1] if value is not None]])
    assert found.p[1] == pytest.approx(dropped[0])


@pytest.mark.parametrize("units", range(1, 13))
def test_the_smallest_p_is_what_equal_signs_reach(units: int):
    values = np.linspace(1, 2, units)[:, None]
    found = sign_flip(values, everywhere(values), seed=0)
    assert found.p[0] == found.smallest_p == smallest_p(units) == 2.0 ** (1 - units)


def test_five_units_cannot_reach_five_percent_and_many_cannot_beat_their_flips():
    assert smallest_p(5) > 0.05 > smallest_p(6)
    found = sign_flip(np.ones((40, 1)), np.array([True]), permutations=199, seed=0)
    assert not found.exact
    assert found.p[0] == found.p_adjusted[0] == found.smallest_p == smallest_p(40, 199) == 1 / 200


def test_random_flips_agree_with_all_flips():
    values = np.random.default_rng(2).normal(0.4, 1, (14, 5))
    signs = np.array(list(itertools.product((1, -1), repeat=14)))
    flipped = signs[:, :, None] * values
    table = np.abs(flipped.mean(1) / flipped.std(1, ddof=1)) * np.sqrt(14)
    alone = (table >= table[0] - 1e-9).mean(0)
    strongest = int(table[0].argmax())
    jointly = (table.max(1) >= table[0, strongest] - 1e-9).mean()
    found = sign_flip(values, everywhere(values), permutations=20_000, seed=0)
    error = 5 * np.sqrt(alone * (1 - alone) / 20_000) + 1 / 20_000
    assert (np.abs(found.p - alone) <= error).all()
    assert found.p_adjusted[strongest] == pytest.approx(jointly, abs=5 * np.sqrt(jointly / 20_000))


def test_law_41_under_a_symmetric_null_p_is_at_most_alpha_no_more_often_than_alpha():
    """Exactly: of all signs that a set of sizes can have, the share with p ≤ α is at most α, for every α."""
    for sizes in ([0.3, 1, 1, 2, 5, 40], [1, 1, 1, 1, 1, 1], [0, 0, 1, 2, 3, 4]):
        every = np.array(list(itertools.product((1.0, -1.0), repeat=6))).T * np.array(sizes)[:, None]
        p = np.sort(sign_flip(every, everywhere(every), seed=0).p)
        shares = np.array([(p <= alpha + 1e-12).mean() for alpha in p])
        assert (shares <= p + 1e-12).all()
        assert p[0] < 0.2


@pytest.mark.parametrize("kind", ["normal", "cauchy"])
def test_law_41_random_flips_hold_their_level(kind: str):
    draw, maps = np.random.default_rng(5), 1500
    values = [draw.standard_normal((15, 1)) if kind == "normal" else draw.standard_cauchy((15, 1)) for _ in range(maps)]
    p = np.array([sign_flip(v, everywhere(v), permutations=99, seed=seed).p[0] for seed, v in enumerate(values)])
    for alpha in (0.01, 0.05, 0.2):
        low, high = stats.binom.ppf([1e-5, 1 - 1e-5], maps, alpha)
        assert low <= (p <= alpha).sum() <= high  # at 99 flips these levels are met exactly


@pytest.mark.parametrize("strong", [0, 2])
def test_law_41_the_family_wise_error_is_held(strong: int):
    """Correlated cells without an effect, and others with a large one: at most 5 % of maps name one of the first."""
    draw, maps, wrong, wrong_alone, named = np.random.default_rng(7 + strong), 1500, 0, 0, 0
    for _ in range(maps):
        values = draw.standard_normal((10, 8)) + draw.standard_normal((10, 1))
        values[:, :strong] += 6
        found = sign_flip(values, everywhere(values), seed=0)
        wrong += bool((found.p_adjusted[strong:] <= 0.05).any())
        wrong_alone += bool((found.p[strong:] <= 0.05).any())
        named += bool((found.p_adjusted[:strong] <= 0.05).all())
    low, high = stats.binom.ppf([1e-5, 1 - 1e-5], maps, 0.05)
    assert low <= wrong <= high  # not below either: a step-down test gives nothing away here
    assert wrong_alone > high
    assert named > 0.95 * maps


def test_q_is_benjamini_and_hochbergs_over_the_family_only():
    values = np.random.default_rng(3).normal(0.5, 1, (11, 4, 5))
    family = np.random.default_rng(4).random((4, 5)) < 0.6
    found = sign_flip(values, family, seed=0)
    p = np.sort(found.p[family])
    steps = [min(p[k] * len(p) / (k + 1) for k in range(rank, len(p))) for rank in range(len(p))]
    np.testing.assert_allclose(np.sort(found.q[family]), steps, rtol=1e-12)
    np.testing.assert_allclose(found.q[family], stats.false_discovery_control(found.p[family]), rtol=1e-12)


def test_cells_outside_the_family_are_undefined_and_cost_nothing():
    values = np.random.default_rng(3).normal(0.6, 1, (10, 6))
    values[:, 1], values[:, 4] = 0, 7  # a structural zero, and a cut that is the same in every pair
    family = np.array([True, False, True, True, False, True])
    found, alone = sign_flip(values, family, seed=0), sign_flip(values[:, family], np.ones(4, bool), seed=0)
    for name in NUMBERS:
        assert np.isnan(getattr(found, name)[~family]).all()
        np.testing.assert_allclose(getattr(found, name)[family], getattr(alone, name), rtol=1e-12)
    assert found.reason.tolist() == ["", OUTSIDE, "", "", OUTSIDE, ""]
    everything = sign_flip(values, everywhere(values), seed=0)
    assert everything.p[1] == everything.p_adjusted[1] == 1
    assert (everything.q[family] != found.q[family]).any()


def test_a_single_cell_needs_no_map():
    values = np.random.default_rng(3).normal(0.6, 1, 10)
    found, column = sign_flip(values, np.array(True), seed=0), sign_flip(values[:, None], np.array([True]), seed=0)
    assert found.p.shape == ()
    assert found.p == found.p_adjusted == found.q == column.p[0]


def test_a_map_without_a_family_is_undefined():
    found = sign_flip(np.ones((9, 2, 2)), np.zeros((2, 2), bool), seed=0)
    assert np.isnan([getattr(found, name) for name in NUMBERS]).all()


def test_a_cell_that_few_units_have_does_not_blunt_the_others():
    values = np.random.default_rng(1).normal(1, 1, (20, 3))
    values[3:, 2], values[8:, 1] = NAN, NAN
    found = sign_flip(values, everywhere(values), permutations=500, seed=0)
    assert found.reason.tolist() == ["", "", TOO_FEW]
    assert np.isnan(found.p).tolist() == [False, False, True]
    without = sign_flip(values[:, :2], np.ones(2, bool), permutations=500, seed=0)
    np.testing.assert_array_equal(found.p_adjusted[:2], without.p_adjusted)


def same(one: SignFlip, other: SignFlip) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True) for name in NUMBERS)


def test_seeds_pairs_doubled_and_the_order_of_pairs(monkeypatch: pytest.MonkeyPatch):
    draw = np.random.default_rng(0)
    values, names = draw.normal(0.3, 1, (25, 3, 4)), [f"fact {n % 17}" for n in range(25)]
    order = draw.permutation(25)
    family, options = np.ones((3, 4), bool), {"permutations": 400, "seed": 1}
    means = cluster_means(values, cluster_codes(names))
    found = sign_flip(means, family, **options)
    assert same(found, sign_flip(means, family, **options))
    assert not same(found, sign_flip(means, family, **{**options, "seed": 2}))
    shuffled = cluster_means(values[order], cluster_codes([names[n] for n in order]))
    assert same(found, sign_flip(shuffled, family, **options))
    doubled = cluster_means(np.concatenate([values, values]), cluster_codes(names + names))
    assert same(found, sign_flip(doubled, family, **options))
    monkeypatch.setattr(statistics, "AT_ONCE", 100)
    assert same(found, sign_flip(means, family, **options))


def test_the_scale_of_a_cell_and_of_the_map_changes_nothing():
    values = np.random.default_rng(6).normal(0.5, 1, (9, 5))
    scaled = values * np.array([1, -1, 1e-9, 3, 1e6])
    found, other = (sign_flip(each, everywhere(each), seed=0) for each in (values, scaled))
    np.testing.assert_allclose(other.p_adjusted, found.p_adjusted, rtol=1e-12)


def test_what_cannot_be_meant_is_an_error():
    with pytest.raises(InvalidOption, match="number of permutations must be a whole number of at least 1"):
        sign_flip(np.ones((9, 1)), np.array([True]), permutations=0, seed=0)
    with pytest.raises(InvalidOption, match="hold an infinite number"):
        sign_flip(np.full((9, 1), np.inf), np.array([True]), seed=0)
    with pytest.raises(InvalidOption, match="number of clusters must be a whole number of at least 1"):
        smallest_p(0)
