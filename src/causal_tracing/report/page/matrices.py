"""What the page's script draws paths from: a matrix of senders by receivers, and where each of them stands in a graph.

1. Labels: senders by layer; receivers by what they read (q, k, v, MLP, logits) and layer; the margin last.
2. Numbers of each pair, as many as there is room for: by every metric, else by the first; of the first pairs alone; and
   of one that is too large the senders and receivers with the strongest paths.
3. The mean has labels of its own, for it takes more room: each number has an interval and a p beside it.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.report.page.parts import MOST_NUMBERS, TESTED, lettered
from causal_tracing.report.page.text import metrics_with_effects, rounded, switched, visible
from causal_tracing.report.words.senders import hidden_senders
from causal_tracing.results.arms import DIRECTIONS
from causal_tracing.results.columns import among_others
from causal_tracing.results.effects import effects
from causal_tracing.results.means import MeanMap
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.select import measured_directions, select
from causal_tracing.results.site_kinds import SiteKind, kind_of

DIGITS = 4
LOOKED_OVER = 40  # senders, or receivers
GROUPS = ("q", "k", "v", "attn_out", "mixer_out", "mlp_out", "named", "logits", "beside")  # receivers, in their order
SENDER = re.compile(r"(z|attn_out|mlp_out|mixer_out|resid_pre) (\d+)(?:\.(\d+))? @ (.+)")
RECEIVER = re.compile(r"(q|k|v|attn_out|mixer_out|mlp_out) (\d+)(?:\.(\d+))?")
LABELS = {"mlp_out": "MLP", "mixer_out": "mixer", "resid_pre": "embedding"}
ABOVE = -2  # as the layer of a node: behind all layers that are drawn, before the logits


def matrix_data(measurements: Measurements, kind: SiteKind, shown: Sequence[str]) -> dict[str, Any]:
    """A kind's numbers by sender and receiver, of these pairs; null of a pair whose numbers are not on the page."""
    held = measurements.maps[kind.name]
    there = held.metric.values.tolist()
    metrics = [name for name in metrics_with_effects(measurements.pairs.sel(pair=list(shown))) if name in there]
    cells = held.sizes["sender"] * held.sizes["receiver"]
    directions = [arm.name for arm in DIRECTIONS.values() if arm.raw in held]
    room = MOST_NUMBERS // len(directions)
    metrics = metrics if len(metrics) * len(shown) * cells <= room else metrics[:1]
    count = max(1, room // (cells * max(1, len(metrics))))
    first = effects(measurements.of_pair(shown[0]), kind.name, metrics=metrics or [measurements.metric]).isel(pair=0)
    kept = _kept(first.isel(metric=0), directions, room)
    return {
        "kind": kind.name,
        "noun": kind.called,
        "matrix": True,
        "within": "matrix",
        "effects": switched(first),
        "metrics": metrics,
        "large": _is_large(kept),
        **_labels(kept),
        "left_out": _left_out(first, kept),
        "pairs": [
            {"metrics": {name: _of_pair(measurements, kind, pair, name, kept) for name in metrics}}
            if n < count
            else None
            for n, pair in enumerate(shown)
        ],
    }


def matrix_mean(means: MeanMap) -> dict[str, Any]:
    """The mean over pairs, laid out as a pair of `matrix_data`, with intervals and p; it has labels of its own."""
    found = means.cells
    names = switched(found)
    numbers = [*names, *(f"{name}_{part}" for name in names for part in TESTED)]
    kept = _kept(found, names, MOST_NUMBERS // len(numbers))
    here = found.sel(component=kept.component.values[0])
    return {
        **_labels(kept),
        "left_out": _left_out(found, kept),
        "metrics": {means.metric: _numbers(kept, [*numbers, "clusters"])
                    | {"hidden": _hidden(here, kept, names, float(means.total.estimate))}},
    }  # fmt: skip


def _of_pair(measurements: Measurements, kind: SiteKind, pair: str, metric: str, kept: xr.Dataset) -> dict[str, Any]:
    found = select(measurements, pair=pair, metric=metric, of=kind.name)
    here = found.sel(sender=kept.sender, receiver=kept.receiver)
    whole = found.sel(component=found.component.values[0])
    names = measured_directions(found)
    return _numbers(here, names) | {"hidden": _hidden(whole, kept, names, found.total_effect.item())}


def _numbers(found: xr.Dataset, names: Sequence[str]) -> dict[str, Any]:
    """Numbers as [sender][receiver], and a letter a receiver for the status of each sender's."""
    here = found.sel(component=found.component.values[0]).transpose("sender", "receiver", ...)
    status = [*map(lettered, here.status.values)]
    return {"status": status, **{name: rounded(here[name].values.tolist(), DIGITS) for name in names}}


def _hidden(found: xr.Dataset, kept: xr.Dataset, names: Sequence[str], total: float) -> dict[str, dict[int, list[int]]]:
    """By direction: senders that their whole effect hides, with the receivers of their paths of the other sign."""
    senders, receivers = ({str(name): n for n, name in enumerate(kept[axis].values)} for axis in ("sender", "receiver"))
    told: dict[str, dict[int, list[int]]] = {}
    for name in (name for name in names if name != "interaction" and np.isfinite(total)):
        hidden = hidden_senders(found[name].where(found.status == "ok"), total)
        told[name] = {
            senders[each.sender]: [receivers[one] for one in each.undone if one in receivers]
            for each in hidden
            if each.sender in senders
        }
    return told


def _kept(found: xr.Dataset, names: Sequence[str], room: int) -> xr.Dataset:
    """The map with its senders and receivers in order: all that there is room for, those with the strongest paths."""
    receivers = _receivers(found)
    order = sorted(range(len(receivers)), key=lambda n: (GROUPS.index(receivers[n]["group"]), receivers[n]["layer"], n))
    rows = np.argsort(found.sender_layer.values, kind="stable")
    ordered = found.isel(sender=rows, receiver=order)
    size = xr.concat([abs(ordered[name]) for name in names], "effect").max("effect")
    size = size.where((ordered.status == "ok") & among_others(ordered)).isel(component=0).fillna(0.0)
    if size.size <= room:
        return ordered
    # One threshold for both sides: the lowest by which what is left fits, with the margin as one more receiver.
    down, across = size.max("receiver").values, size.max("sender").values
    levels = np.unique(np.concatenate([down, across]))
    fits = [(down >= level).sum() * ((across >= level).sum() + 1) <= room for level in levels]
    level = levels[int(np.argmax(fits))] if any(fits) else np.inf  # else the margin alone, without any sender
    return ordered.isel(sender=down >= level, receiver=(across >= level) | ~among_others(ordered).values)


def _labels(kept: xr.Dataset) -> dict[str, Any]:
    found = [SENDER.fullmatch(str(name)) for name in kept.sender.values]
    several = len({each.group(4) for each in found if each}) > 1
    return {
        "senders": [_sender(*each, several=several) for each in _named(kept, "sender")],
        "receivers": _receivers(kept),
    }


def _receivers(found: xr.Dataset) -> list[dict[str, Any]]:
    return [_receiver(*each, kind_of(found).margin) for each in _named(found, "receiver")]


def _named(found: xr.Dataset, axis: str) -> Iterator[tuple[str, int]]:
    """The names along an axis, with their layers."""
    for name, layer in zip(found[axis].values, found[f"{axis}_layer"].values, strict=True):
        yield str(name), int(layer)


def _left_out(found: xr.Dataset, kept: xr.Dataset) -> list[int]:
    """How many senders and receivers are not on the page."""
    return [int(found.sizes[axis] - kept.sizes[axis]) for axis in ("sender", "receiver")]


def _is_large(kept: xr.Dataset) -> bool:
    """Whether there is more than one looks over."""
    return max(kept.sizes["sender"], kept.sizes["receiver"]) > LOOKED_OVER


def _sender(name: str, layer: int, *, several: bool) -> dict[str, Any]:
    """A sender's name and node; at `several` tokens one of each, which is not the node of a receiver."""
    found = SENDER.fullmatch(name)
    if not found:
        return {"name": visible(name), "layer": layer, "node": [visible(name), visible(name), layer, "left", 0]}
    *place, token = found.groups()
    node, at = _node(*place), f" @ {visible(token)}"
    return {
        "name": visible(name),
        "layer": layer,
        "node": [node[0] + at, node[1] + at, *node[2:]] if several else node,
    }


def _receiver(name: str, layer: int, margin: str) -> dict[str, Any]:
    """A receiver's group, and what is written over its column; the margin is of a group of its own."""
    found, text = RECEIVER.fullmatch(name), visible(name)
    if found:
        component, _, part = found.groups()
        return {
            "name": text,
            "group": component,
            "layer": layer,
            "part": part or _whole(component, layer),
            "node": _node(*found.groups()),
        }
    if layer >= 0:
        return {"name": text, "group": "named", "layer": 0, "part": text, "node": [text, text, ABOVE, "left", 0]}
    group = "beside" if name == margin else "logits"
    return {"name": text, "group": group, "layer": -1, "part": text, "node": [text, text, -1, "left", 0]}


def _whole(component: str, layer: int) -> str:
    """What stands over a receiver that is no single head: its layer, or that it is all heads of it."""
    return "all" if component in ("q", "k", "v") else str(layer)


def _node(component: str, layer: str, part: str | None) -> list[Any]:
    """Where a sender or receiver stands in a graph: its name, its label, its layer, its side, its number there.

    A head's query and its output are one node. Keys and values are of heads of their own: queries may share them.
    """
    if part is not None and component in ("z", "q"):
        return [f"head {layer}.{part}", f"{layer}.{part}", int(layer), "left", int(part)]
    if part is not None:
        # Numbers give the order within a layer: heads of queries, then those of keys, then what is whole.
        return [f"key head {layer}.{part}", f"kv {layer}.{part}", int(layer), "left", 1000 + int(part)]
    label = f"{LABELS.get(component, 'attention')} {layer}"
    side = "right" if component == "mlp_out" else "left"
    return [label, label, int(layer), side, 2000]
