"""Figures with matplotlib, from Measurements alone: maps, bars by layer, MLP against attention, heads, neurons."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from causal_tracing.conditions import WITH_NOISE
from causal_tracing.drawing import cells, drawable, largest_size, number_ticks, where
from causal_tracing.effects import label, require_effect
from causal_tracing.errors import InvalidOption, nearest
from causal_tracing.reading import known, select
from causal_tracing.results import Measurements
from causal_tracing.unit_plots import head_maps, neuron_ranks

KINDS = ("map", "layers", "mlp_vs_attention", "heads", "neurons")
ORIENTATIONS = ("layers_right", "layers_down")


def plot(
    measurements: Measurements,
    kind: str = "map",
    *,
    effect: str | None = None,
    position: int | str | None = None,
    layer: int | None = None,
    pair: str | None = None,
    metric: str | None = None,
    orient: str = "layers_right",
    vocabulary: str | None = None,
) -> Figure:
    """A figure of one pair by one metric; `kind` is one of

    "map", "layers" (bars by layer), "mlp_vs_attention" (curves by layer), "heads" (maps of layers and heads) or
    "neurons" (all of them, ranked). `effect` is one effect's name (default: all directions that were measured).
    `position` chooses the column of bars, curves and heads (default: the strongest one; for heads also "sum", the sum
    over positions) and of neurons (default: all); `layer` that of neurons. Raises InvalidOption.
    """
    if kind not in KINDS:
        raise InvalidOption(f"There is no plot {kind!r}. {nearest(kind, KINDS)}")
    if orient not in ORIENTATIONS:
        raise InvalidOption(f"orient={orient!r} is not known. {nearest(orient, ORIENTATIONS)}")
    if layer is not None and kind != "neurons":
        raise InvalidOption(f'layer={layer} chooses the neurons of plot("neurons"); {kind!r} shows every layer.')
    found = select(measurements, pair=pair, metric=metric, of=kind if kind in ("heads", "neurons") else "blocks")
    shown = [require_effect(effect, found)] if effect else list(measurements.directions)
    if kind == "map":
        figure = _maps(found, shown, orient, vocabulary)
    elif kind == "heads":
        figure = head_maps(found, shown, position=position, orient=orient, vocabulary=vocabulary)
    elif kind == "neurons":
        figure = neuron_ranks(found, shown, position=position, layer=layer, vocabulary=vocabulary)
    else:
        draw = _bars if kind == "layers" else _mlp_vs_attention
        figure = draw(found, shown, _column(found, shown[0], position), vocabulary)
    data = measurements.data.sel(pair=found.pair.item())
    corrupt = WITH_NOISE if measurements.provenance.get("noise") else data.corrupt_prompt.item()
    figure.suptitle(f"{drawable(data.clean_prompt.item())}   against   {drawable(corrupt)}", fontsize=10)
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
    largest = largest_size([found[name] for name in shown])
    images = []
    for row, effect in zip(panels, shown, strict=True):
        for axes, component in zip(row, components, strict=True):
            images.append(_map(axes, found.sel(component=component), effect, orient, largest))
            axes.set_title(f"{component}: {label(effect, vocabulary)}", fontsize=9)
    figure.colorbar(images[0], ax=panels, label=f"{found.unit.item()} of {found.metric.item()}", shrink=0.8)
    return figure


def _map(axes: Axes, found: xr.Dataset, effect: str, orient: str, largest: float) -> Any:
    down = orient == "layers_down"
    image = cells(axes, found, effect, ("layer", "position") if down else ("position", "layer"), largest)
    tokens, layers = (axes.set_xticks, axes.set_yticks) if down else (axes.set_yticks, axes.set_xticks)
    labels = [where(found, position) for position in found.position.values.tolist()]
    tokens(range(len(labels)), labels, fontsize=7, rotation=90 if down else 0)
    number_ticks(layers, found.layer.values)
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
        axes.set_title(f"{component}{note}, {where(found, position)}", fontsize=9)
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
        axes.set_title(f"{label(effect, vocabulary)}, {where(found, position)}", fontsize=9)
        _by_layer(axes, found)
    panels[0][0].legend(fontsize=8)
    return figure


def _by_layer(axes: Axes, found: xr.Dataset) -> None:
    axes.axhline(0, color="0.6", linewidth=0.8)
    number_ticks(axes.set_xticks, found.layer.values)
    axes.set_xlabel("layer", fontsize=8)
    axes.set_ylabel(f"{found.unit.item()} of {found.metric.item()}", fontsize=8)
    axes.label_outer()
