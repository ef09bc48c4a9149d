"""Two traces against each other: paired differences, families and fractions by hand; what is not shared is said."""

import json
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

import causal_tracing as ct
from causal_tracing.errors import InvalidOption
from causal_tracing.report.labels import number
from causal_tracing.results.means import NoMean
from made import LAYERS, POSITIONS, synthetic, taken_apart

EFFECTS = ("restoration", "disruption", "interaction")


def raw(trace: ct.Trace, name: str, metric: str = "logit_diff") -> np.ndarray:
    """[pair, layer, position] of the one component, or [pair]."""
    found = trace.effects[name].sel(metric=metric).transpose("pair", ...).values
    return found[:, 0] if found.ndim > 1 else found


def by_cluster(values: np.ndarray) -> np.ndarray:
    """The first four pairs are two clusters, the others one each."""
    with np.errstate(all="ignore"):
        halves = [np.nanmean(values[0:2], axis=0), np.nanmean(values[2:4], axis=0)]
    return np.concatenate([np.stack(halves), values[4:]])


CLUSTERS = {0: "x", 1: "x", 2: "y", 3: "y"}


@pytest.fixture(scope="module")
def two() -> tuple[ct.Trace, ct.Trace]:
    return synthetic(1, clusters=CLUSTERS), synthetic(2, clusters=CLUSTERS, missing=[(5, 0, 1), (1, 0, 1)])


@pytest.mark.parametrize("name", EFFECTS)
def test_differences_are_paired_and_over_clusters(two: tuple[ct.Trace, ct.Trace], name: str):
    found = ct.compare(*two)
    assert (found.pairs, found.clusters) == (12, 10)
    assert [(side.metric, side.unit) for side in found.sides.values()] == 2 * [("logit_diff", "logits")]
    one, other = (raw(trace, name) for trace in two)
    units = by_cluster(one - other)
    assert_allclose(found.cells[name].values[0], np.nanmean(units, axis=0), atol=1e-12)
    both = np.isnan(one) | np.isnan(other)
    for which, values in (("first", one), ("second", other)):
        expected = np.nanmean(by_cluster(np.where(both, np.nan, values)), axis=0)
        assert_allclose(found.cells[f"{name}_{which}"].values[0], expected, atol=1e-12)
    assert found.cells.clusters.values[0].tolist() == [[10, 9, 10], [10, 10, 10]]
    totals = by_cluster(raw(two[0], "total_effect") - raw(two[1], "total_effect"))
    assert float(found.total.estimate) == pytest.approx(totals.mean())
    for interval, values in (
        ((found.total.low, found.total.high), totals),
        ((found.cells[f"{name}_low"].values[0, 1, 2], found.cells[f"{name}_high"].values[0, 1, 2]), units[:, 1, 2]),
        ((found.cells[f"{name}_low"].values[0, 0, 1], found.cells[f"{name}_high"].values[0, 0, 1]), units[:, 0, 1]),
    ):
        kept = values[~np.isnan(values)]
        own = stats.bootstrap((kept,), np.mean, n_resamples=20_000, rng=1).confidence_interval
        error = kept.std(ddof=1) / len(kept) ** 0.5
        assert_allclose([float(end) for end in interval], own, atol=0.15 * error)


def test_tests_are_of_the_paired_differences_over_the_whole_map(two: tuple[ct.Trace, ct.Trace]):
    """Every flip by a plain loop: p alone, the largest |t| of the map, and q."""
    second = synthetic(2, clusters=CLUSTERS)
    cells = ct.compare(two[0], second).cells
    units = by_cluster(raw(two[0], "restoration") - raw(second, "restoration")).reshape(10, -1)

    def t(values: np.ndarray) -> np.ndarray:
        return abs(values.mean(0)) / values.std(0, ddof=1)

    flipped = np.array([t(units * np.array(signs)[:, None]) for signs in product((1, -1), repeat=10)])
    found, order = t(units), np.argsort(t(units))
    alone = (flipped >= found - 1e-12).mean(0)
    assert_allclose(cells.restoration_p.values.ravel(), alone)
    assert_allclose(cells.restoration_q.values.ravel(), stats.false_discovery_control(alone))
    adjusted = np.empty(len(found))
    for rank in range(len(order)):  # step-down: against the largest of the cells that are no stronger
        adjusted[order[rank]] = (flipped[:, order[: rank + 1]].max(1) >= found[order[rank]] - 1e-12).mean()
    for rank in range(len(order) - 2, -1, -1):
        adjusted[order[rank]] = max(adjusted[order[rank]], adjusted[order[rank + 1]])
    assert_allclose(cells.restoration_p_adjusted.values.ravel(), adjusted)
    assert (cells.restoration_p_adjusted > cells.restoration_p).any()


