"""Figures of the mean over pairs: maps, curves by layer with their intervals, heads, neurons."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from causal_tracing.drawing import maps, number_ticks, where
from causal_tracing.effects import label
from causal_tracing.evidence import Evidence
from causal_tracing.reading import known
from causal_tracing.unit_plots import head_maps, neuron_ranks


def mean_maps(evidence: Evidence, shown: Sequence[str], orient: str, vocabulary: str | None) -> Figure:
    """The averaged maps; what cannot be told from 0 by the test over the map is marked with a ring."""
    return _titled(maps(_labelled(evidence), shown, orient, vocabulary), evidence)


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


def mean_head_maps(
    evidence: Evidence, shown: Sequence[str], position: int | str | None, orient: str, vocabulary: str | None
) -> Figure:
    """The averaged maps of layers and heads at one position, marked as the others; of their sum nothing was tested."""
    found = _labelled(evidence)
    return _titled(head_maps(found, shown, position=position, orient=orient, vocabulary=vocabulary), evidence)


def mean_neuron_ranks(
    evidence: Evidence, shown: Sequence[str], position: int | str | None, layer: int | None, vocabulary: str | None
) -> Figure:
    """Neurons by the size of their mean effect."""
    found = _labelled(evidence)
    return _titled(neuron_ranks(found, shown, position=position, layer=layer, vocabulary=vocabulary), evidence)


def _labelled(evidence: Evidence) -> xr.Dataset:
    """The means with what figures say of them."""
    return evidence.cells.assign_coords(metric=evidence.metric, unit=evidence.unit)


def _strongest(found: xr.Dataset, effect: str) -> int | str:
    strength = abs(found[effect].where(found.status == "ok")).max(["component", "layer"])
    return found.position.values.tolist()[int(strength.fillna(-1).argmax("position"))]


def _titled(figure: Figure, evidence: Evidence) -> Figure:
    clusters = "" if evidence.clusters == evidence.pairs else f" in {evidence.clusters} clusters"
    figure.suptitle(f"mean over {evidence.pairs} pairs{clusters}", fontsize=10)
    return figure
