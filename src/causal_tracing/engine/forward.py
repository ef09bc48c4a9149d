"""One batch of runs of equal length, in one whole forward of the model. Plain, and the oracle of all that is faster.

1. Every place that an edit writes at, or that is wanted, gets a hook.
2. At each, the rows' edits are applied to the current value, in computation order.
3. What is wanted is copied; the logits of the last `keep` positions come back.
"""

import inspect
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from causal_tracing.edits import Edit, From, Run
from causal_tracing.engine.taps import Place, attached
from causal_tracing.errors import InvalidEdit
from causal_tracing.model import Model


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recording:
    """What one run left behind: its activations at places [token, d_model], and logits [readout, vocab].

    Activations are the module's own outputs, before the layer's scale.
    """

    activations: Mapping[Place, Float[Tensor, "token d_model"]] = field(default_factory=dict)
    logits: Float[Tensor, "readout vocab"]


def forward(
    model: Model,
    runs: Sequence[Run],
    donors: Mapping[Run, Recording],
    *,
    keep: int,
    wanted: Collection[Place] = (),
) -> tuple[Float[Tensor, "run keep vocab"], Mapping[Place, Float[Tensor, "run token d_model"]]]:
    """The runs' logits at the last `keep` positions, and their activations at the wanted places.

    `donors` holds a recording of every run that an edit reads from.
    """
    edits: dict[Place, list[tuple[int, Edit]]] = defaultdict(list)
    for row, run in enumerate(runs):
        for edit in run.edits:
            check_layer(model, edit)
            edits[edit.site.component, edit.site.layer].append((row, edit))
    captured: dict[Place, Tensor] = {}
    visit = partial(_visit, model, edits, donors, wanted, captured)
    tokens = torch.tensor([run.tokens for run in runs], device=model.device)
    with model.at_rest(), attached(model, edits.keys() | set(wanted), visit, batch=len(runs)):
        logits = model.network(input_ids=tokens, use_cache=False, **_only_last(model, keep)).logits
    return logits[:, -keep:], captured


def _visit(
    model: Model,
    edits: Mapping[Place, Sequence[tuple[int, Edit]]],
    donors: Mapping[Run, Recording],
    wanted: Collection[Place],
    captured: dict[Place, Tensor],
    component: str,
    layer: int,
    value: Tensor,
) -> Tensor:
    place = component, layer
    if place in edits:
        value = _rewritten(value, edits[place], donors, model.scale(layer) if component.endswith("_out") else 1.0)
    if place in wanted:
        captured[place] = value.clone()  # falcon adds to its MLP's output in place
    return value


def _rewritten(
    value: Tensor, edits: Sequence[tuple[int, Edit]], donors: Mapping[Run, Recording], scale: float
) -> Tensor:
    value = value.clone()
    for row, edit in edits:
        site, source = edit.site, edit.source
        if isinstance(source, From):
            new = donors[source.run].activations[site.component, site.layer][source.position]
        else:
            new = torch.as_tensor(source.tensor) / scale
        new = new.to(value)
        if new.shape != value.shape[-1:]:
            raise InvalidEdit(f"{site} holds {value.shape[-1]} numbers; the tensor given has shape {tuple(new.shape)}.")
        current = value[row, site.position]
        value[row, site.position] = new if edit.alpha == 1 else (1 - edit.alpha) * current + edit.alpha * new
    return value


def _only_last(model: Model, keep: int) -> dict[str, int]:
    """Asks for few logits where the model can: the rest would be most of the memory."""
    known = "logits_to_keep" in inspect.signature(model.network.forward).parameters
    return {"logits_to_keep": keep} if known else {}


def check_layer(model: Model, edit: Edit) -> None:
    """Raises InvalidEdit where the model has no such layer."""
    if not 0 <= edit.site.layer < model.num_layers:
        raise InvalidEdit(
            f"An edit is at {edit.site}, but {model.name} has {model.num_layers} layers: 0 to {model.num_layers - 1}."
        )