@pytest.mark.parametrize(("name", "effect"), [("restored_fraction", "restoration"), ("lost_fraction", "disruption")])
def test_fractions_are_ratios_of_means_drawn_together(two: tuple[ct.Trace, ct.Trace], name: str, effect: str):
    cells = ct.compare(*two).cells

    def difference(one: Any, total: Any, other: Any, whole: Any, axis: int = -1) -> Any:
        return one.mean(axis) / total.mean(axis) - other.mean(axis) / whole.mean(axis)

    for layer, position in ((0, 0), (0, 1), (1, 2)):
        effects = [raw(trace, effect)[:, layer, position] for trace in two]
        missing = np.isnan(effects[0]) | np.isnan(effects[1])
        parts = [
            by_cluster(np.where(missing, np.nan, each))
            for trace, values in zip(two, effects, strict=True)
            for each in (values, raw(trace, "total_effect"))
        ]
        kept = tuple(part[~np.isnan(parts[0])] for part in parts)
        cell = cells.isel(component=0, layer=layer, position=position)
        assert cell[name].item() == pytest.approx(difference(kept[0], kept[1], kept[2], kept[3]), abs=1e-12)
        own = stats.bootstrap(kept, difference, paired=True, n_resamples=20_000, rng=1)
        for end, expected in zip(("low", "high"), own.confidence_interval, strict=True):
            assert cell[f"{name}_{end}"].item() == pytest.approx(expected, abs=0.15 * float(own.standard_error))
        assert cell[f"{name}_reason"].item() == ""


def test_turned_around_all_signs_turn(two: tuple[ct.Trace, ct.Trace]):
    found, turned = ct.compare(*two), ct.compare(*two[::-1])
    for name in (*EFFECTS, "restored_fraction", "lost_fraction"):
        assert_allclose(turned.cells[name], -found.cells[name], atol=1e-14)
        assert_allclose(turned.cells[f"{name}_low"], -found.cells[f"{name}_high"], atol=1e-9)
        assert_allclose(turned.cells[f"{name}_high"], -found.cells[f"{name}_low"], atol=1e-9)
    for name in EFFECTS:
        assert abs(found.cells[name]).max() > 0.1
        for test in ("p", "p_adjusted", "q"):
            assert_allclose(turned.cells[f"{name}_{test}"], found.cells[f"{name}_{test}"])
        assert_array_equal(turned.cells[f"{name}_first"], found.cells[f"{name}_second"])
    assert float(turned.total.low) == pytest.approx(-float(found.total.high))
    assert_array_equal(turned.first.total.low, found.second.total.low)


def test_a_trace_does_not_differ_from_itself(two: tuple[ct.Trace, ct.Trace]):
    found = ct.compare(two[1], two[1])
    for name in (*EFFECTS, "restored_fraction", "lost_fraction"):
        for end in ("", "_low", "_high"):
            assert_array_equal(found.cells[f"{name}{end}"], np.zeros((1, LAYERS, POSITIONS)))
    for name in EFFECTS:
        assert_array_equal(found.cells[f"{name}_p"], np.ones((1, LAYERS, POSITIONS)))
        assert_array_equal(found.cells[f"{name}_p_adjusted"], np.ones((1, LAYERS, POSITIONS)))
    assert (float(found.total.estimate), float(found.total.low), float(found.total.high)) == (0, 0, 0)
    assert "Model, options and prompts are recorded as the same." in found.summary()
    assert "0 of 6 by restoration, 0 of 6 by disruption" in found.summary()


def test_the_order_of_pairs_changes_nothing(two: tuple[ct.Trace, ct.Trace]):
    first, second = two
    mixed = taken_apart(
        second.measurements.numbers().isel(pair=[7, 2, 11, 0, 5, 1, 10, 3, 9, 4, 8, 6]),
        {**second.provenance, "pairs": second.provenance["pairs"][::-1]},
    )
    found, again = ct.compare(first, second), ct.compare(first, ct.Trace(mixed))
    assert found.cells.identical(again.cells)
    assert found.ids == again.ids == tuple(sorted(f"p{n}" for n in range(12)))
    assert found.summary() == again.summary()


