"""Peaks: held to every split and to plain loops over resamples; choosing must not flatter."""

import itertools
import math

import numpy as np
import pytest

from causal_tracing.errors import InvalidOption
from causal_tracing.results.statistics.bootstrap import TOO_FEW, resample_counts
from causal_tracing.results.statistics.peaks import NOWHERE, peak_stability, split_half_peak

NAN = np.nan
ALL = np.ones((4, 3), bool)


def noisy(units: int = 10, seed: int = 0) -> np.ndarray:
    """[unit, layer, position]: a negative peak at layer 2, position 1, with a rival one layer above it."""
    values = np.random.default_rng(seed).normal(0, 1, (units, 4, 3))
    values[:, 2, 1] -= 1.0
    values[:, 3, 1] -= 0.8
    return values


def largest(means: np.ndarray) -> tuple[int, ...]:
    best = max(np.ndindex(means.shape), key=lambda at: abs(means[at]) if not math.isnan(means[at]) else -1)
    return tuple(best)


def test_the_held_out_peak_is_the_mean_over_all_splits():
    values = noisy()
    held_out, inside, chosen = [], [], []
    for half in itertools.combinations(range(10), 5):
        mine = np.isin(range(10), half)
        at = largest(values[mine].mean(0))
        held_out.append(values[(~mine, *at)].mean())
        inside.append(values[(mine, *at)].mean())
        chosen.append(at == largest(values.mean(0)))
    found = split_half_peak(values, ALL, halves=20_000, seed=0)
    assert found.index == largest(values.mean(0))
    error = 5 * float(np.std(held_out)) / math.sqrt(20_000)
    assert found.held_out == pytest.approx(np.mean(held_out), abs=error)
    assert found.in_sample == pytest.approx(np.mean(inside), abs=error)
    assert found.chosen == pytest.approx(np.mean(chosen), abs=0.02)
    assert 0.1 < found.chosen < 0.99


def test_a_peak_chosen_among_equals_is_flattered_and_its_other_half_is_not():
    held_out, inside = [], []
    for seed in range(100):
        values = np.random.default_rng(seed).normal(0.5, 1, (12, 30))
        found = split_half_peak(values, np.ones(30, bool), halves=20, seed=seed)
        held_out.append(found.held_out)
        inside.append(found.in_sample)
    assert np.mean(held_out) == pytest.approx(0.5, abs=0.4 * float(np.std(held_out)))
    assert np.mean(inside) > 1


def test_an_odd_number_of_units_is_measured_whole():
    values = np.zeros((9, 2, 2))
    values[:, 1, 0] = 3
    found = split_half_peak(values, np.ones((2, 2), bool), seed=0)
    assert (found.index, found.held_out, found.in_sample, found.chosen) == ((1, 0), 3, 3, 1)


def test_both_halves_choose_and_both_are_measured():
    values = noisy(10)
    values[:, 1, 2] += 50
    found = split_half_peak(values, ALL, halves=1, seed=0)
    assert found.held_out == pytest.approx(
        values[:, 1, 2].mean(), rel=1e-12
    )  # each unit once, by the other half's choice


@pytest.mark.parametrize("layer_axis", [0, -2, 1])
def test_stability_is_a_plain_loop_over_resamples(layer_axis: int):
    values, resamples = noisy(12), 800
    values[:3, 0, 0] = NAN
    peak, same, near = largest(np.nanmean(values, 0)), 0, 0
    for counts in resample_counts(12, resamples, seed=3):
        at = largest(np.nanmean(np.repeat(values, counts.astype(int), axis=0), 0))
        same += at == peak
        other = 1 - layer_axis % 2
        near += at[other] == peak[other] and abs(at[layer_axis] - peak[layer_axis]) <= 1
    found = peak_stability(values, ALL, layer_axis=layer_axis, resamples=resamples, seed=3)
    assert (found.index, found.same, found.within_one_layer) == (peak, same / resamples, near / resamples)
    assert found.same < found.within_one_layer < 1


def test_layers_that_were_left_out_are_not_neighbours():
    options = {"layer_axis": 0, "resamples": 500, "seed": 0}
    found = peak_stability(noisy(), ALL, layers=[0, 8, 16, 24], **options)
    assert found.same == found.within_one_layer
    assert found.within_one_layer < peak_stability(noisy(), ALL, layers=[3, 4, 5, 6], **options).within_one_layer


def test_what_is_not_eligible_is_never_a_peak():
    values = noisy(20) / 10
    values[:, 2, 1] -= 1
    values[:, 0, 0], values[:, 0, 1] = 100, np.where(np.arange(20) < 5, 50, NAN)  # a cut; a cell of five pairs
    eligible = ALL.copy()
    eligible[0, 0] = False
    assert split_half_peak(values, ALL, halves=10, seed=0).index == (0, 0)
    assert split_half_peak(values, eligible, halves=10, seed=0).index == (2, 1)
    stable = peak_stability(values, eligible, layer_axis=0, resamples=200, seed=0)
    assert stable.index == (2, 1)
    assert stable.within_one_layer > 0.9


def test_cells_that_are_the_same_are_one_peak():
    values = np.random.default_rng(0).normal(1, 0.5, (16, 1)) * np.ones((1, 7))
    found = peak_stability(values, np.ones(7, bool), layer_axis=0, resamples=300, seed=0)
    assert (found.index, found.same) == ((0,), 1)
    draw = np.random.default_rng(0)
    reordered = np.stack([draw.permutation(np.arange(16) / 10) for _ in range(200)], 1)  # sums differ in their last bit
    assert split_half_peak(reordered, np.ones(200, bool), seed=0).index == (0,)


def test_few_units_have_a_peak_and_nothing_more():
    split = split_half_peak(noisy(7), ALL, seed=0)
    stable = peak_stability(noisy(7), ALL, layer_axis=0, seed=0)
    assert split.index == stable.index == largest(noisy(7).mean(0))
    assert split.reason == stable.reason == TOO_FEW
    assert np.isnan([split.held_out, split.in_sample, split.chosen, stable.same, stable.within_one_layer]).all()


def test_where_nothing_is_eligible_there_is_no_peak():
    split = split_half_peak(noisy(), ~ALL, seed=0)
    stable = peak_stability(noisy(), ~ALL, layer_axis=0, seed=0)
    assert split.index is None
    assert stable.index is None
    assert split.reason == stable.reason == NOWHERE
    assert np.isnan([split.held_out, stable.same]).all()


def test_the_same_seed_gives_the_same_peaks():
    first, again, other = (split_half_peak(noisy(), ALL, halves=30, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.held_out != other.held_out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_axis": 2}, "map has 2 axes; the axis of layers cannot be 2"),
        ({"layer_axis": 0, "layers": [1, 2]}, "map has 4 layers; 2 were named"),
    ],
    ids=["axis", "layers"],
)
def test_what_cannot_be_meant_is_an_error(options: dict, message: str):
    with pytest.raises(InvalidOption, match=message):
        peak_stability(noisy(), ALL, seed=0, **options)
    with pytest.raises(InvalidOption, match="number of splits must be a whole number of at least 1"):
        split_half_peak(noisy(), ALL, halves=0, seed=0)
