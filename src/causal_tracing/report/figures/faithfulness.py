"""Faithfulness by the number of nodes or edges that are kept: a curve between its two measured ends."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import xarray as xr
from matplotlib.figure import Figure

from causal_tracing.report.figures.look import Look
from causal_tracing.results.effects import FRACTIONS, OF_ENDS


def faithfulness(found: xr.Dataset, shown: Sequence[str], look: Look) -> Figure:
    """f against the size of the set, on a logarithmic axis, with its interval as a band where there is one."""
    name = next(name for name, effect in FRACTIONS.items() if effect in OF_ENDS and name in found)
    cells = found.isel(component=0)
    of = cells.component.item()
    inner = cells.isel(size=slice(1, None))  # a logarithm has no place for the empty set
    figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
    for level, text in ((0, "empty set"), (1, f"all {of}")):
        axes.axhline(level, color="0.6", linewidth=0.8, linestyle="--")
        axes.annotate(text, (1, level), (2, 3), textcoords="offset points", fontsize=7, color="0.4")
    (line,) = axes.plot(inner["size"].values, inner[name].values, marker="o", markersize=3)
    if f"{name}_low" in inner:
        low, high = inner[f"{name}_low"].values, inner[f"{name}_high"].values
        axes.fill_between(inner["size"].values, low, high, color=line.get_color(), alpha=0.25, linewidth=0)
    axes.set_xscale("log")
    # Said, since where no f is defined there are no points that would say it, and a logarithm needs an end above 0.
    axes.set_xlim(0.9 * inner["size"].values[0], 1.1 * inner["size"].values[-1])
    axes.set_xlabel(f"{of}, of {cells['size'].values[-1]}", fontsize=8)
    axes.set_ylabel("f", fontsize=8)
    axes.set_title(f"faithfulness, {'kept' if name == 'faithfulness' else 'restored'}", fontsize=9)
    axes.tick_params(labelsize=7)
    return figure