def test_a_real_difference_is_found_and_shift_is_its_size():
    first, second = synthetic(1, count=20, shift=3.0), synthetic(2, count=20)
    found = ct.compare(first, second)
    assert (found.cells.restoration_p_adjusted < 0.01).all()
    assert (abs(found.cells.restoration - 3) < 1.5).all()
    assert abs(found.cells.restoration.mean() - 3) < 0.5
    assert "6 of 6 by restoration" in found.summary()
    assert (found.cells.disruption_p_adjusted > 0.05).any()


def test_what_is_known_in_both_is_tested_in_neither():
    zero: dict[str, Any] = {"structural_zero": [[1, 1, 0], [0, 0, 0]], "cut": [[0, 0, 0], [1, 0, 1]]}
    other: dict[str, Any] = {"structural_zero": [[1, 0, 0], [0, 0, 1]], "cut": [[0, 0, 0], [1, 1, 0]]}
    found = ct.compare(synthetic(1, **zero), synthetic(2, **other))
    assert found.cells.status.values[0].tolist() == [["structural_zero", "ok", "ok"], ["cut", "ok", "cut"]]
    assert found.cells.restoration_p.notnull().values[0].tolist() == [[False, True, True], [False, True, False]]
    assert found.cells.restoration.notnull().all()
    assert "of 3 by restoration" in found.summary()


def test_other_units_have_fractions_and_no_differences(two: tuple[ct.Trace, ct.Trace]):
    found = ct.compare(*two, second_metric="prob")
    assert found.reason == "the first is in logits, the second in probability"
    for name in EFFECTS:
        for part in ("", "_low", "_high", "_p", "_p_adjusted", "_q"):
            assert found.cells[f"{name}{part}"].isnull().all()
        assert found.cells[f"{name}_second"].notnull().all()
    assert np.isnan([found.total.estimate, found.total.low, found.total.high]).all()
    assert str(found.total.reason) == found.reason
    assert_array_equal(found.cells.restored_fraction, ct.compare(*two).cells.restored_fraction)  # one number for all
    said = found.summary()
    assert "There is no difference of effects: the first is in logits, the second in probability." in said
    assert "Largest difference of resid_post" in said
    assert "difference of restored fractions" in said
    same_unit = ct.compare(*two, second_metric="logit")
    assert same_unit.reason == ""
    assert same_unit.cells.restoration.notnull().all()


def test_without_a_total_effect_fractions_have_a_reason():
    found = ct.compare(synthetic(1), synthetic(2, total=0.0))
    assert found.cells.restored_fraction.isnull().all()
    assert (found.cells.restored_fraction_reason == "second: the interval of the denominator contains 0").all()
    assert found.cells.restoration.notnull().all()
    said = found.summary()
    assert "No cell has fractions to compare: the interval of the second trace's total effect contains 0." in said


def test_what_only_one_has_is_listed():
    first = synthetic(1, layers=3, record={"layers": 3, "family": "llama", "model": "large"})
    second = synthetic(2, count=10, first=4, record={"layers": 2, "family": "llama", "model": "small"})
    found = ct.compare(first, second)
    assert found.ids == tuple(sorted(f"p{n}" for n in range(4, 12)))
    assert found.only_first == {"pairs": ("p0", "p1", "p2", "p3"), "layers": (2,)}
    assert found.only_second == {"pairs": ("p12", "p13")}
    assert found.cells.layer.values.tolist() == [0, 1]
    assert_allclose(
        found.cells.restoration.values[0], (raw(first, "restoration")[4:, :2] - raw(second, "restoration")[:8]).mean(0)
    )
    said = found.summary()
    assert "Only in the first, and not compared: pairs p0, p1, p2, p3; layers 2." in said
    assert "Only in the second, and not compared: pairs p12, p13." in said
    assert "different models (3 and 2 layers): layer numbers of different models are not the same place." in said
    assert 'model: first "large", second "small"' in said


def test_pairs_without_the_metric_are_listed():
    first, second = synthetic(1), synthetic(2)
    second.measurements.pairs.corrupt[:, 3] = np.nan
    found = ct.compare(first, second)
    assert (found.pairs, found.undefined) == (11, ("p3",))
    assert "In both, and without a number by one of the metrics: pairs p3." in found.summary()


