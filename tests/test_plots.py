"""Figures say what the effects say; looks are for eyes, numbers for tests."""

import io
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from rich.console import Console

from causal_tracing.effects import effects
from causal_tracing.errors import InvalidOption
from causal_tracing.plots import plot
from causal_tracing.results import Measurements
from causal_tracing.terminal import heat_map
from test_effects import measurements

mpl.use("Agg")

RESTORED = [[2.5, 1.0, np.nan], [1.0, 0.5, 3.0]]
DISRUPTED = [[0.5, 3.0, 3.0], [3.0, 2.5, 1.0]]


@pytest.fixture
def example() -> Measurements:
    flags: dict[str, Any] = {"structural_zero": [[0, 1, 0], [0, 0, 0]], "cut": [[0, 0, 0], [0, 0, 1]]}
    made = measurements(RESTORED, DISRUPTED, **flags)
    made.data["clean_token"].values[0, 1] = " $x_1$\n"
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
    cells = [name for name in example.data if "component" in example.data[name].dims]
    mlp = example.data[cells].assign_coords(component=["mlp_out"])
    attention = (example.data[cells] + 1).assign_coords(component=["attn_out"])
    data = xr.concat([mlp, attention], "component").astype(float)
    data = data.assign({name: data[name].astype(bool) & False for name in ("structural_zero", "cut", "unpaired")})
    data = data.merge(example.data.drop_dims("component"))
    both = Measurements(data=data, provenance=example.provenance)
    figure = plot(both, "mlp_vs_attention", position=1, effect="restoration")
    curves = {line.get_label(): np.array(line.get_ydata()) for line in figure.axes[0].lines[:2]}
    np.testing.assert_allclose(curves["mlp_out"], [0.0, -0.5])
    np.testing.assert_allclose(curves["attn_out"], [1.0, 0.5])
    with pytest.raises(InvalidOption, match="mlp_out and attn_out missing"):
        plot(example, "mlp_vs_attention")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "pie"}, "no plot 'pie'"),
        ({"orient": "up"}, "orient='up' is not known"),
        ({"effect": "direct"}, "mean different things"),
        ({"kind": "layers", "position": 7}, "no position 7 in this trace"),
        ({"pair": "q"}, "no pair 'q' in this trace"),
    ],
)
def test_bad_options(example: Measurements, arguments, message: str):
    with pytest.raises(InvalidOption, match=message):
        plot(example, **arguments)


def shown(example: Measurements, *, colour: bool) -> str:
    console = Console(width=80, color_system="truecolor" if colour else None, force_terminal=True, file=io.StringIO())
    console.print(heat_map(example, "resid_post", "restoration", colour=colour))
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_the_terminals_map_without_colour(example: Measurements):
    example.data["restored"].values[:, :, :, 1, 0] = 0.0
    assert shown(example, colour=False).splitlines() == [
        "resid_post: restoration, −2.00 to 2.00 logits",
        "             0",
        "          t0 ▓−",
        r"$x_1$\n | t1 ·−",
        "          t2 /C",
    ]


def test_the_terminals_map_in_colour(example: Measurements):
    text = shown(example, colour=True)
    positive, negative = "48;2;129;104;175", "48;2;234;200;180"  # 1.5 of 2 towards purple, 0.5 of 2 towards orange
    assert positive in text
    assert negative in text
