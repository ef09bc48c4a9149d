"""Effects in the order of their size: of kinds with too many cells for a map."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from causal_tracing.report.figures.look import Look, drawable, unit_label, where
from causal_tracing.results.columns import columns_of
from causal_tracing.results.effects import label
from causal_tracing.results.ranked import ranked
from causal_tracing.results.select import known
from causal_tracing.results.site_kinds import SiteKind, kind_of

LABELLED = 8  # cells, in a panel
SUPPORTS, OPPOSES = "#5e3c99", "#b35806"  # the dark ends of the maps' scale


def ranks(found: xr.Dataset, shown: Sequence[str], look: Look) -> Figure:
    """A panel a direction: effects by rank, on a logarithmic axis, since the few first carry most."""
    places = []
    kind = kind_of(found)
    if look.layer is not None and kind.layered:
        found = found.sel(layer=[known("layer", look.layer, found.layer.values.tolist())])
        places.append(f"layer {look.layer}")
    if look.position is not None:
        found = found.sel({kind.column: [known(kind.column, look.position, columns_of(found))]})
    if len(columns_of(found)) == 1:
        places.append(where(found, columns_of(found)[0]))
    figure, panels = plt.subplots(
        1, len(shown), figsize=(1 + 5 * len(shown), 3.6), squeeze=False, sharey=True, layout="constrained"
    )
    for axes, effect in zip(panels[0], shown, strict=True):
        effects = ranked(found, effect)
        _ranks(axes, effects, kind, several=len(columns_of(found)) > 1)
        names = [label(effect, look.vocabulary), *places, f"{len(effects):,} effects"]
        axes.set_title(", ".join(names), fontsize=9)
        axes.set_ylabel(unit_label(found), fontsize=8)
        axes.label_outer()
    return figure


def _ranks(axes: Axes, effects: xr.DataArray, kind: SiteKind, *, several: bool) -> None:
    """What supports the clean behaviour above zero, what opposes it below, each by its own rank."""
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("rank (logarithmic)", fontsize=8)
    axes.tick_params(labelsize=7)
    # The largest of both signs together: where one side is weak, none of it needs a name.
    named = set(effects[:LABELLED].cell.values)
    for sign, colour, words in ((1, SUPPORTS, "supports the clean behaviour"), (-1, OPPOSES, "opposes it")):
        part = effects[(sign * effects.values) > 0]
        ranks, first = np.arange(1, len(part) + 1), part[:LABELLED]
        axes.plot(ranks, part.values, ".-", color=colour, markersize=3, linewidth=1, label=f"{words}: {len(part):,}")
        for rank, site, value in zip(ranks, first.cell.values, first.values, strict=False):
            if site in named:
                text = _named(kind, dict(zip(kind.ranked_axes, site, strict=True)), several=several)
                axes.annotate(
                    text, (rank, value), (4, 3 * sign), textcoords="offset points", fontsize=6,
                    rotation=30 * sign, va="bottom" if sign > 0 else "top", color=colour,
                )  # fmt: skip
    axes.margins(y=0.2)
    axes.legend(fontsize=7)


def _named(kind: SiteKind, site: Mapping[str, Any], *, several: bool) -> str:
    """A cell beside its point."""
    if not kind.layered:
        return drawable(kind.address.format(part=site.get(kind.part or ""), column=site[kind.column]))
    return f"layer {site['layer']}, {site[kind.part or '']}" + (f" at {site['position']}" if several else "")
