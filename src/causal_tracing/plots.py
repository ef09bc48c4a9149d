"""Figures with matplotlib, from Measurements alone: maps, bars by layer, MLP against attention, heads, neurons."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from causal_tracing.conditions import WITH_NOISE
from causal_tracing.drawing import drawable, maps, number_ticks, where
from causal_tracing.effects import label, require_effect
from causal_tracing.errors import InvalidOption, nearest
from causal_tracing.evidence import evidence
from causal_tracing.mean_plots import mean_curves, mean_head_maps, mean_maps, mean_neuron_ranks
from causal_tracing.reading import known, select
from causal_tracing.results import Measurements
from causal_tracing.unit_plots import head_maps, neuron_ranks

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
    data = measurements.data.sel(pair=found.pair.item())
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
