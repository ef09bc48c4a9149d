"""Effects by layer at one position: bars, and lines with their intervals where there are any."""

from collections.abc import Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from causal_tracing.errors import InvalidOption
from causal_tracing.report.figures.look import Look, by_layer, where
from causal_tracing.results.effects import label
from causal_tracing.results.ranked import strongest_position
from causal_tracing.results.select import known


def bars(found: xr.Dataset, shown: Sequence[str], look: Look) -> Figure:
    """One panel a component, one bar a layer and effect."""
    here = _at(found, shown[0], look.position)
    components, layers = found.component.values, np.arange(len(found.layer))
    figure, panels = plt.subplots(
        1, len(components), figsize=(1 + 3.4 * len(components), 3), squeeze=False, sharey=True, layout="constrained"
    )
    width = 0.8 / len(shown)
    for axes, component in zip(panels[0], components, strict=True):
        for n, effect in enumerate(shown):
            values = here[effect].sel(component=component).values
            axes.bar(layers + (n - (len(shown) - 1) / 2) * width, values, width, label=label(effect, look.vocabulary))
        cuts = (here.status.sel(component=component) == "cut").values
        note = " (complete cuts)" if cuts.all() else ""
        axes.set_title(f"{component}{note}, {where(found, here.position.item())}", fontsize=9)
        by_layer(axes, found)
    panels[0][0].legend(fontsize=8)
    return figure


def lines(found: xr.Dataset, shown: Sequence[str], look: Look) -> Figure:
    """One panel an effect, one line a component, with its interval as a band where there is one."""
    here = _at(found, shown[0], look.position)
    figure, panels = plt.subplots(
        1, len(shown), figsize=(1 + 4.2 * len(shown), 3), squeeze=False, sharey=True, layout="constrained"
    )
    for axes, effect in zip(panels[0], shown, strict=True):
        # Markers go round: there may be more components than shapes that are told apart.
        for component, marker in zip(here.component.values, cycle("os^vDX*"), strict=False):
            cell = here.sel(component=component)
            layers = np.arange(cell.sizes["layer"])
            (line,) = axes.plot(layers, cell[effect].values, marker=marker, markersize=3, label=str(component))
            if f"{effect}_low" in cell:
                low, high = cell[f"{effect}_low"].values, cell[f"{effect}_high"].values
                axes.fill_between(layers, low, high, color=line.get_color(), alpha=0.25, linewidth=0)
        axes.set_title(f"{label(effect, look.vocabulary)}, {where(found, here.position.item())}", fontsize=9)
        by_layer(axes, found)
    panels[0][0].legend(fontsize=8)
    return figure


def mlp_vs_attention(found: xr.Dataset, shown: Sequence[str], look: Look) -> Figure:
    """Lines of the MLPs and of attention alone."""
    both = ["mlp_out", "attn_out"]
    missing = [name for name in both if name not in found.component]
    if missing:
        raise InvalidOption(
            f"MLP against attention needs components mlp_out and attn_out; {' and '.join(missing)} missing."
        )
    position = _position(found, shown[0], look.position)
    return lines(found.sel(component=both), shown, Look(position=position, vocabulary=look.vocabulary))


def _at(found: xr.Dataset, effect: str, position: int | str | None) -> xr.Dataset:
    return found.sel(position=_position(found, effect, position))


def _position(found: xr.Dataset, effect: str, position: int | str | None) -> int | str:
    """The position asked for, or the one with the strongest effect that is not a cut."""
    asked = strongest_position(found, effect) if position is None else position
    return known("position", asked, found.position.values.tolist())
