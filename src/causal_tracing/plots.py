"""Figures with matplotlib, from Measurements alone: maps, bars by layer, MLP against attention.

One diverging scale centred on 0 is shared by all panels of a figure. Undefined cells are hatched, structural zeros
carry a dot, cuts a frame.
"""

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from causal_tracing.conditions import WITH_NOISE
from causal_tracing.effects import label, require_effect
from causal_tracing.errors import InvalidOption, nearest
from causal_tracing.reading import known, select
from causal_tracing.results import Measurements

COLOURS = "PuOr"  # safe for the colour-blind; purple supports the clean behaviour
KINDS = ("map", "layers", "mlp_vs_attention")
ORIENTATIONS = ("layers_right", "layers_down")
MOST_TICKS = 12


def plot(
    measurements: Measurements,
    kind: str = "map",
    *,
    effect: str | None = None,
    position: int | str | None = None,
    pair: str | None = None,
    metric: str | None = None,
    orient: str = "layers_right",
    vocabulary: str | None = None,
) -> Figure:
    """A figure of one pair by one metric: "map", "layers" (bars by layer) or "mlp_vs_attention" (curves by layer).

    `effect` is one effect's name (default: all directions that were measured). `position` chooses the column of bars
    and curves (default: the strongest one). Raises InvalidOption.
    """
    if kind not in KINDS:
        raise InvalidOption(f"There is no plot {kind!r}. {nearest(kind, KINDS)}")
    if orient not in ORIENTATIONS:
        raise InvalidOption(f"orient={orient!r} is not known. {nearest(orient, ORIENTATIONS)}")
    found = select(measurements, pair=pair, metric=metric)
    shown = [require_effect(effect, found)] if effect else list(measurements.directions)
    if kind == "map":
        figure = _maps(found, shown, orient, vocabulary)
    else:
        draw = _bars if kind == "layers" else _mlp_vs_attention
        figure = draw(found, shown, _column(found, shown[0], position), vocabulary)
    data = measurements.data.sel(pair=found.pair.item())
    corrupt = WITH_NOISE if measurements.provenance.get("noise") else data.corrupt_prompt.item()
    figure.suptitle(f"{_text(data.clean_prompt.item())}   against   {_text(corrupt)}", fontsize=10)
    return figure


def curves(found: xr.Dataset, effect: str, position: int | str) -> xr.DataArray:
    """One effect at one position (or role), by component and layer."""
    return found[effect].sel(position=position)


def _column(found: xr.Dataset, effect: str, position: int | str | None) -> int | str:
    """The position asked for, or the one with the strongest effect that is not a cut."""
    valid = found.position.values.tolist()
    if position is None:
        strength = abs(found[effect].where(found.status == "ok")).max(["component", "layer"])
        return valid[int(strength.fillna(-1).argmax("position"))]
    return known("position", position, valid)


def _maps(found: xr.Dataset, shown: Sequence[str], orient: str, vocabulary: str | None) -> Figure:
    components, across = found.component.values, (len(found.layer), len(found.position))
    wide, high = across if orient == "layers_right" else across[::-1]
    size = (1.2 + len(components) * max(2.6, 0.13 * wide), 1.1 + len(shown) * max(1.6, 0.26 * high))
    figure, panels = plt.subplots(
        len(shown), len(components), figsize=size, squeeze=False, sharex=True, sharey=True, layout="constrained"
    )
    largest = max(float(np.nanmax(abs(found[name].values), initial=0)) for name in shown) or 1.0
    images = []
    for row, effect in zip(panels, shown, strict=True):
        for axes, component in zip(row, components, strict=True):
            images.append(_map(axes, found.sel(component=component), effect, orient, largest))
            axes.set_title(f"{component}: {label(effect, vocabulary)}", fontsize=9)
    figure.colorbar(images[0], ax=panels, label=f"{found.unit.item()} of {found.metric.item()}", shrink=0.8)
    return figure


