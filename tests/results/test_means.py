"""Means over pairs: columns that mean the same, units, families and fractions by hand; and the words' numbers."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xarray as xr
from numpy.testing import assert_allclose
from scipy import stats

import causal_tracing as ct
from causal_tracing.errors import InvalidOption
from causal_tracing.models.model import Model
from causal_tracing.report.document import document
from causal_tracing.report.labels import number
from causal_tracing.results.means import NoMean, mean_map
from made import ANSWERS, longer, pair
from made import model as model


@pytest.fixture(scope="module")
def trace(model: Model) -> ct.Trace:
    """Twelve pairs, of which the first four are two facts."""
    return ct.trace(model, [pair(n, cluster=f"fact {n // 2}" if n < 4 else None) for n in range(12)])


def by_hand(trace: ct.Trace, name: str) -> np.ndarray:
    """[cluster, component, layer, position]: the first four pairs are two clusters, the others one each."""
    values = trace.effects[name].sel(metric="logit_diff").transpose("pair", ...).values
    return np.concatenate([values[0:2].mean(0)[None], values[2:4].mean(0)[None], values[4:]])


@pytest.mark.parametrize("name", ["restoration", "disruption", "interaction"])
def test_means_are_over_clusters(trace, name):
    found = trace.evidence()
    assert (found.pairs, found.clusters, found.metric, found.unit) == (12, 10, "logit_diff", "logits")
    clusters = by_hand(trace, name)
    assert_allclose(found.cells[name], clusters.mean(0), rtol=0, atol=1e-12)
    assert (found.cells.clusters == 10).all()
    assert float(found.total.estimate) == pytest.approx(by_hand(trace, "total_effect").mean())
    ratio = clusters.mean(0) / by_hand(trace, "total_effect").mean()
    if name != "interaction" and not float(found.total.low) <= 0 <= float(found.total.high):
        assert_allclose(found.cells[{"restoration": "restored", "disruption": "lost"}[name] + "_fraction"], ratio)


def test_intervals_and_tests_are_scipys(trace):
    cells, clusters = trace.evidence().cells, by_hand(trace, "restoration")
    for component, layer, position in ((0, 1, 1), (1, 2, 3), (2, 0, 1)):
        values = clusters[:, component, layer, position]
        cell = cells.isel(component=component, layer=layer, position=position)
        interval = stats.bootstrap((values,), np.mean, n_resamples=20_000, rng=1).confidence_interval
        width = interval.high - interval.low
        assert cell.restoration_low.item() == pytest.approx(interval.low, abs=0.05 * width)
        assert cell.restoration_high.item() == pytest.approx(interval.high, abs=0.05 * width)
        flips = stats.permutation_test(
            (values,), lambda x: abs(np.mean(x) / np.std(x, ddof=1)), permutation_type="samples", alternative="greater"
        )
        assert cell.restoration_p.item() == pytest.approx(flips.pvalue)
        assert cell.restoration_p_adjusted >= cell.restoration_p
    ok = cells.status.values == "ok"
    assert_allclose(cells.restoration_q.values[ok], stats.false_discovery_control(cells.restoration_p.values[ok]))


def test_what_is_known_beforehand_is_in_no_family(trace):
    cells = trace.evidence().cells
    status, zeros = cells.status, trace.effects.status.sel(metric="logit_diff")
    assert (status.sel(position=0) == "structural_zero").all()
    assert status.sel(component="resid_post", layer=3, position=3).item() == "cut"
    assert status.sel(component="mlp_out", layer=1, position=1).item() == "ok"
    for name in ("structural_zero", "cut"):
        assert ((status == name) == (zeros == name).all("pair")).all()
    assert (cells.restoration_p.notnull() == (status == "ok")).all()
    assert (cells.restoration_q.notnull() == (status == "ok")).all()
    for half, stable in trace.evidence().peaks.values():
        assert half.index is not None
        assert half.index == stable.index


def test_the_peak_is_the_largest_mean(trace):
    found = trace.evidence()
    for component, (half, _) in found.peaks.items():
        mean = found.cells.restoration.where(found.cells.status == "ok").sel(component=component)
        assert half.index == np.unravel_index(int(np.argmax(abs(mean).fillna(-1).values)), mean.shape)


def test_prompts_of_different_lengths_meet_by_role(model):
    pairs = [pair(n) if n % 2 else longer(n) for n in range(10)]
    trace = ct.trace(model, pairs)
    cells = trace.evidence().cells
    assert cells.position.values.tolist() == [
        "before_subject",
        "subject_first",
        "subject_last",
        "next",
        "further",
        "last",
    ]
    raw = trace.effects.restoration.sel(metric="logit_diff").transpose("pair", "component", "layer", "position").values
    short, long = raw[1::2], raw[0::2]
    expected = {
        "before_subject": np.concatenate([short[..., 0], long[..., :2].mean(-1)]),
        "subject_first": long[..., 2],  # a subject of one token has a last one only
        "subject_last": np.concatenate([short[..., 1], long[..., 3]]),
        "next": np.concatenate([short[..., 2], long[..., 4]]),
        "further": long[..., 5],
        "last": np.concatenate([short[..., 3], long[..., 6]]),
    }
    for role, values in expected.items():
        assert_allclose(cells.restoration.sel(position=role), values.mean(0), rtol=0, atol=1e-12, err_msg=role)
        assert (cells.clusters.sel(position=role) == len(values)).all()
    assert cells.restoration_low.sel(position="next").notnull().all()
    assert cells.restoration_low.sel(position="further").isnull().all()  # five pairs have it


def test_tokens_beside_roles_go_by_role_as_tokens_alone_do(model):
    """Token 2 is next to the subject in some pairs and its first token in others: never averaged as one column."""
    pairs = [*(pair(n) for n in range(5)), *(longer(n) for n in range(5, 9))]
    some: dict[str, Any] = {"components": ["mlp_out"]}
    mixed, tokens, roles = (
        ct.trace(model, pairs, positions=positions, **some) for positions in ([2, 6, "last"], [2, 6], ["last"])
    )
    found, by_role, last = (trace.evidence().cells for trace in (mixed, tokens, roles))
    columns = found.position.values.tolist()
    assert columns == ["before_subject", "subject_first", "subject_last", "next", "further", "last"]
    for name in ("restoration", "interaction", "restoration_low"):
        assert_allclose(found[name][..., :-1], by_role[name].sel(position=columns[:-1]), rtol=0, atol=1e-5)
        assert_allclose(found[name][..., -1:], last[name], rtol=0, atol=1e-5)
    assert (found.clusters.sel(position="next") == 5).all()
    assert (found.clusters.sel(position="subject_first") == 4).all()
    assert (found.clusters.sel(position="last") == 9).all()
    same = ct.trace(model, pairs[:5], positions=[2, "last"], **some).evidence().cells
    assert same.position.values.tolist() == [2, "last"]


def test_tokens_beside_roles_have_no_mean_without_subjects(model):
    pairs = [pair(n, subject=None, corrupt_subject=None) for n in range(2)]
    pairs = [*pairs, ct.Pair(clean=" w11 w9 w14", corrupt=" w11 w13 w14", **ANSWERS)]
    found = ct.trace(model, pairs, positions=[1, "last"], components=["mlp_out"])
    with pytest.raises(NoMean, match="different lengths and no subjects"):
        found.evidence()


def test_roles_that_were_asked_for_stay(model):
    pairs = [pair(n) if n % 2 else longer(n) for n in range(8)]
    cells = ct.trace(model, pairs, positions=["subject_last", "last"]).evidence().cells
    assert cells.position.values.tolist() == ["subject_last", "last"]
    by_token = ct.trace(model, pairs).evidence().cells.sel(position=["subject_last", "last"])
    assert_allclose(cells.disruption, by_token.disruption, rtol=0, atol=1e-4)


def test_the_order_of_pairs_changes_nothing(model):
    pairs = [pair(n, id=f"p{n}") for n in range(9)]
    one, other = (ct.trace(model, each).evidence().cells for each in (pairs, pairs[::-1]))
    for name in one.data_vars:
        if one[name].dtype.kind == "f":
            assert_allclose(
                one[name], other[name], rtol=0, atol=2e-3 if "_p" in str(name) or "_q" in str(name) else 1e-4
            )


def test_there_is_no_mean_where_nothing_means_the_same(model):
    without = [
        ct.Pair(clean=" w1 w2 w3", corrupt=" w1 w4 w3", **ANSWERS),
        ct.Pair(clean=" w1 w2", corrupt=" w4 w2", **ANSWERS),
    ]
    trace = ct.trace(model, without)
    with pytest.raises(NoMean, match="different lengths and no subjects"):
        trace.evidence()
    assert "There is no mean over these pairs: These prompts have different lengths" in trace.summary()
    with pytest.raises(NoMean, match="One pair has no mean"):
        ct.trace(model, without[0]).evidence()
    with pytest.raises(InvalidOption, match="no metric 'wit' in this trace"):
        mean_map(trace.measurements, metric="wit")


def test_the_words_carry_their_intervals(trace):
    found, said = trace.evidence(), trace.summary()
    assert "Mean over 12 pairs in 10 clusters" in said
    total = f"{float(found.total.estimate):.2f} [{float(found.total.low):.2f}, {float(found.total.high):.2f}] logits"
    assert f"total effect {total.replace('-', '−')}" in said
    half, stable = found.peaks["mlp_out"]
    assert half.index is not None
    layer, position = half.index
    cell = found.cells.sel(component="mlp_out").isel(layer=layer, position=position)
    low, high = cell.restoration_low.item(), cell.restoration_high.item()
    numbers = f"{number(cell.restoration.item())} [{number(low)}, {number(high)}]"
    assert f"Strongest mlp_out site: layer {int(cell.layer)} at" in said
    assert f"restoring it brings back {numbers} logits" in said
    assert f"within one layer of it in {round(100 * stable.within_one_layer)} % of resamples" in said
    for component, (_, each) in found.peaks.items():
        assert (f"The peak of {component} is unstable" in said) == (each.within_one_layer < 0.8)


def test_few_pairs_are_said_to_be_few(model):
    said = ct.trace(model, [pair(n) for n in range(5)]).summary()
    assert "Fewer than 8 clusters: means without intervals" in said
    assert "the smallest p that can be is 0.062: no test can reach 0.05" in said
    assert "[" not in said.split("What this does not show")[0]


def test_a_total_effect_of_none_is_said(trace):
    found = trace.evidence()
    contains = float(found.total.low) <= 0 <= float(found.total.high)
    assert contains == ("The total effect's interval contains 0" in trace.summary())
    assert contains == bool(np.isnan(found.cells.restored_fraction).all())
    if contains:
        assert (found.cells.restored_fraction_reason == "the interval of the denominator contains 0").all()


def test_pairs_without_the_metric_are_not_counted(model):
    pairs = [pair(n, foil=None) if n < 3 else pair(n) for n in range(12)]
    trace = ct.trace(model, pairs, metric="logit_diff")
    found = trace.evidence()
    assert (found.pairs, len(found.undefined), found.clusters) == (9, 3, 9)
    values = trace.effects.restoration.sel(metric="logit_diff").transpose("pair", ...).values
    assert_allclose(found.cells.restoration, values[3:].mean(0), rtol=0, atol=1e-12)
    assert "Mean over 9 of 12 pairs (3 without logit_diff)" in trace.summary()
    assert trace.evidence(metric="log_prob").pairs == 12
    with pytest.raises(NoMean, match="fewer than two pairs have entropy: entropy is shown raw"):
        trace.evidence(metric="entropy")
    with pytest.raises(ValueError, match="read-only"):  # what was computed of it is kept
        trace.measurements.maps["blocks"].restored[0, 5, 0, 0, 1] = np.inf
    infinite = trace.measurements.maps["blocks"].copy(deep=True)
    infinite.restored[0, 5, 0, 0, 1] = np.inf
    with pytest.raises(NoMean, match="restoration by logit_diff is infinite"):
        ct.Trace(replace(trace.measurements, maps={"blocks": infinite})).evidence()


def test_all_metrics_but_entropy_have_evidence(trace):
    for metric in ("log_prob", "prob", "neg_kl"):
        assert trace.evidence(metric=metric).cells.restoration.notnull().all()
    assert isinstance(trace.evidence().cells, xr.Dataset)


@pytest.fixture(scope="module")
def units(model) -> ct.Trace:
    """Heads of each kind at every position, some neurons at the last; nine pairs, of which two are one fact."""
    pairs = [pair(n, cluster="fact" if n < 2 else None) for n in range(9)]
    return ct.trace(model, pairs, components=["mlp_out"], heads=["z", "k"], neurons={1: [0, 3, 5], 3: [2, 4, 7]})


@pytest.mark.parametrize("of", ["heads", "neurons"])
@pytest.mark.parametrize("name", ["restoration", "disruption", "interaction"])
def test_single_heads_and_neurons_have_means_and_intervals(units, of, name):
    found = units.evidence(of)
    assert (found.kind, found.pairs, found.clusters) == (of, 9, 8)
    values = getattr(units, of)[name].sel(metric="logit_diff").transpose("pair", ..., "position").values
    clusters = np.concatenate([values[:2].mean(0)[None], values[2:]])
    assert found.cells[name].dims == ("component", "layer", of[:-1], "position")
    assert_allclose(found.cells[name], clusters.mean(0), rtol=0, atol=1e-12)
    here = tuple(np.argwhere((found.cells.status == "ok").values)[-1])
    column = clusters[(slice(None), *here)]
    low, high = stats.bootstrap((column,), np.mean, n_resamples=20_000, method="BCa", rng=1).confidence_interval
    assert_allclose(found.cells[f"{name}_low"].values[here], low, rtol=0.1, atol=2e-3)
    assert_allclose(found.cells[f"{name}_high"].values[here], high, rtol=0.1, atol=2e-3)


def test_the_family_of_heads_is_their_whole_map(units):
    """Max-T over all heads, layers and positions, by every flip of the eight clusters' signs."""
    found = units.evidence("heads")
    values = units.heads.restoration.sel(metric="logit_diff").transpose("pair", ..., "position").values
    family = (found.cells.status == "ok").values
    columns = np.concatenate([values[:2].mean(0)[None], values[2:]])[:, family]
    signs = np.array(np.meshgrid(*[[1, -1]] * 8)).reshape(8, -1).T

    def t(flipped: np.ndarray) -> np.ndarray:
        return np.abs(flipped.mean(0) / flipped.std(0, ddof=1))

    observed, strongest = t(columns), np.array([t(columns * each[:, None]).max() for each in signs])
    top = observed.argmax()
    p = found.cells.restoration_p_adjusted.values
    assert_allclose(p[family][top], (strongest >= observed[top] - 1e-9).mean(), rtol=0, atol=1e-12)
    assert np.isnan(p[~family]).all()


