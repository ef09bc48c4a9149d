"""Runs as rows of one batch, and their edits as plain tensors: what `block.patched` is given."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from causal_tracing.engine.backend import Place
from causal_tracing.engine.hooks.forward import scale_at
from causal_tracing.errors import InvalidEdit
from causal_tracing.interventions.edits import (
    Attending,
    Edit,
    From,
    Given,
    Mean,
    Plus,
    Rewired,
    Run,
    Subspace,
    Zero,
    donors_of,
)
from causal_tracing.interventions.sites import ORDER
from causal_tracing.models.model import Model

Step = dict[str, Tensor | None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """What a trace is asked: tokens [row, token], places in the order in which they are passed, and which row is a run.

    Shorter runs (donors of other lengths) are filled up at their end: no token reads what stands behind it.
    """

    tokens: Tensor
    places: tuple[tuple[str, str, int, list[Step], Tensor | None], ...]
    rows: Mapping[Run, int]


def batch_of(model: Model, runs: Iterable[Run], wanted: Mapping[Place, Collection[Run]] | None = None) -> Batch:
    """The runs, with all that they read from, as one batch; of the `wanted` places the runs' values are given back."""
    levels = levels_of(runs)
    rows = {run: row for row, run in enumerate(levels)}
    longest = max(len(run.tokens) for run in rows)
    # Filled up behind, where causal attention never looks, and not before, where it would.
    tokens = torch.tensor([[*run.tokens, *[run.tokens[-1]] * (longest - len(run.tokens))] for run in rows])
    steps: dict[Place, list[Step]] = {}
    for place, by_level in _by_place_and_level(levels).items():
        steps[place] = [each for level in sorted(by_level) for each in _steps(model, place, by_level[level], rows)]
    wanted = wanted or {}
    places = []
    for component, layer in in_order(steps.keys() | wanted.keys()):
        kept = wanted.get((component, layer))
        path, side = module_at(model, component, layer)
        places.append((
            path, side, _parts(model, component), steps.get((component, layer), []),
            None if kept is None else torch.tensor([rows[run] for run in kept]),
        ))  # fmt: skip
    return Batch(tokens=tokens, places=tuple(places), rows=rows)


def levels_of(runs: Iterable[Run]) -> dict[Run, int]:
    """All runs that are needed: those of level 0 read from no other, those of a level from lower ones alone."""
    found: dict[Run, int] = {}

    def level(run: Run) -> int:
        if run not in found:
            donors = [donor.run for edit in run.edits for donor in donors_of(edit.source)]
            found[run] = max((1 + level(donor) for donor in donors), default=0)
        return found[run]

    for run in runs:
        level(run)
    return found


def module_at(model: Model, component: str, layer: int) -> tuple[str, str]:
    """The path of the module where a component passes, and the side of it: "input" or "output"."""
    if component == "embed":
        words = model.network.get_input_embeddings()
        return next(name for name, module in model.network.named_modules() if module is words), "output"
    whole = model.anatomy.path(layer)
    if component in ("resid_pre", "resid_post"):
        return whole, "input" if component == "resid_pre" else "output"
    layout = model.layout(layer)
    if component in ("z", "neurons"):
        return f"{whole}.{getattr(layout, component)}", "input"
    return f"{whole}.{getattr(layout, component.removesuffix('_out'))}", "output"


def in_order(places: Iterable[Place]) -> list[Place]:
    """The places in the order in which a run passes them."""
    return sorted(places, key=_passed)


def _passed(place: Place) -> tuple[int, int]:
    component, layer = place
    return (-1, 0) if component == "embed" else (layer, ORDER.index(component))


def _parts(model: Model, component: str) -> int:
    return 1 if component == "embed" else model.parts(component)


def _by_place_and_level(levels: Mapping[Run, int]) -> dict[Place, dict[int, list[tuple[Run, Edit]]]]:
    found: dict[Place, dict[int, list[tuple[Run, Edit]]]] = {}
    for run, level in levels.items():
        for edit in run.edits:
            place = edit.site.component, edit.site.layer
            found.setdefault(place, {}).setdefault(level, []).append((run, edit))
    return found


