"""Figures say what the effects say; looks are for eyes, numbers for tests."""

import io
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from rich.cells import cell_len
from rich.console import Console

from causal_tracing.errors import InvalidOption
from causal_tracing.interventions.sites import WHOLE
from causal_tracing.report.figures.curves import lines
from causal_tracing.report.figures.look import Look
from causal_tracing.report.figures.plot import plot
from causal_tracing.report.terminal import heat_maps
from causal_tracing.results.effects import effects
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.select import select
from made import measurements, taken_apart

mpl.use("Agg")

RESTORED = [[2.5, 1.0, np.nan], [1.0, 0.5, 3.0]]
DISRUPTED = [[0.5, 3.0, 3.0], [3.0, 2.5, 1.0]]


@pytest.fixture
def example() -> Measurements:
    flags: dict[str, Any] = {"structural_zero": [[0, 1, 0], [0, 0, 0]], "cut": [[0, 0, 0], [0, 0, 1]]}
    made = measurements(RESTORED, DISRUPTED, **flags)
    made.numbers()["clean_token"].values[0, 1] = " $x_1$\n"
    return made


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def image(figure, panel: int) -> np.ndarray:
    return figure.axes[panel].images[0].get_array().filled(np.nan)


def test_the_map_shows_the_effects_on_one_scale(example: Measurements):
    found = effects(example).sel(metric="logit_diff", pair="p", component="resid_post")
    figure = plot(example)
    figure.canvas.draw()
    for panel, name in enumerate(("restoration", "disruption")):
        np.testing.assert_array_equal(image(figure, panel), found[name].transpose("position", "layer"))
        assert figure.axes[panel].images[0].get_clim() == (-2.5, 2.5)
        assert figure.axes[panel].get_title() == f"resid_post: {name}"
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["0 t0", r"1 \$x_1\$\n | t1", "2 t2"]
    panel: Any = figure.axes[0]
    assert [patch.get_xy() for patch in panel.patches if patch.get_hatch()] == [(-0.5, 1.5)]
    assert [patch.get_xy() for patch in panel.patches if not patch.get_hatch()] == [(0.5, 1.5)]
    assert panel.lines[0].get_xydata().tolist() == [[0, 1]]


def test_the_recipe_pages_orientation(example: Measurements):
    found = effects(example).sel(metric="logit_diff", pair="p", component="resid_post")
    figure = plot(example, effect="interaction", orient="layers_down", vocabulary="pearl")
    np.testing.assert_array_equal(image(figure, 0), found.interaction.transpose("layer", "position"))
    assert figure.axes[0].get_title() == "resid_post: interaction (mediated interaction)"


def test_bars_by_layer(example: Measurements):
    figure = plot(example, "layers", position=0)
    heights = [[bar.get_height() for bar in bars] for bars in figure.axes[0].containers]
    assert heights == [[1.5, 0.0], [2.5, 0.0]]
    strongest = plot(example, "layers")
    assert "0 t0" in strongest.axes[0].get_title()


def test_mlp_against_attention(example: Measurements):
    cells = [name for name in example.numbers() if "component" in example.numbers()[name].dims]
    mlp = example.numbers()[cells].assign_coords(component=["mlp_out"])
    attention = (example.numbers()[cells] + 1).assign_coords(component=["attn_out"])
    data = xr.concat([mlp, attention], "component").astype(float)
    data = data.assign({name: data[name].astype(bool) & False for name in ("structural_zero", "cut", "unpaired")})
    data = data.merge(example.numbers().drop_dims("component"))
    both = taken_apart(data, example.provenance)
    figure = plot(both, "mlp_vs_attention", position=1, effect="restoration")
    curves = {line.get_label(): np.array(line.get_ydata()) for line in figure.axes[0].lines[:2]}
    np.testing.assert_allclose(curves["mlp_out"], [0.0, -0.5])
    np.testing.assert_allclose(curves["attn_out"], [1.0, 0.5])
    with pytest.raises(InvalidOption, match="mlp_out and attn_out missing"):
        plot(example, "mlp_vs_attention")


def test_each_of_many_components_has_its_curve(example: Measurements):
    found = effects(example).sel(metric="logit_diff", pair="p")
    every = found.sel(component=["resid_post"] * len(WHOLE)).assign_coords(component=[*WHOLE])
    axes = lines(every, ["restoration"], Look(position=1)).axes[0]
    assert [line.get_label() for line in axes.lines[: len(WHOLE)]] == [*WHOLE]


