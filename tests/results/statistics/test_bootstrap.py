"""Estimates and intervals over pairs: held to scipy, to plain loops, and to simulated truth."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from causal_tracing.errors import InvalidOption
from causal_tracing.results.statistics import bootstrap as statistics
from causal_tracing.results.statistics.bootstrap import (
    NEAR_ZERO,
    TOO_FEW,
    ZERO,
    cluster_codes,
    cluster_means,
    mean_interval,
    means_over_clusters,
    ratio_difference_interval,
    ratio_interval,
    resample_counts,
)

NAN = np.nan
DOCS = Path(__file__).parents[3] / "docs" / "statistics.md"


def several_kinds(units: int = 15, seed: int = 0) -> np.ndarray:
    """[unit, 2, 3]: normal, skewed, whole numbers with ties, one outlier, negative, and tiny values."""
    draw = np.random.default_rng(seed)
    outlier = np.where(np.arange(units) == 3, 10.0, 0.0)
    kinds = [draw.normal(1, 2, units), draw.lognormal(0, 1, units), draw.integers(0, 3, units).astype(float), outlier]
    kinds += [-draw.lognormal(0, 1, units), draw.normal(0, 1e-9, units)]
    return np.stack(kinds, 1).reshape(units, 2, 3)


def scipy_bca(
    sample: tuple[np.ndarray, ...], statistic: Callable[..., Any], drawn: Sequence[Any], level: float
) -> tuple[float, float]:
    """scipy's BCa interval from resampled statistics that were computed elsewhere."""
    given = SimpleNamespace(bootstrap_distribution=np.array(drawn))
    options = {"paired": len(sample) > 1, "confidence_level": level, "method": "BCa", "n_resamples": 0}
    found = stats.bootstrap(sample, statistic, bootstrap_result=given, **options)
    return found.confidence_interval.low, found.confidence_interval.high


def ratio_of_means(top: np.ndarray, bottom: np.ndarray, axis: int = -1) -> np.ndarray:
    return top.mean(axis) / bottom.mean(axis)


def drawn_units(counts: np.ndarray) -> list[np.ndarray]:
    """Each resample as a plain list of units."""
    return [np.repeat(np.arange(counts.shape[1]), row.astype(int)) for row in counts]


# --- pairs to units


def test_clusters_are_numbered_by_their_names():
    assert cluster_codes(["Rome", "Oslo", "Rome", "Bern"]).tolist() == [2, 1, 2, 0]


def test_a_cluster_counts_once_however_many_pairs_it_has():
    values = np.array([[1.0, NAN], [3.0, NAN], [10.0, 4.0], [8.0, NAN]])
    means = cluster_means(values, cluster_codes(["a", "a", "b", "c"]))
    np.testing.assert_array_equal(means, [[2.0, NAN], [10.0, 4.0], [8.0, NAN]])
    np.testing.assert_allclose(means_over_clusters(means), [20 / 3, 4.0])
    assert np.isnan(means_over_clusters(np.full((3, 1), NAN))).all()
    np.testing.assert_array_equal(cluster_means(values[:, 0], cluster_codes(["a", "a", "b", "c"])), [2.0, 10.0, 8.0])


def test_pairs_doubled_within_their_clusters_change_nothing():
    names = [f"fact {n % 11}" for n in range(17)]
    values = several_kinds(17)
    once = cluster_means(values, cluster_codes(names))
    doubled = cluster_means(np.concatenate([values, values]), cluster_codes(names + names))
    np.testing.assert_allclose(doubled, once, rtol=1e-14)
    first, second = (mean_interval(each, resamples=500, seed=1) for each in (once, doubled))
    for name in ("estimate", "low", "high"):
        np.testing.assert_allclose(getattr(second, name), getattr(first, name), rtol=1e-9)


@settings(max_examples=25, derandomize=True, deadline=None)
@given(order=st.permutations(range(17)))
def test_law_31_the_order_of_pairs_changes_no_bit(order: list[int]):
    names = np.array([f"fact {n % 4}" for n in range(17)])
    values = several_kinds(17)
    values[[2, 13], 0] = NAN
    before = cluster_means(values, cluster_codes(names.tolist()))
    after = cluster_means(values[order], cluster_codes(names[order].tolist()))
    np.testing.assert_array_equal(after, before)


