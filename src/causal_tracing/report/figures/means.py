"""Figures of the mean over pairs: maps, curves by layer with their intervals, heads, neurons."""

from collections.abc import Sequence

import xarray as xr
from matplotlib.figure import Figure

from causal_tracing.report.figures.heat_map import maps
from causal_tracing.report.figures.ranks import head_maps, neuron_ranks
from causal_tracing.results.means import Evidence


def mean_maps(evidence: Evidence, shown: Sequence[str], orient: str, vocabulary: str | None) -> Figure:
    """The averaged maps; what cannot be told from 0 by the test over the map is marked with a ring."""
    return _titled(maps(_labelled(evidence), shown, orient, vocabulary), evidence)


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