@pytest.fixture
def units(example: Measurements) -> Measurements:
    """The example with three heads by z and one by k, and 40 neurons."""
    dims = ("component", "layer", "head", "position")
    values = np.linspace(-1, 1, 2 * 2 * 3 * 3).reshape(1, 1, 2, 2, 3, 3).repeat(len(example.numbers().metric), 0)
    absent = np.zeros((1, 2, 2, 3, 3), bool)
    absent[0, 1, :, 1:] = True
    values = np.where(absent, np.nan, values)
    flags = {name: (("pair", *dims), absent if name == "unpaired" else absent & False) for name in FLAGS}
    raw = {
        "restored": (("metric", "pair", *dims), 1 + values),
        "disrupted": (("metric", "pair", *dims), 3 - 2 * values),
    }
    labels = {"metric": example.numbers().metric.values, "pair": ["p"], "position": [0, 1, 2], "layer": [0, 1]}
    heads = xr.Dataset(raw | flags, {**labels, "component": ["z", "k"], "head": [0, 1, 2]})
    readers = np.array([["", "", ""], ["0, 1, 2", "", ""]], object)
    few = heads.sel(component=["z"], position=[2]).isel(head=[0] * 40).rename(head="neuron")
    few = few.assign_coords(component=["neurons"], neuron=range(40), position=["last"]).copy(deep=True)
    few["restored"].values[...] = 1 + NEURONS[:, :, None]
    return taken_apart(
        example.numbers(),
        example.provenance,
        heads=heads.assign_coords(readers=(("component", "head"), readers)),
        neurons=few,
    )


FLAGS = ("structural_zero", "cut", "unpaired")
NEURONS = np.where(np.arange(40) % 4, 1, -1) / (1 + np.arange(80).reshape(2, 40))  # of two layers, a quarter opposes


def test_maps_of_heads(units: Measurements):
    found = effects(units, "heads").sel(metric="logit_diff", pair="p")
    figure = plot(units, "heads", position=1)
    figure.canvas.draw()
    panels = [(effect, component) for effect in ("restoration", "disruption") for component in ("z", "k")]
    largest = abs(found[["restoration", "disruption"]].sel(position=1)).max().to_array().max().item()
    for n, (effect, component) in enumerate(panels):
        expected = found[effect].sel(component=component, position=1).transpose("head", "layer")
        np.testing.assert_array_equal(image(figure, n), expected)
        assert figure.axes[n].images[0].get_clim() == (-largest, largest)
        assert figure.axes[n].get_title() == rf"{component}: {effect}, 1 \$x_1\$\n | t1"
    panel: Any = figure.axes[1]
    assert [patch.get_xy() for patch in panel.patches if patch.get_hatch()] == [
        (layer - 0.5, head - 0.5) for head in (1, 2) for layer in (0, 1)
    ]
    assert not figure.axes[0].patches
    assert (figure.axes[2].get_xlabel(), figure.axes[2].get_ylabel()) == ("layer", "head")


def test_maps_of_heads_choose_the_strongest_position_or_add_them_up(units: Measurements):
    found = effects(units, "heads").sel(metric="logit_diff", pair="p")
    assert plot(units, "heads").axes[0].get_title() == "z: restoration, 0 t0"
    figure = plot(units, "heads", position="sum", effect="disruption", orient="layers_down")
    expected = found.disruption.sel(component="z").sum("position")
    np.testing.assert_allclose(image(figure, 0), expected.transpose("layer", "head"))
    assert np.isnan(image(figure, 1)[:, 1:]).all()
    assert figure.axes[0].get_title() == "z: disruption, each position alone, added up"


def test_neurons_by_rank(units: Measurements):
    figure = plot(units, "neurons", effect="restoration")
    axes = figure.axes[0]
    _, supports, opposes = axes.lines
    values = NEURONS.ravel()
    np.testing.assert_allclose(np.array(supports.get_ydata()), np.sort(values[values > 0])[::-1])
    np.testing.assert_allclose(np.array(opposes.get_ydata()), np.sort(values[values < 0]))
    assert axes.get_xscale() == "log"
    assert {text.get_text() for text in axes.texts} == {f"layer 0, {neuron}" for neuron in range(8)}
    assert axes.get_title() == "restoration, last, 80 effects"
    second = plot(units, "neurons", effect="restoration", layer=1).axes[0]
    assert second.get_title() == "restoration, layer 1, last, 40 effects"
    np.testing.assert_allclose(np.array(second.lines[2].get_ydata()), np.sort(NEURONS[1][NEURONS[1] < 0]))


