"""The nodes of a model: all that writes to the residual stream, from which circuits are made.

Every head by its output (attention as a whole in layers without heads), every MLP, or the one part of a layer. The
embedding is the input: it is no node, and is kept or ablated apart from them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from causal_tracing.engine.choose import proved
from causal_tracing.errors import ComponentNotOffered
from causal_tracing.interventions.edits import Part
from causal_tracing.models.model import Model
from causal_tracing.patching.kinds.receivers import IN_HEADS, LOGITS
from causal_tracing.patching.named_sites import ALL, NamedSite, node_site
from causal_tracing.prompts.tokens import Column

HEADS_OR_WHOLE = ("z", "attn_out")
INPUT = NamedSite(component="resid_pre", layers=(0, 0), parts=None, tokens=ALL)  # the embedding


def nodes_of(model: Model) -> tuple[NamedSite, ...]:
    """All nodes of a model, in computation order. Raises ComponentNotOffered where there is more than nodes."""
    _check_layers(model)
    return told_apart(model)


def told_apart(model: Model) -> tuple[NamedSite, ...]:
    """All that is offered of what writes to the stream, in computation order: heads where they are told apart."""
    if model.backend is None and model.anatomy.offers("z"):
        model = proved(model, ["z"])  # behind a gate, what goes into the last projection is no head's output
    offered = [*model.anatomy.components, *model.anatomy.mediators]
    if model.backend is not None:
        offered = [name for name in offered if name in model.backend.describe().components]
    found = []
    for layer in model.active:
        attention = next((name for name in HEADS_OR_WHOLE if name in offered and layer in model.having(name)), None)
        having = [name for name in (attention, "mlp_out") if name in offered and layer in model.having(name)]
        for component in having or ["mixer_out"]:
            whole = NamedSite(component=component, layers=(layer, layer), parts=None, tokens=ALL)
            count = model.parts("z", layer) if component == "z" else 0
            found += [replace(whole, parts=(head, head)) for head in range(count)] or [whole]
    return tuple(found)


def _check_layers(model: Model) -> None:
    """Raises ComponentNotOffered where something else than nodes and the embedding reaches the logits."""
    rules = model.rules
    if not rules.cut or not rules.gathers:
        raise ComponentNotOffered(
            f"Circuits are not offered on this model ({model.anatomy.family}): it is not known that its layers read "
            "the stream alone and add attention and an MLP to it, so that something could pass beside all nodes."
        )


def readers_in(nodes: Sequence[NamedSite], model: Model) -> tuple[Part, ...]:
    """What of these nodes' layers reads the stream, in computation order.

    Of heads these are queries, keys and values head by head; what else writes reads as a whole.
    """
    found: list[Part] = []
    for layer, component in dict.fromkeys((node.layers[0], node.component) for node in nodes if node.layers):
        each = IN_HEADS if component == "z" else (component,)
        found += [
            (name, layer, head)
            for name in each
            for head in (range(model.parts(name, layer)) if component == "z" else (None,))
        ]
    return tuple(found)


def each_sender(model: Model, at: Column) -> list[str]:
    """Every node and the embedding as senders, at one token."""
    return [f"{name} @ {at}" for name in (*_each(model, ("z",)), name_of(INPUT))]


def each_receiver(model: Model) -> list[str]:
    """Whatever of a model reads the stream, one by one."""
    return [*_each(model, IN_HEADS), LOGITS]


def _each(model: Model, in_heads: Sequence[str]) -> Iterator[str]:
    """All nodes by name, heads by these components of theirs."""
    nodes = told_apart(model)
    layers = {node.component: [] for node in nodes}
    for node in nodes:
        assert node.layers is not None
        layers[node.component].append(node.layers[0])
    yield from (f"each {name}" for name in in_heads if "z" in layers)
    for component in ("attn_out", "mixer_out", "mlp_out"):
        # Where some layers' attention is told apart by heads, the others are named one by one.
        every = layers.get(component, []) == [*model.having(component)]
        yield from [f"each {component}"] if every else (f"{component} {layer}" for layer in layers.get(component, ()))


def name_of(node: NamedSite) -> str:
    """A node as it is named: `z 3.1`, `mlp_out 0`."""
    return str(node).partition(" @ ")[0]


def node_named(text: str) -> Iterator[NamedSite]:
    """The nodes that a text names, one by one. Raises InvalidOption."""
    site = node_site(text)
    for layer, part in site.places():
        yield replace(site, layers=(layer, layer), parts=None if part is None else (part, part))


def readers_of(nodes: Sequence[NamedSite], model: Model) -> dict[str, tuple[str, ...]]:
    """Which nodes can read what a node writes, by name: those of later layers, and behind it in its own."""
    return {name_of(one): tuple(name_of(other) for other in nodes if _behind(one, other, model)) for one in nodes}


def _behind(one: NamedSite, other: NamedSite, model: Model) -> bool:
    assert one.layers is not None
    assert other.layers is not None
    layer, later = one.layers[0], other.layers[0]
    return later > layer or (later == layer and one.component != other.component and _first(one, layer, model))


def _first(one: NamedSite, layer: int, model: Model) -> bool:
    """Whether it is added before the other part of its layer reads the stream."""
    layouts = model.anatomy.layouts
    sums = layouts[layer].sums if layouts else ()
    if len(sums) == 1 and len(sums[0].parts) > 1:  # side by side
        return False
    order = [name for each in sums for name, _ in each.parts] or ["attn_out", "mlp_out"]
    component = "attn_out" if one.component == "z" else one.component
    return component == order[0]


def weighted_size(kept: Sequence[NamedSite], readers: Mapping[str, Sequence[str]]) -> float:
    """The weighted number of edges among nodes that are kept: of each, the share of its readers that are kept too.

    The logits read every node, and are always kept.
    """
    # Added up in the order of their names: a set has none, and the last bits of a sum depend on it.
    names = {name_of(node) for node in kept}
    return float(sum((1 + len(names.intersection(readers[name]))) / (1 + len(readers[name])) for name in sorted(names)))
