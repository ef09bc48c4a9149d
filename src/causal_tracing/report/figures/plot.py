"""Figures with matplotlib, from Measurements alone: maps, bars by layer, MLP against attention, heads, neurons."""

from matplotlib.figure import Figure

from causal_tracing.errors import InvalidOption, nearest
from causal_tracing.report.figures.curves import _bars, _column, _mlp_vs_attention, mean_curves
from causal_tracing.report.figures.heat_map import drawable, maps
from causal_tracing.report.figures.means import mean_head_maps, mean_maps, mean_neuron_ranks
from causal_tracing.report.figures.ranks import head_maps, neuron_ranks
from causal_tracing.report.words.method import WITH_NOISE
from causal_tracing.results.effects import require_effect
from causal_tracing.results.means import evidence
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.select import select

MEANS = {"mean": "blocks", "mean_curves": "blocks", "mean_heads": "heads", "mean_neurons": "neurons"}


KINDS = ("map", "layers", "mlp_vs_attention", "heads", "neurons", *MEANS)


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
    """A figure of one pair by one metric; `kind` is one of

    "map", "layers" (bars by layer), "mlp_vs_attention" (curves by layer), "heads" (maps of layers and heads) or
    "neurons" (all of them, ranked); or, of all pairs, "mean" (maps of the mean over pairs), "mean_curves" (by layer,
    with 95 % intervals), "mean_heads" or "mean_neurons". `effect` is one effect's name (default: all directions that
    were measured). `position` chooses the column of bars, curves and heads (default: the strongest one; for heads also
    "sum", the sum over positions) and of neurons (default: all); `layer` that of neurons. Raises InvalidOption.
    """
    if kind not in KINDS:
        raise InvalidOption(f"There is no plot {kind!r}. {nearest(kind, KINDS)}")
    if orient not in ORIENTATIONS:
        raise InvalidOption(f"orient={orient!r} is not known. {nearest(orient, ORIENTATIONS)}")
    if layer is not None and kind not in ("neurons", "mean_neurons"):
        raise InvalidOption(f'layer={layer} chooses the neurons of plot("neurons"); {kind!r} shows every layer.')
    if kind in MEANS:
        if pair is not None:
            raise InvalidOption(f"A mean is over all pairs: leave out pair={pair!r}, or choose another plot.")
        return _of_mean(measurements, kind, effect, position, layer, metric, orient, vocabulary)
    found = select(measurements, pair=pair, metric=metric, of=kind if kind in ("heads", "neurons") else "blocks")
    shown = [require_effect(effect, found)] if effect else list(measurements.directions)
    if kind == "map":
        figure = maps(found, shown, orient, vocabulary)
    elif kind == "heads":
        figure = head_maps(found, shown, position=position, orient=orient, vocabulary=vocabulary)
    elif kind == "neurons":
        figure = neuron_ranks(found, shown, position=position, layer=layer, vocabulary=vocabulary)
    else:
        draw = _bars if kind == "layers" else _mlp_vs_attention
        figure = draw(found, shown, _column(found, shown[0], position), vocabulary)
    data = measurements.pairs.sel(pair=found.pair.item())
    corrupt = WITH_NOISE if measurements.provenance.get("noise") else data.corrupt_prompt.item()
    figure.suptitle(f"{drawable(data.clean_prompt.item())}   against   {drawable(corrupt)}", fontsize=10)
    return figure


def _of_mean(
    measurements: Measurements,
    kind: str,
    effect: str | None,
    position: int | str | None,
    layer: int | None,
    metric: str | None,
    orient: str,
    vocabulary: str | None,
) -> Figure:
    means = evidence(measurements, metric=metric, of=MEANS[kind])
    shown = [require_effect(effect, means.cells)] if effect else list(measurements.directions)
    match kind:
        case "mean":
            return mean_maps(means, shown, orient, vocabulary)
        case "mean_curves":
            return mean_curves(means, shown, position, vocabulary)
        case "mean_heads":
            return mean_head_maps(means, shown, position, orient, vocabulary)
        case _:
            return mean_neuron_ranks(means, shown, position, layer, vocabulary)
