"""The lens over layers and over pairs, worked by hand: since when something holds, tables, means and their columns."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from numpy.testing import assert_allclose

from causal_tracing.errors import InvalidOption
from causal_tracing.results.lens import at_the_end, layer_from, lens_of, lens_table, mean_at_the_end, mean_lens
from causal_tracing.results.means import NoMean
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.storage.join import joined
from causal_tracing.results.storage.saved import open_measurements, save
from made import measurements

AXES = ("pair", "run", "layer", "token")
LAYERS = [-1, 0, 1]


def one(id: str, seed: int, *, tokens: int = 3, foil: bool = True) -> Measurements:
    """A pair of some tokens whose lens holds random numbers."""
    made, random = measurements(np.zeros((2, tokens)), np.zeros((2, tokens))), np.random.default_rng(seed)
    shape = (1, 2, len(LAYERS), tokens)
    names = ("top_prob", "answer_logit", "answer_prob", "answer_rank", "foil_logit", "foil_prob", "foil_rank")
    data: dict[str, Any] = {name: (AXES, random.normal(size=shape).astype(np.float32)) for name in names}
    if not foil:
        data |= {name: (AXES, np.full(shape, np.nan, np.float32)) for name in names if name.startswith("foil")}
    data["top"] = (AXES, np.full(shape, " yes", object))
    data["top_id"] = (AXES, np.full(shape, 7, np.int32))
    coordinates = {"pair": np.array([id], object), "run": np.array(["clean", "corrupt"], object), "layer": LAYERS}
    maps = {name: each.assign_coords(pair=[id]).isel(position=slice(3)) for name, each in made.maps.items()}
    lens = xr.Dataset(data, coordinates)
    return Measurements(pairs=made.pairs.assign_coords(pair=[id]), maps=maps, provenance={}, lens=lens)


def several(*parts: Measurements, clusters: dict[str, str] | None = None) -> Measurements:
    pairs = [{"id": str(part.pairs.pair.item()), "cluster": (clusters or {}).get(str(part.pairs.pair.item()))}
             for part in parts]  # fmt: skip
    return joined(parts, {"pairs": pairs})


@pytest.mark.parametrize(
    ("holds", "layer"),
    [([0, 0, 1], 1), ([0, 1, 1], 0), ([1, 1, 1], -1), ([1, 0, 1], 1), ([1, 1, 0], None), ([0, 0, 0], None)],
)
def test_since_when_something_holds_to_the_end(holds: list[int], layer: int | None):
    assert layer_from(LAYERS, list(map(bool, holds))) == layer


def test_the_table_has_a_row_for_each_token_that_there_is():
    both = several(one("p", 0), one("q", 1, tokens=4))
    table, lens = lens_table(both), both.lens
    assert lens is not None
    assert len(table) == 2 * 3 * (3 + 4)
    row = table[(table.pair == "q") & (table.run == "corrupt") & (table.layer == 0) & (table.position == 3)].iloc[0]
    here = lens.sel(pair="q", run="corrupt", layer=0).isel(token=3)
    assert row.answer_logit == here.answer_logit.item()
    assert row.logit_diff == here.answer_logit.item() - here.foil_logit.item()
    assert (row.text, row.role, row.top, row.top_id) == (" t3", "last", " yes", 7)
    assert not ((table.pair == "p") & (table.position == 3)).any()


def test_the_end_is_each_runs_own_last_token():
    made = one("p", 0)
    made.pairs["corrupt_length"].values[:] = 2
    found, lens = at_the_end(made, "p"), lens_of(made).sel(pair="p")
    assert_allclose(found.logit_diff.sel(run="clean"), lens.logit_diff.sel(run="clean").isel(token=2))
    assert_allclose(found.logit_diff.sel(run="corrupt"), lens.logit_diff.sel(run="corrupt").isel(token=1))


def test_means_are_over_clusters_and_by_token_where_all_have_the_same_roles():
    parts = [one(f"p{n}", n) for n in range(9)]
    means = mean_lens(several(*parts, clusters={"p0": "a", "p1": "a"}))
    each = np.concatenate([(lens_of(part)).logit_diff.transpose(*AXES).values for part in parts]).astype(float)
    by_cluster = np.concatenate([each[:2].mean(0, keepdims=True), each[2:]])
    assert means.position.values.tolist() == [0, 1, 2]
    assert_allclose(means.logit_diff, by_cluster.mean(0), rtol=1e-6)
    assert (means.clusters == 8).all()
    assert (means.logit_diff_low < means.logit_diff).all()
    assert (means.logit_diff < means.logit_diff_high).all()
    assert_allclose(mean_at_the_end(several(*parts)).logit_diff, each.mean(0)[:, :, 2], rtol=1e-6)
    few = mean_lens(several(*parts[:3]))
    assert few.answer_prob_low.isnull().all()
    assert few.answer_prob.notnull().all()


def test_of_other_lengths_the_means_are_by_role():
    """Four tokens have two of the role subject_last, which are averaged first."""
    parts = [one("p", 0), one("q", 1, tokens=4)]
    means = mean_lens(several(*parts))
    first, second = (lens_of(part).logit_diff.transpose(*AXES).values[0].astype(float) for part in parts)
    assert means.position.values.tolist() == ["subject_first", "subject_last", "last"]
    expected = (first[..., 1] + second[..., 1:3].mean(-1)) / 2
    assert_allclose(means.logit_diff.sel(position="subject_last"), expected, rtol=1e-6)
    at_end = mean_at_the_end(several(*parts))
    assert_allclose(at_end.logit_diff, (first[..., 2] + second[..., 3]) / 2, rtol=1e-6)


def test_without_subjects_only_the_last_token_is_the_same_in_each_pair():
    parts = [one("p", 0), one("q", 1, tokens=4)]
    for part in parts:
        for run in ("clean", "corrupt"):
            part.pairs[f"{run}_role"].values[:, :-1] = ""
    assert mean_lens(several(*parts)).position.values.tolist() == ["last"]


def test_where_there_is_no_mean():
    with pytest.raises(NoMean, match="One pair has no mean"):
        mean_lens(one("p", 0))
    infinite = several(one("p", 0), one("q", 1))
    assert infinite.lens is not None
    infinite.lens.answer_logit.values[0, 0, 0, 0] = np.inf
    with pytest.raises(NoMean, match="logit_diff of the lens is infinite"):
        mean_lens(infinite)
    without = several(one("p", 0, foil=False), one("q", 1, foil=False))
    assert mean_lens(without).logit_diff.isnull().all()
    assert mean_lens(without).answer_prob.notnull().all()
    with pytest.raises(InvalidOption, match="no logit lens"):
        mean_lens(measurements(np.zeros((2, 3)), np.zeros((2, 3))))


def test_it_is_kept_with_the_trace(tmp_path: Any):
    both = several(one("p", 0), one("q", 1, tokens=4))
    save(both, tmp_path / "saved")
    again = open_measurements(tmp_path / "saved")
    assert again.lens is not None
    xr.testing.assert_identical(again.lens, both.lens)
    assert again.lens.top_id.dtype == np.int32
    assert again.lens.answer_prob.dtype == np.float32
    alone = again.of_pair("q")
    assert alone.lens is not None
    assert alone.lens.pair.values.tolist() == ["q"]
    mixed = joined(
        [one("p", 0), Measurements(pairs=both.of_pair("q").pairs, maps=both.of_pair("q").maps, provenance={})], {}
    )
    assert mixed.lens is None
