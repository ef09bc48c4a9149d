"""Figures by layer: bars, and curves with their intervals."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from causal_tracing.errors import InvalidOption
from causal_tracing.report.figures.heat_map import number_ticks, where
from causal_tracing.report.figures.means import (
    _labelled,
    _strongest,
    _titled,
)
from causal_tracing.results.effects import label
from causal_tracing.results.means import Evidence
from causal_tracing.results.select import known


def mean_curves(evidence: Evidence, shown: Sequence[str], position: int | str | None, vocabulary: str | None) -> Figure:
    """One panel an effect, one curve a component at one position or role, with the interval as a band."""
    found = _labelled(evidence)
    asked = _strongest(found, shown[0]) if position is None else position
    at = known("position", asked, found.position.values.tolist())
    figure, panels = plt.subplots(
        1, len(shown), figsize=(1 + 4.2 * len(shown), 3), squeeze=False, sharey=True, layout="constrained"
    )
    for axes, effect in zip(panels[0], shown, strict=True):
        for component in found.component.values:
            cell = found.sel(component=component, position=at)
            layers = np.arange(cell.sizes["layer"])
            (line,) = axes.plot(layers, cell[effect].values, label=str(component))
            low, high = cell[f"{effect}_low"].values, cell[f"{effect}_high"].values
            axes.fill_between(layers, low, high, color=line.get_color(), alpha=0.25, linewidth=0)
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.set_title(f"{label(effect, vocabulary)}, {where(found, at)}", fontsize=9)
        number_ticks(axes.set_xticks, found.layer.values)
        axes.set_xlabel("layer", fontsize=8)
        axes.set_ylabel(f"{evidence.unit} of {evidence.metric}", fontsize=8)
        axes.label_outer()
    panels[0][0].legend(fontsize=8)
    return _titled(figure, evidence)


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