def test_the_words_name_the_strongest_head_and_neuron(units):
    said = units.summary()
    for of, one in (("heads", "z"), ("heads", "k"), ("neurons", "neurons")):
        found = units.evidence(of)
        cells = found.cells.sel(component=one)
        mean = abs(cells.restoration.where(cells.status == "ok"))
        layer, unit, position = np.unravel_index(int(mean.fillna(-1).values.argmax()), mean.shape)
        place = f"layer {int(cells.layer[layer])}, {of[:-1]} {int(cells[of[:-1]][unit])}"
        column = cells.position.values.tolist()[position]
        where = f"token {column}" if isinstance(column, int) else f"the {column} token"
        size = number(float(cells.restoration[layer, unit, position]))
        assert f"Strongest {one} site: {place} at {where}; restoring it brings back {size} [" in said


@pytest.mark.parametrize("of", ["heads", "neurons"])
def test_the_document_has_the_evidence_of_heads_and_neurons(units, of):
    found, said = units.evidence(of), document(units.measurements)[of]["evidence"]
    for component in map(str, found.cells.component.values):
        cells, written = found.cells.sel(component=component), said["cells"]["disruption"][component]
        for part, name in (("mean", "disruption"), ("low", "disruption_low"), ("p_adjusted", "disruption_p_adjusted")):
            assert_allclose(np.array(written[part], dtype=float), cells[name])
        peak = found.peak(component)
        place = {name: said["peaks"][component][name] for name in ("layer", of[:-1], "position")}
        assert place == {name: peak[name].item() for name in place}
        assert abs(peak.restoration.item()) == abs(cells.restoration.where(cells.status == "ok")).max().item()


def test_words_are_resampled_once(units, monkeypatch):
    said = units.summary()
    monkeypatch.setattr("causal_tracing.results.means.tested", None)
    assert units.summary() == said
    assert document(units.measurements)["evidence"]["pairs"] == 9
    assert "95 % interval" in units.to_html()


def test_heads_without_a_mean_are_said_to_have_none(model):
    pairs = [pair(n, subject=None, corrupt_subject=None) for n in range(8)]
    pairs.append(ct.Pair(clean=" w11 w14 w9", corrupt=" w11 w13 w9", **ANSWERS))
    found = ct.trace(model, pairs, positions=["last"], components=["mlp_out"], heads=["z"])
    assert "Strongest mlp_out site: layer" in found.summary()
    assert "There is no mean of heads over these pairs: These prompts have different lengths" in found.summary()
    with pytest.raises(NoMean, match="no column means the same"):
        found.evidence("heads")
