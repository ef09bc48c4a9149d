"""What edits write: the donors' activations or given tensors, mixed with what is there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from causal_tracing.edits import Edit, From, Run
from causal_tracing.engine.taps import Place
from causal_tracing.errors import InvalidEdit


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recording:
    """What one run left behind: its activations at places [token, d_model], and logits [readout, vocab].

    Activations are the module's own outputs, before the layer's scale.
    """

    activations: Mapping[Place, Float[Tensor, "token d_model"]] = field(default_factory=dict)
    logits: Float[Tensor, "readout vocab"]


Write = tuple[int, Edit]  # a row of the value at a place, and the edit that is made there


def rewritten(
    value: Float[Tensor, "row d_model"], writes: Sequence[Write], donors: Mapping[Run, Recording], scale: float = 1.0
) -> Float[Tensor, "row d_model"]:
    """A copy of the value with the edits made. What a tensor gives is before the layer's `scale`, as donors are.

    Raises InvalidEdit where a given tensor has another size.
    """
    new = torch.stack([_source(value, edit, donors, scale) for _, edit in writes])
    alpha = torch.tensor([[edit.alpha] for _, edit in writes], dtype=value.dtype, device=value.device)
    rows = torch.tensor([row for row, _ in writes], device=value.device)
    mixed = torch.where(alpha == 1, new, (1 - alpha) * value[rows] + alpha * new)
    return value.index_copy(0, rows, mixed)


def _source(value: Tensor, edit: Edit, donors: Mapping[Run, Recording], scale: float) -> Tensor:
    site, source = edit.site, edit.source
    if isinstance(source, From):
        return donors[source.run].activations[site.component, site.layer][source.position].to(value)
    given = torch.as_tensor(source.tensor)
    if given.shape != value.shape[1:]:
        raise InvalidEdit(f"{site} holds {value.shape[1]} numbers; the tensor given has shape {tuple(given.shape)}.")
    return (given / scale).to(value)
