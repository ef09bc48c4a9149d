"""What is inside a cell, kind by kind: for which layers it is offered, how it is traced, and what the page is told.

Parts of the layer (heads, neurons, experts) are patched at the cell's token. A sender (a head, attention, an MLP) is
followed from there to every receiver. Where heads look is no trace (`Live`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from causal_tracing.errors import ModelError
from causal_tracing.explorer.asked import SENDERS, Deeper
from causal_tracing.explorer.views import paths_from, strongest_parts
from causal_tracing.models.model import Model
from causal_tracing.patching.kinds.senders import stream_of
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.site_kinds import KINDS

MOST_TOLD = 20  # neurons or experts
COMPONENTS = {"heads": "z", "neurons": "neurons", "experts": "experts", "pattern": "pattern"}


def offered(model: Model, components: Sequence[str]) -> dict[str, list[int]]:
    """The layers whose cells can be looked into, by kind; of paths by sender, with "paths" before its name."""
    found = {kind: list(model.having(name)) for kind, name in COMPONENTS.items() if name in components}
    return found | {f"paths {name}": layers for name, layers in senders(model, components).items()}


def senders(model: Model, components: Sequence[str]) -> dict[str, list[int]]:
    """The layers that have each sender; none where it is not known what a model's layers add."""
    try:
        stream = stream_of(model)
    except ModelError:
        return {}
    sent = [name for name in SENDERS if name in components]
    found = {name: [n for n in model.having(name) if stream.part(name, n) in stream.parts[n]] for name in sent}
    return {name: layers for name, layers in found.items() if layers}


def options_of(cell: Deeper) -> dict[str, Any]:
    """The options of the trace that measures what is inside a cell, and nothing else."""
    if cell.kind == "paths":
        return {"components": (), "senders": [f"{cell.sender} @ {cell.position}"]}
    asked: Any = ["z"] if cell.kind == "heads" else {cell.layer: []}
    where = KINDS[cell.kind].columns
    return {"components": (), "layers": [cell.layer], cell.kind: asked, where: [cell.position]}


def told_of(cell: Deeper, found: Measurements, *, filling: bool) -> tuple[str, Mapping[str, Any]]:
    """The event with which the page is told of these numbers, and what is in it."""
    if cell.kind == "paths":
        return "paths", {"part": paths_from(found, filling=filling)}
    # A layer has some tens of heads, which are all shown, and thousands of neurons.
    return "parts", strongest_parts(found, cell.kind, None if cell.kind == "heads" else MOST_TOLD)