def _map(axes: Axes, found: xr.Dataset, effect: str, orient: str, largest: float) -> Any:
    down = orient == "layers_down"
    order = ("layer", "position") if down else ("position", "layer")
    values, status = found[effect].transpose(*order).values, found.status.transpose(*order).values
    image = axes.imshow(values, cmap=COLOURS, vmin=-largest, vmax=largest, aspect="auto", interpolation="nearest")
    for row, column in np.ndindex(*values.shape):
        corner = (column - 0.5, row - 0.5)
        if np.isnan(values[row, column]):
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, hatch="////", edgecolor="0.7", linewidth=0))
        elif status[row, column] == "cut":
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="black", linewidth=1))
    zeros = np.argwhere(status == "structural_zero")
    axes.plot(zeros[:, 1], zeros[:, 0], ".", color="0.7", markersize=1.5)
    tokens, layers = (axes.set_xticks, axes.set_yticks) if down else (axes.set_yticks, axes.set_xticks)
    tokens(range(len(found.position)), _token_labels(found), fontsize=7, rotation=90 if down else 0)
    _layer_ticks(layers, found)
    (axes.set_ylabel if down else axes.set_xlabel)("layer", fontsize=8)
    return image


def _bars(found: xr.Dataset, shown: Sequence[str], position: int | str, vocabulary: str | None) -> Figure:
    """One panel a component, one bar a layer and direction."""
    components, layers = found.component.values, np.arange(len(found.layer))
    figure, panels = plt.subplots(
        1, len(components), figsize=(1 + 3.4 * len(components), 3), squeeze=False, sharey=True, layout="constrained"
    )
    width = 0.8 / len(shown)
    for axes, component in zip(panels[0], components, strict=True):
        for n, effect in enumerate(shown):
            values = curves(found, effect, position).sel(component=component).values
            axes.bar(layers + (n - (len(shown) - 1) / 2) * width, values, width, label=label(effect, vocabulary))
        cuts = (found.status.sel(component=component, position=position) == "cut").values
        note = " (complete cuts)" if cuts.all() else ""
        axes.set_title(f"{component}{note}, {_where(found, position)}", fontsize=9)
        _by_layer(axes, found)
    panels[0][0].legend(fontsize=8)
    return figure


def _mlp_vs_attention(found: xr.Dataset, shown: Sequence[str], position: int | str, vocabulary: str | None) -> Figure:
    """One panel a direction, one curve for the MLPs and one for attention."""
    missing = [name for name in ("mlp_out", "attn_out") if name not in found.component]
    if missing:
        raise InvalidOption(
            f"MLP against attention needs components mlp_out and attn_out; {' and '.join(missing)} missing."
        )
    figure, panels = plt.subplots(
        1, len(shown), figsize=(1 + 4.2 * len(shown), 3), squeeze=False, sharey=True, layout="constrained"
    )
    for axes, effect in zip(panels[0], shown, strict=True):
        for component, marker in (("mlp_out", "o"), ("attn_out", "s")):
            values = curves(found, effect, position).sel(component=component).values
            axes.plot(range(len(values)), values, marker=marker, markersize=3, label=component)
        axes.set_title(f"{label(effect, vocabulary)}, {_where(found, position)}", fontsize=9)
        _by_layer(axes, found)
    panels[0][0].legend(fontsize=8)
    return figure


def _by_layer(axes: Axes, found: xr.Dataset) -> None:
    axes.axhline(0, color="0.6", linewidth=0.8)
    _layer_ticks(axes.set_xticks, found)
    axes.set_xlabel("layer", fontsize=8)
    axes.set_ylabel(f"{found.unit.item()} of {found.metric.item()}", fontsize=8)
    axes.label_outer()


def _layer_ticks(set_ticks: Callable[..., Any], found: xr.Dataset) -> None:
    layers = found.layer.values
    every = max(1, -(-len(layers) // MOST_TICKS))
    set_ticks(range(0, len(layers), every), layers[::every], fontsize=7)


def _token_labels(found: xr.Dataset) -> list[str]:
    return [_where(found, position) for position in found.position.values.tolist()]


def _where(found: xr.Dataset, position: int | str) -> str:
    """A position's token; both where the prompts differ."""
    if not str(position).isdigit():
        return str(position)
    clean, corrupt = (_text(str(found[name].values[int(position)])) for name in ("clean_token", "corrupt_token"))
    return f"{position} {clean}" if clean == corrupt else f"{position} {clean} | {corrupt}"


def _text(token: str) -> str:
    """A token as matplotlib should draw it: no math, no control characters."""
    visible = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in token)
    return visible.strip().replace("$", r"\$")