def _steps(model: Model, place: Place, writes: Sequence[tuple[Run, Edit]], rows: Mapping[Run, int]) -> list[Step]:
    """One step for writes of the same form: to the whole or to a part, with a tensor or without, in a subspace."""
    forms: dict[tuple[Any, ...], list[tuple[Run, Edit]]] = {}
    for run, edit in writes:
        rank = len(edit.source.basis) if isinstance(edit.source, Subspace) else 0
        form = edit.site.part is None, isinstance(edit.source, Given | Plus), rank, len(donors_of(edit.source))
        forms.setdefault(form, []).append((run, edit))
    return [_step(model, place, each, rows) for each in forms.values()]


def _step(model: Model, place: Place, writes: Sequence[tuple[Run, Edit]], rows: Mapping[Run, int]) -> Step:
    first = writes[0][1]
    sums = [_sum_of(edit, run, rows) for run, edit in writes]
    return {
        "rows": torch.tensor([rows[run] for run, _ in writes]),
        "positions": torch.tensor([edit.site.position for _, edit in writes]),
        "part": None if first.site.part is None else torch.tensor([edit.site.part for _, edit in writes]),
        "donor_rows": torch.tensor([each.rows for each in sums]),
        "donor_positions": torch.tensor([each.positions for each in sums]),
        "weights": torch.tensor([each.weights for each in sums], dtype=torch.float64),
        "keep": torch.tensor([each.keep for each in sums], dtype=torch.float64),
        "constant": _constants(model, place, [edit for _, edit in writes]),
        "basis": _bases([edit for _, edit in writes]),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sum:
    """What a write adds up: shares of what rows have at positions, and a share of what is there."""

    rows: tuple[int, ...]
    positions: tuple[int, ...]
    weights: tuple[float, ...]
    keep: float


def _sum_of(edit: Edit, run: Run, rows: Mapping[Run, int]) -> _Sum:
    # A tensor has no empty rows: who reads nothing reads itself, with the weight 0.
    donors = donors_of(edit.source) or (From(run, edit.site.position),)
    match edit.source:
        case From() | Mean():
            weight, keep = edit.alpha / len(donors), 1 - edit.alpha
        case Zero() | Given():
            weight, keep = 0.0, 1 - edit.alpha
        case Plus():
            weight, keep = 0.0, 1.0
        case Subspace():
            weight, keep = 1.0, 1.0  # what is written in the subspace is added, alpha times
        case Attending() | Rewired():
            raise AssertionError(f"{edit.site} is not offered here")
    return _Sum(
        rows=tuple(rows[donor.run] for donor in donors),
        positions=tuple(donor.position for donor in donors),
        weights=(weight,) * len(donors),
        keep=keep,
    )


def _constants(model: Model, place: Place, edits: Sequence[Edit]) -> Tensor | None:
    if not isinstance(edits[0].source, Given | Plus):
        return None
    scale = scale_at(model, place)
    found = [torch.as_tensor(edit.source.tensor).float() * edit.alpha / scale for edit in edits]  # pyright: ignore
    for edit, each in zip(edits, found, strict=True):
        if each.shape != found[0].shape:
            raise InvalidEdit(
                f"{edit.site} was given a tensor of shape {tuple(each.shape)}, others {tuple(found[0].shape)}."
            )
    return torch.stack(found)


def _bases(edits: Sequence[Edit]) -> Tensor | None:
    """Orthonormal rows [write, rank, size], times the root of alpha: it is multiplied by itself."""
    if not isinstance(edits[0].source, Subspace):
        return None
    bases = [torch.linalg.qr(torch.as_tensor(edit.source.basis).float().T)[0].T for edit in edits]  # pyright: ignore
    return torch.stack([basis * edit.alpha**0.5 for basis, edit in zip(bases, edits, strict=True)])