def test_figures_of_units_need_units(example: Measurements, units: Measurements):
    for kind in ("heads", "neurons"):
        with pytest.raises(
            InvalidOption, match=rf"This trace has no {kind}. Measure them with trace\(..., {kind}=True"
        ):
            plot(example, kind)
    with pytest.raises(InvalidOption, match="no position 'last' in this trace"):
        plot(units, "heads", position="last")
    with pytest.raises(InvalidOption, match="no layer 7 in this trace"):
        plot(units, "neurons", layer=7)
    assert units.maps["heads"] is not None
    heads = units.maps["heads"].assign_coords(position=["a", "b", "together"])
    named = taken_apart(units.numbers(), units.provenance, heads=heads)
    with pytest.raises(InvalidOption, match="adds up single tokens; these heads were measured at a, b, together"):
        plot(named, "heads", position="sum")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "pie"}, "no plot 'pie'"),
        ({"orient": "up"}, "orient='up' is not known"),
        ({"effect": "direct"}, "mean different things"),
        ({"kind": "layers", "position": 7}, "no position 7 in this trace"),
        ({"pair": "q"}, "no pair 'q' in this trace"),
        ({"layer": 1}, r"layer=1 chooses the neurons of plot\(\"neurons\"\)"),
    ],
)
def test_bad_options(example: Measurements, arguments, message: str):
    with pytest.raises(InvalidOption, match=message):
        plot(example, **arguments)


def shown(example: Measurements, *, colour: bool) -> str:
    console = Console(width=80, color_system="truecolor" if colour else None, force_terminal=True, file=io.StringIO())
    for shown in heat_maps(select(example), "restoration", "restoration", colour=colour):
        console.print(shown)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_the_terminals_map_without_colour(example: Measurements):
    example.numbers()["restored"].values[:, :, :, 1, 0] = 0.0
    assert shown(example, colour=False).splitlines() == [
        "resid_post: restoration, −2.00 to 2.00 logits",
        "             0",
        "          t0 ▓−",
        r"$x_1$\n | t1 ·−",
        "          t2 /C",
    ]


def titled(console: Console) -> tuple[str, list[str]]:
    """What a printed map is called, in as many lines as that takes, and its lines: layers begin at 0."""
    lines = console.file.getvalue().splitlines()  # pyright: ignore[reportAttributeAccessIssue]
    ruler = next(number for number, line in enumerate(lines) if line.split()[0] == "0")
    return " ".join(map(str.strip, lines[:ruler])), lines[ruler:]


def test_a_map_that_is_wider_than_the_terminal_goes_on_below_itself():
    found = measurements(np.arange(60).reshape(30, 2) / 10, np.zeros((30, 2)))
    for width in (20, 40, None):
        console = Console(width=width or 80, color_system=None, force_terminal=True, file=io.StringIO())
        for shown in heat_maps(select(found), "restoration", "restoration", colour=False, width=width):
            console.print(shown, soft_wrap=True)
        title, lines = titled(console)
        assert title.startswith("resid_post: restoration")
        parts = [lines[start : start + 3] for start in range(0, len(lines), 3)]
        assert len(parts) == (2 if width == 20 else 1)
        assert max(map(len, lines)) <= (width or 80)
        assert [part[0].split()[0] for part in parts] == {20: ["0", "15"]}.get(width or 0, ["0"])
        assert [len(part[1].removeprefix("t0 ")) for part in parts] == ([15, 15] if width == 20 else [30])
        assert all(part[1].startswith("t0 ") and part[2].startswith("t1 ") for part in parts)


def test_the_labels_of_a_map_leave_half_of_a_narrow_terminal_and_wide_letters_take_two_columns(example: Measurements):
    example.pairs["clean_token"].values[0, 0] = "東京タワーは東京タワーは"
    example.pairs["corrupt_token"].values[0, 0] = "東京タワーは東京タワーは"
    console = Console(width=20, color_system=None, force_terminal=True, file=io.StringIO())
    for shown in heat_maps(select(example), "restoration", "restoration", colour=False, width=20):
        console.print(shown, soft_wrap=True)
    ruler, first, *others = titled(console)[1]
    assert first.startswith(" 東京タワ… ")
    assert {cell_len(line) for line in (first, *others)} == {13}
    assert ruler.index("0") == 11


def test_the_terminals_map_in_colour(example: Measurements):
    text = shown(example, colour=True)
    positive, negative = "48;2;129;104;175", "48;2;234;200;180"  # 1.5 of 2 towards purple, 0.5 of 2 towards orange
    assert positive in text
    assert negative in text
