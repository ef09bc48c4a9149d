"""Figures of the mean over pairs: the numbers that are drawn are the evidence's."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from numpy.testing import assert_allclose

import causal_tracing as ct
from causal_tracing.errors import InvalidOption
from made import model, pair

__all__ = ["model"]


@pytest.fixture(scope="module")
def trace(model):
    return ct.trace(model, [pair(n, cluster="one" if n < 2 else None) for n in range(9)])


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_the_map_of_the_mean_draws_means_and_marks_what_cannot_be_told_from_zero(trace):
    figure = trace.plot("mean")
    assert figure.get_suptitle() == "mean over 9 pairs in 8 clusters"
    cells = trace.evidence().cells
    axes = figure.axes[0]
    assert axes.get_title() == "resid_post: restoration"
    drawn = axes.images[0].get_array()
    assert_allclose(drawn, cells.restoration.sel(component="resid_post").transpose("position", "layer").values)
    rings = {tuple(point) for line in axes.lines if line.get_marker() == "o" for point in line.get_xydata().tolist()}
    p = cells.restoration_p_adjusted.sel(component="resid_post").transpose("layer", "position").values
    assert rings == {(float(a), float(b)) for a, b in np.argwhere(p >= 0.05)}


def test_curves_of_the_mean_carry_their_intervals(trace):
    figure = trace.plot("mean_curves", effect="disruption", position=1)
    axes = figure.axes[0]
    cells = trace.evidence().cells.sel(component="mlp_out", position=1)
    line = next(line for line in axes.lines if line.get_label() == "mlp_out")
    assert_allclose(line.get_ydata(), cells.disruption)
    band = (
        axes.collections[list(trace.evidence().cells.component.values).index("mlp_out")].get_paths()[0].vertices[:, 1]
    )
    assert_allclose([band.min(), band.max()], [cells.disruption_low.min(), cells.disruption_high.max()])


def test_a_mean_is_of_all_pairs(trace):
    with pytest.raises(InvalidOption, match="A mean is over all pairs"):
        trace.plot("mean", pair="pair-0")
    with pytest.raises(InvalidOption, match="There is no position"):
        trace.plot("mean_curves", position=77)


@pytest.fixture(scope="module")
def units(model):
    return ct.trace(model, [pair(n) for n in range(8)], components=["mlp_out"], heads=["z"], neurons={1: [0, 3]})


def test_the_map_of_heads_draws_their_means_and_marks_what_cannot_be_told_from_zero(units):
    figure = units.plot("mean_heads", position=3)
    assert figure.get_suptitle() == "mean over 8 pairs"
    cells = units.evidence("heads").cells.sel(component="z", position=3)
    axes = figure.axes[0]
    assert axes.get_title().startswith("z: restoration")
    assert_allclose(axes.images[0].get_array(), cells.restoration.transpose("head", "layer").values)
    rings = {tuple(point) for line in axes.lines if line.get_marker() == "o" for point in line.get_xydata().tolist()}
    p = cells.restoration_p_adjusted.transpose("layer", "head").values
    assert rings == {(float(a), float(b)) for a, b in np.argwhere(p >= 0.05)}


def test_the_sum_over_positions_is_of_the_means_and_was_not_tested(units):
    axes = units.plot("mean_heads", position="sum", effect="disruption").axes[0]
    cells = units.evidence("heads").cells.sel(component="z")
    expected = cells.disruption.sum("position").transpose("head", "layer").values
    assert_allclose(axes.images[0].get_array(), expected, atol=1e-12)
    assert not [line for line in axes.lines if line.get_marker() == "o" and len(line.get_xydata())]


def test_neurons_are_ranked_by_their_means(units):
    axes = units.plot("mean_neurons", effect="restoration", layer=1).axes[0]
    drawn = sorted(value for line in axes.lines[1:] for value in line.get_ydata())
    means = units.neurons.restoration.sel(metric="logit_diff", layer=1, neuron=[0, 3]).mean("pair").values.ravel()
    assert_allclose(drawn, sorted(means), atol=1e-12)
