"""Maps as they fill: what is handed out, in which order, and that it ends with an unwatched trace's numbers."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import causal_tracing as ct
from causal_tracing.experiments.trace import measured
from causal_tracing.models.model import Model
from causal_tracing.patching import measure as measuring
from causal_tracing.patching.job import plan_job
from causal_tracing.patching.measure import Filled, coarse_to_fine
from causal_tracing.patching.options.trace import Options
from causal_tracing.results.effects import effects
from joint import tiny

PAIRS = [
    ct.Pair(clean=f" w11 w12 w{13 + n} w14 w15", corrupt=f" w11 w12 w{43 + n} w14 w15", answer=" w7", foil=" w8")
    for n in range(3)
]


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


def filled(model: Model, **options) -> tuple[list[Filled], ct.Trace]:
    seen: list[Filled] = []
    job = plan_job(model, PAIRS, Options(heads=["z"], spot_checks=0, **options))
    return seen, ct.Trace(measured(job, None, seen.append))


def test_what_was_handed_out_ends_as_the_trace(model, monkeypatch):
    monkeypatch.setattr(measuring, "AT_ONCE_SHOWN", 50)
    seen, trace = filled(model)
    unwatched = ct.trace(model, PAIRS, heads=["z"])
    for kind in ("blocks", "heads"):
        for number, pair in enumerate(unwatched.effects.pair.values):
            mine = [one for one in seen if (one.kind, one.pair) == (kind, number)]
            assert len(mine) > 2
            last = effects(mine[-1].measurements, kind).sel(pair=pair)
            expected = effects(unwatched.measurements, kind).sel(pair=pair)
            for name in ("restoration", "disruption", "total_effect"):
                assert_allclose(last[name], expected[name], rtol=0, atol=1e-5)
            places = [at for one in mine for at in one.new]
            everything = {*np.ndindex(*mine[-1].measurements.maps[kind].structural_zero.isel(pair=0).shape)}
            assert {*places} == everything
    assert_allclose(trace.effects.restoration, unwatched.effects.restoration, rtol=0, atol=1e-5)
    assert_array_equal(trace.effects.status, unwatched.effects.status)


def test_what_is_not_there_yet_is_nan(model, monkeypatch):
    monkeypatch.setattr(measuring, "AT_ONCE_SHOWN", 50)
    seen, _ = filled(model)
    first = seen[0]
    numbers = effects(first.measurements, first.kind).sel(metric="logit_diff").squeeze("pair")
    there = numbers.restoration.notnull().transpose("component", "layer", "position").values
    assert {tuple(at) for at in np.argwhere(there)} == {*first.new}
    assert not there.all()
    assert np.isfinite(numbers.total_effect)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 12, 30, 64])
def test_layers_come_from_coarse_to_fine_each_once(count):
    rounds = list(coarse_to_fine(count))
    assert sorted(layer for layers in rounds for layer in layers) == list(range(count))
    assert all(rounds)
    for n in range(1, len(rounds)):  # what is there after each round leaves no gap wider than before
        gaps = [np.diff(sorted(layer for layers in rounds[:m] for layer in layers)).max(initial=0) for m in (n, n + 1)]
        assert gaps[1] <= gaps[0]
    if count >= 12:
        assert len(rounds[0]) <= 4


def test_a_sink_stops_the_work(model):
    def enough(one: Filled) -> None:
        raise KeyboardInterrupt("enough")

    job = plan_job(model, PAIRS, Options())
    with pytest.raises(KeyboardInterrupt, match="enough"):
        measured(job, None, enough)


def test_progress_never_goes_down_and_moves_within_a_single_pair(model):
    told: list[tuple[int, int]] = []
    ct.trace(model, PAIRS[0], heads=["z"], neurons=True, progress=lambda *each: told.append(each))
    done = [each for each, _ in told]
    assert done == sorted(done)
    assert done[-1] == told[-1][1]
    assert len({*done}) > 10


def test_progress_can_stop_the_work(model):
    def stop(done: int, total: int) -> None:
        if done > total / 3:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        ct.trace(model, PAIRS, progress=stop)


def test_whole_forwards_are_few_however_many_cells_are_checked_again(model: Model) -> None:
    """One record serves preview, clean log-probabilities and base runs; repeats ride along; checks share a batch."""
    forwards: list[int] = []
    handle = model.network.register_forward_pre_hook(
        lambda *given: forwards.append(given[2]["input_ids"].shape[1]), with_kwargs=True
    )
    counts = []
    for spot_checks in (
        8,
        8,
        1,
        0,
    ):  # the first also compares the engines with that hook, and measures what a row takes
        forwards.clear()
        ct.trace(model, PAIRS[0], components=["resid_post"], spot_checks=spot_checks, progress=False)
        counts.append(len(forwards))
    handle.remove()
    length = 5
    assert counts[3] < counts[1] == counts[2] <= 12
    assert forwards.count(length) <= 2
