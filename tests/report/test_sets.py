"""What is patched together in everything that leaves a trace: tables, files, figures, scalars, terminals, notebooks."""

from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas
import pytest
import xarray as xr
from rich.console import Console

import causal_tracing as ct
from causal_tracing.errors import InvalidOption, InvalidResults
from causal_tracing.report.terminal import maps
from joint import PAIR, others, tiny

matplotlib.use("agg")
KINDS = ("sets", "growing", "interactions")
ASKED: dict[str, Any] = {
    "components": [],
    "sets": {"both": ["mlp_out 1 @ last", "z 2.0-1 @ last"], "of the subject": ["resid_post 1 @ subject"]},
    "growing": ["both"],
    "interactions": ["z 2.0 @ last", "z 2.1 @ last", "mlp_out 1 @ last"],
    "progress": False,
}
COLUMNS = {
    "sets": ["component", "set"],
    "growing": ["component", "set", "size"],
    "interactions": ["component", "site", "partner"],
}
EFFECTS = [f"{name}{end}" for name in ("restoration", "disruption") for end in ("", "_of_members", "_beyond_sum")]


@pytest.fixture(scope="module")
def one() -> ct.Trace:
    return ct.trace(tiny(), PAIR, **ASKED)


@pytest.fixture(scope="module")
def many() -> ct.Trace:
    return ct.trace(tiny(), others(4), **ASKED)


def test_what_is_saved_opens_as_it_was(one: ct.Trace, many: ct.Trace, tmp_path: Path) -> None:
    for trace, name in ((one, "one"), (many, "many")):
        trace.save(tmp_path / name)
        again = ct.open_trace(tmp_path / name)
        assert again.measurements.kinds == KINDS
        assert all(again.of(kind).identical(trace.of(kind)) for kind in KINDS)
        assert again.summary() == trace.summary()


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_is_its_cell(one: ct.Trace, kind: str, tmp_path: Path) -> None:
    found = one.of(kind).sel(metric="logit_diff", pair="pair-0")
    table = one.to_dataframe(kind)
    axes = COLUMNS[kind]
    assert {*EFFECTS} <= {*table.effect}
    for effect in EFFECTS:
        rows = table[table.effect == effect].set_index(axes)
        assert len(rows) == found[effect].size
        for at in product(*(found[axis].values.tolist() for axis in axes)):
            value = found[effect].sel(dict(zip(axes, at, strict=True))).item()
            np.testing.assert_equal(rows.loc[at].logit_diff, value)
    for ending, read in (("csv", pandas.read_csv), ("parquet", pandas.read_parquet)):
        one.export(tmp_path / f"table.{ending}", of=kind)
        again = read(tmp_path / f"table.{ending}")
        assert again[axes].astype(str).values.tolist() == table[axes].astype(str).values.tolist()
        np.testing.assert_allclose(again.logit_diff, table.logit_diff, rtol=1e-12)
    one.export(tmp_path / "table.nc", of=kind)
    with xr.open_dataset(tmp_path / "table.nc") as kept:
        assert [*kept.restoration.dims][2:] == axes
        np.testing.assert_array_equal(kept.disruption_beyond_sum, one.of(kind).disruption_beyond_sum)


def test_the_strongest_are_listed(one: ct.Trace) -> None:
    sizes = abs(one.of("sets").restoration.sel(metric="logit_diff").squeeze())
    assert one.top(of="sets").set.tolist() == sizes.sortby(sizes, ascending=False).set.values.tolist()
    assert len(one.top(1, of="growing")) == 1
    pairs = one.top(of="interactions")
    assert "alone" not in {*pairs.part, *pairs.partner}
    with pytest.raises(InvalidOption, match="There is no"):
        one.top(of="set")


def test_scalars_are_numbers_with_names(one: ct.Trace, many: ct.Trace) -> None:
    for trace in (one, many):
        found = trace.scalars()
        assert {"set/restoration", "growing_set/restoration", "pair_of_sites/restoration_beyond_sum"} <= {*found}
        assert all(np.isfinite(value) for value in found.values())
    told = one.top(1, of="interactions").restoration_beyond_sum.item()
    assert one.scalars()["pair_of_sites/restoration_beyond_sum"] == told


