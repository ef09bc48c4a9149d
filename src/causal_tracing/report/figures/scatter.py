"""Estimates against exact effects: on the dotted line both are equal."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from causal_tracing.report.figures.look import drawable
from causal_tracing.results.estimates import Checked


def scatter(checked: Sequence[Checked], agreement: pd.DataFrame, direction: str) -> Figure:
    """A panel a component; a mark for each site that was patched."""
    names = list(agreement.index)
    figure, panels = plt.subplots(1, len(names), figsize=(3.2 * len(names), 3), squeeze=False, layout="constrained")
    for axes, name in zip(panels[0], names, strict=True):
        for why, marker in (("top", "o"), ("sample", ".")):
            mine = [one for one in checked if (one.group, one.why) == (name, why)]
            axes.plot([one.exact for one in mine], [one.estimate for one in mine], marker, label=why, alpha=0.6)
        axes.axline((0, 0), slope=1, linestyle=":", color="0.5")
        axes.set_title(f"{drawable(str(name))} (r = {agreement.pearson[name]:.2f})", fontsize=9)
        axes.set_xlabel(f"exact {direction}", fontsize=8)
    panels[0][0].set_ylabel("estimate", fontsize=8)
    panels[0][0].legend(fontsize=8)
    return figure