def test_too_few_shared_pairs_are_an_error_that_names_both():
    message = (
        r"at least two; these share 1\.\n  the first has   p0, p1, p2, p3, p4, p5, p6, p7 and 4 more\n"
        r"  the second has  p11, p12"
    )
    with pytest.raises(InvalidOption, match=message):
        ct.compare(synthetic(1), synthetic(2, first=11, count=2))
    message = r"Of the 12 pairs that both .*, 0 have a number .* Of p0, entropy is undefined \(entropy is shown raw"
    with pytest.raises(InvalidOption, match=message):
        ct.compare(synthetic(1), synthetic(2), metric="entropy")
    with pytest.raises(InvalidOption, match="no metric 'logits' in the second trace. Did you mean 'logit'"):
        ct.compare(synthetic(1), synthetic(2), second_metric="logits")


def test_where_nothing_differs_no_cell_is_called_the_one_that_differs_most():
    said = ct.compare(synthetic(1), synthetic(1)).summary()
    assert "No cell of resid_post differs." in said
    assert "Largest difference" not in said


def test_an_infinite_effect_has_no_mean():
    first, second = synthetic(1), synthetic(2)
    second.measurements.maps["blocks"].restored[0, 5, 0, 0, 1] = np.inf
    with pytest.raises(NoMean, match="restoration by logit_diff is infinite"):
        ct.compare(first, second)


def test_pairs_that_share_a_cluster_in_either_are_one_unit():
    first, second = synthetic(1, clusters={0: "a", 1: "a", 5: "c"}), synthetic(2, clusters={1: "b", 2: "b", 5: "c"})
    found = ct.compare(first, second)
    assert found.clusters == 10
    values = raw(first, "restoration") - raw(second, "restoration")
    expected = np.concatenate([values[:3].mean(0)[None], values[3:]]).mean(0)
    assert_allclose(found.cells.restoration.values[0], expected)
    assert "The clusters of some pairs differ" in found.summary()
    assert "clusters of some pairs" not in ct.compare(first, first).summary()


def test_few_clusters_have_no_intervals_and_few_can_reach_no_p():
    found = ct.compare(synthetic(1, count=5), synthetic(2, count=5))
    assert found.cells.restoration.notnull().all()
    assert found.cells.restoration_low.isnull().all()
    said = found.summary()
    assert "Fewer than 8 clusters: differences without intervals." in said
    assert "With 5 clusters the smallest p that can be is 0.062: no test can reach 0.05." in said
    assert "[" not in said.split("What this does not show")[0]


def test_the_words_carry_the_largest_difference(two: tuple[ct.Trace, ct.Trace]):
    found, said = ct.compare(*two), ct.compare(*two).summary()
    assert repr(found) == said
    assert "mean paired difference over 12 pairs in 10 clusters" in said
    total = (
        f"{number(float(found.total.estimate))} [{number(float(found.total.low))}, {number(float(found.total.high))}]"
    )
    assert f"difference of the total effects {total} logits" in said
    size = abs(found.cells.restoration.values[0])
    layer, position = np.unravel_index(size.argmax(), size.shape)
    cell = found.cells.isel(component=0, layer=int(layer), position=int(position))
    low, high = cell.restoration_low.item(), cell.restoration_high.item()
    assert f"Largest difference of resid_post: layer {layer} at token {position}; restoration" in said
    assert f"= {number(cell.restoration.item())} [{number(low)}, {number(high)}] logits, p" in said
    assert "A cell's difference says that the two runs differ there, not why." in said
    assert "biased upward" in said


def test_the_json_is_the_numbers(two: tuple[ct.Trace, ct.Trace]):
    for found in (
        ct.compare(*two),
        ct.compare(*two, second_metric="prob"),
        ct.compare(synthetic(1), synthetic(2, total=0)),
    ):
        document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert document["first"]["metric"] == "logit_diff"
        assert document["pairs"] == list(found.ids)
        assert document["reason"] == found.reason
        for name in EFFECTS:
            for part, variable in (("mean", name), ("p_adjusted", f"{name}_p_adjusted"), ("second", f"{name}_second")):
                numbers = np.array(document["cells"][name]["resid_post"][part], dtype=float)  # null is NaN
                assert_array_equal(numbers, found.cells[variable].values[0])
        for name in ("restored_fraction", "lost_fraction"):
            fractions = document["fractions"][name]["resid_post"]
            assert_array_equal(np.array(fractions["low"], dtype=float), found.cells[f"{name}_low"].values[0])
            assert fractions["reason"] == found.cells[f"{name}_reason"].values[0].tolist()
        assert document["total"]["low"] == (None if found.reason else float(found.total.low))