@pytest.mark.parametrize("name", KINDS)
def test_figures_draw(one: ct.Trace, many: ct.Trace, name: str) -> None:
    from matplotlib import pyplot

    for trace, called in ((one, name), (many, name), (many, f"mean_{name}")):
        figure = trace.plot(called)
        figure.canvas.draw()
        assert any(axes.has_data() for axes in figure.axes)
        pyplot.close(figure)


def test_a_map_of_pairs_is_drawn_without_its_margins(one: ct.Trace) -> None:
    from matplotlib import pyplot

    figure = one.plot("interactions")
    labels = {label.get_text() for axes in figure.axes for label in (*axes.get_xticklabels(), *axes.get_yticklabels())}
    assert "z 2.0 @ last" in labels
    assert "alone" not in labels
    pyplot.close(figure)


def test_figures_of_what_was_not_measured_say_how_to_ask() -> None:
    trace = ct.trace(tiny(), PAIR, components=["mlp_out"], layers=[1], progress=False)
    with pytest.raises(InvalidOption, match=r"This trace has no sets. Measure them with trace\(..., sets="):
        trace.plot("sets")
    with pytest.raises((InvalidOption, InvalidResults), match="interactions"):
        trace.plot("interactions")


def test_a_terminal_has_a_map_of_pairs_and_none_of_sets(one: ct.Trace, many: ct.Trace) -> None:
    def shown(trace: ct.Trace) -> str:
        console = Console(width=120, record=True, file=StringIO())
        for each in maps(trace.measurements, colour=False, most_pairs=2):
            console.print(each)
        return console.export_text()

    assert shown(one) == ""
    alone = ct.trace(tiny(), PAIR, **ASKED | {"sets": None, "growing": False})
    assert "pair_of_sites: " in shown(alone)
    assert "z 2.0 @ last" in shown(alone)
    assert shown(many) == ""


def test_a_notebook_shows_words(one: ct.Trace, many: ct.Trace) -> None:
    for trace in (one, many):
        html = trace._repr_html_()
        assert "<script" not in html
        assert "Strongest set" in html
        assert "nan" not in html.lower()


def test_a_growing_set_is_drawn_by_its_size(one: ct.Trace, many: ct.Trace) -> None:
    found = one.of("growing").sel(metric="logit_diff", component="growing_set").isel(pair=0)
    figure = one.plot("growing")
    for axes, effect in zip(figure.axes, ("restoration", "disruption"), strict=True):
        curves = {str(line.get_label()): np.array(line.get_xydata()) for line in axes.lines[:-1]}
        assert [*curves] == [str(name) for name in found["set"].values]
        for name, points in curves.items():
            expected = found[effect].sel(set=name).dropna("size")
            np.testing.assert_allclose(points, np.stack([expected["size"], expected], 1))
    mean = many.plot("mean_growing").axes[0]
    assert len(mean.collections) == found.sizes["set"]  # the intervals


def test_names_are_text_in_figures() -> None:
    """What stands between two $ is mathematics to matplotlib, and a mistake in it an error."""
    sets = {"$\\frac$": ["z 1.0 @ last", "z 1.1 @ last"], "b $5 and $6": ["z 2.0 @ last", "mlp_out 2 @ last"]}
    asked: dict[str, Any] = {"components": [], "sets": sets, "growing": True, "directions": ["restoration"]}
    trace = ct.trace(tiny(), PAIR, **asked, progress=False, spot_checks=0)
    for kind in ("sets", "growing"):
        figure = trace.plot(kind)
        figure.canvas.draw()
        (axes,) = figure.axes
        legend = axes.get_legend()
        written = [*axes.texts, *(legend.get_texts() if legend else [])]
        assert {text.get_text() for text in written} >= {r"\$\frac\$", r"b \$5 and \$6"}


def test_a_curve_at_a_position_is_none_of_sets(one: ct.Trace) -> None:
    with pytest.raises(InvalidOption, match=r"the sets of this trace have none: use trace.of\('sets'\)"):
        one.curve("last")