def test_the_same_seed_gives_the_same_interval_and_another_does_not():
    first, again, other = (mean_interval(several_kinds(), resamples=300, seed=seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.low, again.low)
    np.testing.assert_array_equal(first.high, again.high)
    assert (first.low != other.low).any()


def test_resamples_are_draws_with_replacement():
    counts = resample_counts(10, 20_000, seed=0)
    assert (counts.sum(1) == 10).all()
    never = (counts == 0).mean()
    assert never == pytest.approx(0.9**10, abs=5 * np.sqrt(0.35 * 0.65 / counts.size))
    np.testing.assert_allclose(counts.mean(0), 1, atol=5 * np.sqrt(0.9 / 20_000))
    assert np.corrcoef(counts[:, 0], counts[:, 1])[0, 1] == pytest.approx(-1 / 9, abs=0.03)


# --- intervals of means


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_bca_is_scipys_from_the_same_resamples(level: float):
    values, resamples = several_kinds(), 999
    draws = drawn_units(resample_counts(len(values), resamples, seed=3))
    found = mean_interval(values, level=level, resamples=resamples, seed=3)
    for cell in np.ndindex(values.shape[1:]):
        column = values[(slice(None), *cell)]
        low, high = scipy_bca((column,), np.mean, [column[units].mean() for units in draws], level)
        assert found.estimate[cell] == pytest.approx(column.mean())
        assert (found.low[cell], found.high[cell]) == pytest.approx((low, high), rel=1e-9)


def test_bca_is_scipys_from_its_own_resamples():
    values = several_kinds(20)[:, 0, :2]
    found = mean_interval(values, seed=0)
    for cell in range(2):
        column, generator = values[:, cell], np.random.default_rng(9)
        own = stats.bootstrap((column,), np.mean, n_resamples=10_000, method="BCa", rng=generator)
        error = column.std(ddof=1) / np.sqrt(20)
        assert found.low[cell] == pytest.approx(own.confidence_interval.low, abs=0.15 * error)
        assert found.high[cell] == pytest.approx(own.confidence_interval.high, abs=0.15 * error)


def test_units_without_the_cell_are_left_out_not_zero():
    values = several_kinds(30)[:, 0, :2].copy()
    values[3:14, 1] = NAN
    kept, resamples = np.delete(values[:, 1], range(3, 14)), 999
    found = mean_interval(values, resamples=resamples, seed=4)
    draws = drawn_units(resample_counts(30, resamples, seed=4))
    low, high = scipy_bca((kept,), np.mean, [np.nanmean(values[units, 1]) for units in draws], 0.95)
    assert found.estimate[1] == pytest.approx(kept.mean())
    assert (found.low[1], found.high[1]) == pytest.approx((low, high), rel=1e-9)
    alone = mean_interval(values[:, 0], resamples=resamples, seed=4)
    assert (found.low[0], found.high[0]) == pytest.approx((float(alone.low), float(alone.high)), rel=1e-12)


def test_a_resample_without_any_unit_that_has_the_cell_is_left_out():
    values = np.full((400, 1), NAN)
    values[:8, 0] = np.arange(8.0)
    draws = drawn_units(resample_counts(400, 9_000, seed=0))
    present = [values[units, 0][~np.isnan(values[units, 0])] for units in draws]
    assert min(map(len, present)) == 0
    low, high = scipy_bca((np.arange(8.0),), np.mean, [each.mean() for each in present if len(each)], 0.95)
    found = mean_interval(values, resamples=9_000, seed=0)
    assert (found.low[0], found.high[0]) == pytest.approx((low, high), rel=1e-9)


def test_fewer_than_eight_clusters_have_a_value_and_no_interval():
    values = np.arange(24.0).reshape(8, 3)
    values[0, 1], values[:, 2] = NAN, NAN
    found = mean_interval(values, resamples=200, seed=0)
    np.testing.assert_allclose(found.estimate, [10.5, 13.0, NAN])
    assert np.isnan(found.low).tolist() == np.isnan(found.high).tolist() == [False, True, True]
    assert found.reason.tolist() == ["", TOO_FEW, TOO_FEW]


def test_where_all_are_equal_the_interval_is_that_point():
    points = np.concatenate([[0.0], np.geomspace(1e-9, 1e9, 60) / 3, [-0.1, -3e8]])
    found = mean_interval(np.tile(points, (13, 1)), resamples=200, seed=0)
    np.testing.assert_allclose(found.estimate, points, rtol=1e-12)
    np.testing.assert_array_equal(found.low, found.estimate)
    np.testing.assert_array_equal(found.high, found.estimate)


@settings(max_examples=20, derandomize=True, deadline=None)
@given(scale=st.floats(-50, 50).filter(lambda x: abs(x) > 1e-3), shift=st.floats(-9, 9))
def test_scaled_and_shifted_values_have_the_scaled_and_shifted_interval(scale: float, shift: float):
    values = several_kinds()[:, 0]
    found, moved = (mean_interval(each, resamples=500, seed=2) for each in (values, scale * values + shift))
    ends = (found.low, found.high) if scale > 0 else (found.high, found.low)
    for end, other in zip(ends, (moved.low, moved.high), strict=True):
        np.testing.assert_allclose(other, scale * end + shift, rtol=1e-6, atol=1e-6)


def test_how_many_cells_are_held_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    values, total = several_kinds(), np.random.default_rng(1).normal(4, 1, 15)
    whole = mean_interval(values, resamples=300, seed=0), ratio_interval(values, total, resamples=300, seed=0)
    monkeypatch.setattr(statistics, "AT_ONCE", 600)
    parts = mean_interval(values, resamples=300, seed=0), ratio_interval(values, total, resamples=300, seed=0)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(other.low, one.low, rtol=1e-9)
        np.testing.assert_allclose(other.high, one.high, rtol=1e-9)


# --- ratios of means


def test_a_ratio_is_scipys_from_the_same_resamples():
    values, resamples = several_kinds(25), 999
    values[:5, 0, 1] = NAN
    total = np.random.default_rng(8).lognormal(1, 0.4, 25)
    found = ratio_interval(values, total, resamples=resamples, seed=3)
    draws = drawn_units(resample_counts(25, resamples, seed=3))
    for cell in np.ndindex(values.shape[1:]):
        column = values[(slice(None), *cell)]
        there = ~np.isnan(column)
        below = np.where(there, total, NAN)
        drawn = [np.nanmean(column[units]) / np.nanmean(below[units]) for units in draws]
        low, high = scipy_bca((column[there], total[there]), ratio_of_means, drawn, 0.95)
        assert found.estimate[cell] == pytest.approx(column[there].mean() / total[there].mean())
        assert (found.low[cell], found.high[cell]) == pytest.approx((low, high), rel=1e-8)


def test_law_35_the_fraction_is_one_at_clean_and_zero_at_corrupt_whichever_pairs_have_the_cell():
    total = np.random.default_rng(0).normal(4, 1, 20)
    values = np.stack([total, np.zeros(20), np.where(np.arange(20) < 9, NAN, total), total / -3], 1)
    found = ratio_interval(values, total, resamples=300, seed=0)
    for end in (found.estimate, found.low, found.high):
        np.testing.assert_allclose(end, [1, 0, 1, -1 / 3], rtol=1e-12)


def test_a_denominator_by_cell_is_the_denominator_of_that_cell():
    draw = np.random.default_rng(0)
    values, totals = draw.normal(2, 1, (12, 3)), draw.normal(5, 1, (12, 3))
    together = ratio_interval(values, totals, resamples=300, seed=0)
    for cell in range(3):
        alone = ratio_interval(values[:, cell], totals[:, cell], resamples=300, seed=0)
        assert (together.low[cell], together.high[cell]) == pytest.approx((float(alone.low), float(alone.high)))


def test_without_a_total_effect_there_is_no_fraction():
    total = np.linspace(-1, 1.2, 12)
    low, high = scipy_bca(
        (total,), np.mean, [total[units].mean() for units in drawn_units(resample_counts(12, 500, 0))], 0.95
    )
    assert low < 0 < high
    found = ratio_interval(np.ones((12, 2)), total, resamples=500, seed=0)
    assert np.isnan([found.estimate, found.low, found.high]).all()
    assert found.reason.tolist() == [NEAR_ZERO] * 2
    assert ratio_interval(np.ones((12, 2)), total - 4, resamples=500, seed=0).reason.tolist() == [""] * 2


def test_few_clusters_have_a_fraction_without_an_interval_unless_the_total_effect_is_zero():
    found = ratio_interval(np.array([[1.0], [2.0]]), np.array([4.0, 2.0]), resamples=200, seed=0)
    assert found.estimate[0] == pytest.approx(0.5)
    assert np.isnan([found.low[0], found.high[0]]).all()
    assert found.reason.tolist() == [TOO_FEW]
    zero = ratio_interval(np.ones((3, 1)), np.array([0.1, 0.2, -0.3]), resamples=200, seed=0)  # 3e-17, summed
    assert np.isnan(zero.estimate[0])
    assert zero.reason.tolist() == [ZERO]


def test_a_cell_that_no_pair_has_is_undefined_and_disturbs_no_other():
    values = np.full((10, 2), NAN)
    values[:, 1] = np.arange(10.0)
    found = ratio_interval(values, np.full(10, 2.0), resamples=200, seed=0)
    assert np.isnan([found.estimate[0], found.low[0]]).all()
    assert found.estimate[1] == pytest.approx(2.25)
    assert found.reason.tolist() == [TOO_FEW, ""]


# --- differences of ratios


def difference_of_ratios(*parts: np.ndarray, axis: int = -1) -> np.ndarray:
    one, total, other, whole = (part.mean(axis) for part in parts)
    return one / total - other / whole


def two_ratios(units: int = 25) -> list[tuple[np.ndarray, np.ndarray]]:
    """Two numerators [unit, 2, 3] with their denominators, unit by unit alike; some are missing in one of them."""
    draw = np.random.default_rng(8)
    tops = several_kinds(units), several_kinds(units) + draw.normal(0, 0.3, (units, 2, 3))
    bottoms = [draw.lognormal(1, 0.4, (units, 2, 3)) for _ in range(2)]
    tops[0][:5, 0, 1], tops[1][3:8, 0, 1], bottoms[1][9, 1, 0] = NAN, NAN, NAN
    return list(zip(tops, bottoms, strict=True))


def test_a_difference_of_ratios_is_scipys_from_the_same_resamples():
    (first, second), resamples = two_ratios(), 999
    found = ratio_difference_interval(first, second, resamples=resamples, seed=3)
    draws = drawn_units(resample_counts(25, resamples, seed=3))
    for cell in np.ndindex(found.estimate.shape):
        columns = np.stack([part[(slice(None), *cell)] for part in (*first, *second)])
        there = ~np.isnan(columns).any(0)
        masked = np.where(there, columns, NAN)
        drawn = []
        for units in draws:
            one, total, other, whole = np.nanmean(masked[:, units], axis=1)
            drawn.append(one / total - other / whole)
        kept = tuple(columns[:, there])
        low, high = scipy_bca(kept, difference_of_ratios, drawn, 0.95)
        assert found.estimate[cell] == pytest.approx(difference_of_ratios(*kept), rel=1e-9, abs=1e-15)
        assert (found.low[cell], found.high[cell]) == pytest.approx((low, high), rel=1e-7, abs=1e-15)


def test_a_difference_of_ratios_turned_around_is_its_negative_and_of_itself_is_zero():
    first, second = two_ratios()
    found = ratio_difference_interval(first, second, resamples=500, seed=3)
    turned = ratio_difference_interval(second, first, resamples=500, seed=3)
    np.testing.assert_array_equal(turned.estimate, -found.estimate)
    np.testing.assert_allclose(turned.low, -found.high, rtol=1e-9)
    np.testing.assert_allclose(turned.high, -found.low, rtol=1e-9)
    same = ratio_difference_interval(first, first, resamples=500, seed=3)
    for end in (same.estimate, same.low, same.high):
        np.testing.assert_array_equal(end, np.zeros((2, 3)))


def test_a_difference_of_ratios_is_as_wide_as_both_together_not_apart():
    """Ratios that rise and fall with the same pairs differ by less than two that have nothing in common."""
    draw = np.random.default_rng(0)
    total = draw.lognormal(1, 0.2, (40, 1))
    effect = total * draw.uniform(0, 1, (40, 1))
    close = ratio_difference_interval((effect, total), (effect * 0.9, total), resamples=2000, seed=0)
    apart = ratio_interval(effect, total[:, 0], resamples=2000, seed=0)
    assert (close.high - close.low)[0] < 0.3 * (apart.high - apart.low)[0]


def test_a_difference_of_ratios_says_which_has_nothing_to_divide_by():
    ones, zeros = np.ones((12, 1)), np.linspace(-1, 1.2, 12)[:, None]
    found = ratio_difference_interval((ones, ones * 4), (ones, zeros), resamples=500, seed=0)
    assert found.reason.tolist() == [f"second: {NEAR_ZERO}"]
    assert np.isnan([found.estimate, found.low, found.high]).all()
    turned = ratio_difference_interval((ones, zeros), (ones, ones * 4), resamples=500, seed=0)
    assert turned.reason.tolist() == [f"first: {NEAR_ZERO}"]
    few = ratio_difference_interval((ones[:5], ones[:5] * 4), (ones[:5], ones[:5]), resamples=500, seed=0)
    assert few.reason.tolist() == [TOO_FEW]
    assert few.estimate[0] == pytest.approx(-0.75)
    assert np.isnan([few.low[0], few.high[0]]).all()


# --- coverage, by simulation


def documented_coverage() -> dict[int, list[float]]:
    """The table of docs/statistics.md: mean and ratio, each normal and skewed."""
    rows = [line.strip("|").split("|") for line in DOCS.read_text(encoding="utf-8").splitlines() if "% |" in line]
    return {int(row[0]): [float(cell.strip(" %")) / 100 for cell in row[1:]] for row in rows}


@pytest.mark.parametrize("units", [8, 20, 50])
def test_coverage_is_as_stated(units: int):
    draw, repetitions = np.random.default_rng(units + 100), 1500
    normal = draw.normal(4, 1, (units, repetitions))
    skewed = 4 * draw.lognormal(-0.32, 0.8, (units, repetitions))  # of mean exp(σ²/2 − .32) = 1, times 4
    effects = normal / 2 + draw.normal(0, 1, normal.shape), skewed / 2 * draw.lognormal(-0.125, 0.5, skewed.shape)
    found = [(mean_interval(each, resamples=2000, seed=1), 2.0) for each in effects]
    pairs = zip(effects, (normal, skewed), strict=True)
    found += [(ratio_interval(each, total, resamples=2000, seed=1), 0.5) for each, total in pairs]
    for (interval, truth), stated in zip(found, documented_coverage()[units], strict=True):
        held = ((interval.low <= truth) & (truth <= interval.high)).mean()
        error = np.sqrt(stated * (1 - stated) * (1 / repetitions + 1 / 4000))
        assert held == pytest.approx(stated, abs=4 * error)


def test_many_units_cover_as_they_should():
    values = np.random.default_rng(0).normal(2, 1, (200, 1500))
    found = mean_interval(values, resamples=2000, seed=1)
    held = ((found.low <= 2) & (found.high >= 2)).sum()
    assert stats.binom.ppf(1e-4, 1500, 0.94) <= held <= stats.binom.ppf(1 - 1e-4, 1500, 0.955)


# --- messages


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.zeros((0, 2)), {}, "no pairs to take a mean over"),
        (np.array([[1.0], [np.inf]]), {}, "hold an infinite number"),
        (np.ones((9, 1)), {"level": 95.0}, "must lie between 0 and 1; it is 95.0"),
        (np.ones((9, 1)), {"resamples": 0}, "number of resamples must be a whole number of at least 1"),
        (np.ones((9, 1)), {"seed": -1}, "seed must be a whole number of at least 0"),
    ],
    ids=["none", "infinite", "level", "resamples", "seed"],
)
def test_what_cannot_be_meant_is_an_error(values: np.ndarray, options: dict, message: str):
    with pytest.raises(InvalidOption, match=message):
        mean_interval(values, **{"seed": 0, **options})


def test_a_denominator_of_another_shape_is_an_error():
    with pytest.raises(InvalidOption, match=r"\(9,\), or one a cluster and cell \(9, 2\); it has the shape \(9, 3\)"):
        ratio_interval(np.ones((9, 2)), np.ones((9, 3)), seed=0)
