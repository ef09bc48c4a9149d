"""Effects of sets that grow site by site: a curve a set, of what its first sites do together."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from causal_tracing.report.figures.look import Look, drawable, unit_label
from causal_tracing.results.effects import label


def growing(found: xr.Dataset, shown: Sequence[str], look: Look) -> Figure:
    """A panel a direction: the effect against the number of sites, with its interval as a band where there is one."""
    cells = found.isel(component=0)
    figure, panels = plt.subplots(
        1, len(shown), figsize=(1 + 4.2 * len(shown), 3), squeeze=False, sharey=True, layout="constrained"
    )
    for axes, effect in zip(panels[0], shown, strict=True):
        for name in cells["set"].values:
            here = cells.sel(set=name)
            here = here.isel(size=np.isfinite(here[effect].values))  # sets may be of different sizes
            (line,) = axes.plot(
                here["size"].values, here[effect].values, marker="o", markersize=3, label=drawable(str(name))
            )
            if f"{effect}_low" in here:
                low, high = here[f"{effect}_low"].values, here[f"{effect}_high"].values
                axes.fill_between(here["size"].values, low, high, color=line.get_color(), alpha=0.25, linewidth=0)
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.set_title(label(effect, look.vocabulary), fontsize=9)
        axes.set_xlabel("sites", fontsize=8)
        axes.set_xticks(cells["size"].values)
        axes.set_ylabel(unit_label(found), fontsize=8)
        axes.tick_params(labelsize=7)
        axes.label_outer()
    panels[0][0].legend(fontsize=7)
    return figure
