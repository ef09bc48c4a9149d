"""What edits write: the donors' activations, given tensors and what is made of them, mixed with what is there."""

from collections.abc import Collection, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from causal_tracing.engine.backend import Donor, Place
from causal_tracing.engine.indices import indices
from causal_tracing.errors import InvalidEdit
from causal_tracing.interventions.edits import Attending, Edit, From, Given, Mean, Plus, Rewired, Run, Subspace, Zero

Write = tuple[int, Edit]  # a row of the value at a place, and the edit that is made there
LARGE = ("experts",)  # where values are large, and are made of those tokens alone that are written at


def narrowed(
    writes: Mapping[Place, Sequence[Write]], wanted: Collection[Place] = ()
) -> tuple[dict[Place, Sequence[Write]], dict[Place, Sequence[int]]]:
    """The writes with their rows among those that are shown, and which these are, at the large places.

    Where a place is `wanted` whole, all are shown.
    """
    found, shown = dict(writes), dict[Place, Sequence[int]]()
    for place in (place for place in writes if place[0] in LARGE and place not in wanted):
        rows = sorted({row for row, _ in writes[place]})
        at = {row: number for number, row in enumerate(rows)}
        found[place], shown[place] = [(at[row], edit) for row, edit in writes[place]], rows
    return found, shown


Donors = Mapping[Run, Donor]


def rewritten(
    value: Float[Tensor, "row width"],
    writes: Sequence[Write],
    donors: Donors,
    *,
    parts: int = 1,
    scale: float = 1.0,
) -> Float[Tensor, "row width"]:
    """A copy of the value with the edits made; a row holds so many `parts` side by side.

    What a tensor gives is before the layer's `scale`, as donors are. Raises InvalidEdit where it has another size.
    """
    # A run refuses a whole site beside one of its parts, so that it does not matter which are written first.
    whole = [(row, edit) for row, edit in writes if edit.site.part is None]
    single = [(row * parts + edit.site.part, edit) for row, edit in writes if edit.site.part is not None]
    if whole:
        value = _rewritten(value, whole, donors, 1, scale)
    if single:
        value = _rewritten(value.unflatten(1, (parts, -1)).flatten(0, 1), single, donors, parts, scale).view_as(value)
    return value


def _rewritten(value: Tensor, writes: Sequence[Write], donors: Donors, parts: int, scale: float) -> Tensor:
    rows = indices([row for row, _ in writes], value.device)
    current = value[rows]
    if all(isinstance(edit.source, From) for _, edit in writes):
        new = _donated(current, [edit for _, edit in writes], donors, parts)
    else:
        new = torch.stack([_source(there, edit, donors, parts, scale) for there, (_, edit) in zip(current, writes)])  # noqa: B905
    if any(edit.alpha != 1 for _, edit in writes):
        alpha = torch.tensor([[edit.alpha] for _, edit in writes], dtype=value.dtype, device=value.device)
        # Alpha 1 is the source to the bit: 0 · current would make NaN of an infinite number.
        new = torch.where(alpha == 1, new, (1 - alpha) * current + alpha * new)
    # A copy: the model may hold the value elsewhere, and autograd may need it as it was.
    return value.index_copy(0, rows, new)


def _source(current: Tensor, edit: Edit, donors: Donors, parts: int, scale: float) -> Float[Tensor, " size"]:
    site, source = edit.site, edit.source
    match source:
        case From():
            return _donor(current, edit, source, donors, parts)
        case Mean():
            return torch.stack([_donor(current, edit, one, donors, parts) for one in source.donors]).mean(0)
        case Zero():
            return torch.zeros_like(current)
        case Given():
            return _given(current, site, source.tensor, current.shape) / scale
        case Plus():
            return current + _given(current, site, source.tensor, current.shape) / scale
        case Attending() | Rewired():
            raise AssertionError(f"{edit.site} holds no numbers")  # it is told to attention, or to a run, itself
        case Subspace():
            basis = _given(current, site, source.basis, (len(source.basis), *current.shape))
            # The rows need not be orthonormal, and torch has no QR in half precision.
            orthonormal = torch.linalg.qr(basis.float().T)[0].to(current.dtype)
            apart = _donor(current, edit, source.donor, donors, parts) - current
            return current + orthonormal @ (orthonormal.T @ apart)


def _donated(current: Tensor, edits: Sequence[Edit], donors: Donors, parts: int) -> Float[Tensor, "row size"]:
    """What each of these edits reads of another run, [row, size]; what many of them read is looked up once."""
    numbers: dict[tuple[str, int, From], int] = {}
    found: list[Tensor] = []
    which: list[int] = []
    for edit in edits:
        assert isinstance(edit.source, From)
        read = edit.site.component, edit.site.layer, edit.source
        if read not in numbers:
            numbers[read] = len(found)
            found.append(_whole(edit, edit.source, donors, parts, current.shape[-1]).to(current))
        which.append(numbers[read] * parts + (edit.site.part or 0))
    # Each donor's parts lie one behind the other: the part is picked by the same index as the donor.
    return torch.stack(found).view(len(found) * parts, -1)[indices(which, current.device)]


def _donor(current: Tensor, edit: Edit, source: From, donors: Donors, parts: int) -> Float[Tensor, " size"]:
    return _whole(edit, source, donors, parts, len(current)).view(parts, -1)[edit.site.part or 0].to(current)


def _whole(edit: Edit, source: From, donors: Donors, parts: int, size: int) -> Float[Tensor, " width"]:
    """What a donor has there, all of its parts, each of this size. Raises InvalidEdit where it has another."""
    found = donors[source.run].at((edit.site.component, edit.site.layer), source.position)
    if found.shape[0] != parts * size:
        raise InvalidEdit(
            f"{edit.site} holds {size} numbers and the donor's {found.shape[0] // parts}: patterns can be exchanged "
            "between prompts of equally many tokens only."
        )
    return found


def _given(current: Tensor, site: object, tensor: object, shape: tuple[int, ...]) -> Tensor:
    given = torch.as_tensor(tensor)
    if given.shape != shape:
        raise InvalidEdit(f"{site} holds {len(current)} numbers; the tensor given has shape {tuple(given.shape)}.")
    return given.to(current)
