"""Figures of single heads and neurons: maps of layers and heads, effects in the order of their size."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from causal_tracing.errors import InvalidOption
from causal_tracing.report.figures.heat_map import cells, largest_size, number_ticks, where
from causal_tracing.results.effects import label
from causal_tracing.results.rankings import SUM, has_sum, ranked, strongest_position, summed
from causal_tracing.results.select import known

LABELLED = 8  # neurons, in a panel
SUPPORTS, OPPOSES = "#5e3c99", "#b35806"  # the dark ends of the maps' scale


def head_maps(
    found: xr.Dataset, shown: Sequence[str], *, position: int | str | None, orient: str, vocabulary: str | None
) -> Figure:
    """A panel a component and direction, all on one scale; heads that a component does not have are hatched."""
    parts, place = _at(found, shown, position)
    components, across = found.component.values, (found.sizes["layer"], found.sizes["head"])
    wide, high = across if orient == "layers_right" else across[::-1]
    size = (1.2 + len(components) * max(2.6, 0.13 * wide), 1.1 + len(shown) * max(1.6, 0.16 * high))
    figure, panels = plt.subplots(
        len(shown), len(components), figsize=size, squeeze=False, sharex=True, sharey=True, layout="constrained"
    )
    largest, images = largest_size([parts[effect][effect] for effect in shown]), []
    for row, effect in zip(panels, shown, strict=True):
        for axes, component in zip(row, components, strict=True):
            images.append(_head_map(axes, parts[effect].sel(component=component), effect, orient, largest))
            axes.set_title(f"{component}: {label(effect, vocabulary)}, {place}", fontsize=9)
            axes.label_outer()
    figure.colorbar(images[0], ax=panels, label=f"{found.unit.item()} of {found.metric.item()}", shrink=0.8)
    return figure


def _at(found: xr.Dataset, shown: Sequence[str], position: int | str | None) -> tuple[dict[str, xr.Dataset], str]:
    """Each effect with its status at the position asked for (or summed over all), and what to call that."""
    if position == SUM:
        if not has_sum(found):
            raise InvalidOption(
                'position="sum" adds up single tokens; these heads were measured at '
                f"{', '.join(map(str, found.position.values))}. Name one of them."
            )
        return {effect: summed(found, effect) for effect in shown}, "each position alone, added up"
    chosen = strongest_position(found, shown[0]) if position is None else position
    here = found.sel(position=known("position", chosen, found.position.values.tolist()))
    return dict.fromkeys(shown, here), where(found, chosen)


def _head_map(axes: Axes, found: xr.Dataset, effect: str, orient: str, largest: float) -> Any:
    down = orient == "layers_down"
    image = cells(axes, found, effect, ("layer", "head") if down else ("head", "layer"), largest)
    heads, layers = (axes.set_xticks, axes.set_yticks) if down else (axes.set_yticks, axes.set_xticks)
    number_ticks(heads, found["head"].values)
    number_ticks(layers, found.layer.values)
    (axes.set_ylabel if down else axes.set_xlabel)("layer", fontsize=8)
    (axes.set_xlabel if down else axes.set_ylabel)("head", fontsize=8)
    return image


def neuron_ranks(
    found: xr.Dataset,
    shown: Sequence[str],
    *,
    position: int | str | None,
    layer: int | None,
    vocabulary: str | None,
) -> Figure:
    """A panel a direction: effects by rank, on a logarithmic axis, since the few first carry most."""
    places = []
    if layer is not None:
        found = found.sel(layer=[known("layer", layer, found.layer.values.tolist())])
        places.append(f"layer {layer}")
    if position is not None:
        found = found.sel(position=[known("position", position, found.position.values.tolist())])
    if found.sizes["position"] == 1:
        places.append(where(found, found.position.values.tolist()[0]))
    figure, panels = plt.subplots(
        1, len(shown), figsize=(1 + 5 * len(shown), 3.6), squeeze=False, sharey=True, layout="constrained"
    )
    for axes, effect in zip(panels[0], shown, strict=True):
        effects = ranked(found, effect)
        _ranks(axes, effects, several=found.sizes["position"] > 1)
        axes.set_title(", ".join([label(effect, vocabulary), *places, f"{len(effects):,} effects"]), fontsize=9)
        axes.set_ylabel(f"{found.unit.item()} of {found.metric.item()}", fontsize=8)
        axes.label_outer()
    return figure


def _ranks(axes: Axes, effects: xr.DataArray, *, several: bool) -> None:
    """What supports the clean behaviour above zero, what opposes it below, each by its own rank."""
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("rank (logarithmic)", fontsize=8)
    axes.tick_params(labelsize=7)
    named = set(effects[:LABELLED].site.values)
    for sign, colour, words in ((1, SUPPORTS, "supports the clean behaviour"), (-1, OPPOSES, "opposes it")):
        part = effects[(sign * effects.values) > 0]
        ranks, first = np.arange(1, len(part) + 1), part[:LABELLED]
        axes.plot(ranks, part.values, ".-", color=colour, markersize=3, linewidth=1, label=f"{words}: {len(part):,}")
        for rank, site, value in zip(ranks, first.site.values, first.values, strict=False):
            if site in named:
                _, layer, position, neuron = site
                text = f"layer {layer}, {neuron}" + (f" at {position}" if several else "")
                axes.annotate(
                    text, (rank, value), (4, 3 * sign), textcoords="offset points", fontsize=6,
                    rotation=30 * sign, va="bottom" if sign > 0 else "top", color=colour,
                )  # fmt: skip
    axes.margins(y=0.2)
    axes.legend(fontsize=7)
