"""Figures with matplotlib, from Measurements alone: of one pair, or of the mean over pairs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import xarray as xr
from matplotlib.figure import Figure

from causal_tracing.errors import InvalidOption, nearest
from causal_tracing.report.figures.curves import bars, lines, mlp_vs_attention
from causal_tracing.report.figures.faithfulness import faithfulness
from causal_tracing.report.figures.growing import growing
from causal_tracing.report.figures.heat_map import maps
from causal_tracing.report.figures.look import Look, drawable
from causal_tracing.report.figures.ranks import ranks
from causal_tracing.report.words.method import ITSELF, WITH_NOISE
from causal_tracing.results.effects import FRACTIONS, OF_ENDS, require_effect
from causal_tracing.results.means import mean_map
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.select import select
from causal_tracing.results.site_kinds import BLOCKS, KINDS, SiteKind


@dataclass(frozen=True, slots=True)
class View:
    """What a figure is of: one kind of site, drawn in one way, of one pair or of the mean over pairs."""

    kind: SiteKind
    draw: Callable[[xr.Dataset, Sequence[str], Look], Figure]
    of_mean: bool = False


def _drawn(kind: SiteKind) -> Callable[[xr.Dataset, Sequence[str], Look], Figure]:
    """How a kind is drawn: as a map, as a curve over sizes, or ranked."""
    if kind.drawn:
        return maps
    if kind.ends:
        return faithfulness
    return growing if kind.column == "size" else ranks


OTHERS = {kind.name: View(kind, _drawn(kind)) for kind in KINDS.values() if kind is not BLOCKS}
VIEWS = {
    "map": View(BLOCKS, maps),
    "layers": View(BLOCKS, bars),
    "mlp_vs_attention": View(BLOCKS, mlp_vs_attention),
    **OTHERS,
    "mean": View(BLOCKS, maps, of_mean=True),
    "mean_curves": View(BLOCKS, lines, of_mean=True),
    **{f"mean_{name}": View(view.kind, view.draw, of_mean=True) for name, view in OTHERS.items()},
}
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
    """A figure of one pair by one metric, in the metric's unit; `kind` is one of

    "map", "layers" (bars by layer), "mlp_vs_attention" (curves by layer), or another kind of site by its name: "heads"
    (maps of layers and heads), "neurons" (all of them, ranked), "sets", "paths", "knockout", …; or, of all pairs,
    "mean" (maps of the mean over pairs), "mean_curves" (by layer, with 95 % intervals), "mean_heads" and so on.
    `effect` is one effect's name (default: all directions that were measured). `position` chooses the column of bars,
    curves and heads (default: the strongest one; for heads also "sum", the sum over positions) and of what is ranked
    (default: all); `layer` that of neurons. Raises InvalidOption.
    """
    if kind not in VIEWS:
        raise InvalidOption(f"There is no plot {kind!r}. {nearest(kind, VIEWS)}")
    view = VIEWS[kind]
    if orient not in ORIENTATIONS:
        raise InvalidOption(f"orient={orient!r} is not known. {nearest(orient, ORIENTATIONS)}")
    if layer is not None and view.draw is not ranks:
        raise InvalidOption(f'layer={layer} chooses the neurons of plot("neurons"); {kind!r} shows every layer.')
    if view.draw is faithfulness and effect is not None and FRACTIONS.get(effect) not in OF_ENDS:
        raise InvalidOption(f'plot({kind!r}) shows faithfulness alone. trace.of("circuits") has {effect!r} by size.')
    if view.of_mean and pair is not None:
        raise InvalidOption(f"A mean is over all pairs: leave out pair={pair!r}, or choose another plot.")
    look = Look(position=position, layer=layer, orient=orient, vocabulary=vocabulary)
    if view.of_mean:
        means = mean_map(measurements, metric=metric, of=view.kind.name)
        found, title = means.cells.assign_coords(metric=means.metric, unit=means.unit), means.title
    else:
        found = select(measurements, pair=pair, metric=metric, of=view.kind.name)
        title = _against(measurements, str(found.pair.item()))
    directions = [f"{name}{view.kind.shown}" for name in measurements.directions]
    shown = [require_effect(effect, found)] if effect else [name for name in directions if name in found]
    figure = view.draw(found, shown, look)
    figure.suptitle(title, fontsize=10)
    return figure


def _against(measurements: Measurements, pair: str) -> str:
    """A pair's two prompts."""
    data = measurements.pairs.sel(pair=pair)
    corrupt = WITH_NOISE if measurements.provenance.get("noise") else data.corrupt_prompt.item() or ITSELF
    return f"{drawable(data.clean_prompt.item())}   against   {drawable(corrupt)}"
