"""A ledger: when sites are patched, which writer to the stream changed what it writes, and what that did to the answer.

The stream behind the last layer is a sum of what the embedding, attention and MLPs write. With the final norm's scale
held as in the base run the logits are linear in it, so that each writer's change has a share of its own and all shares
add up; what the live norm changes is a line too. The line of what was patched is its direct path; the others are what
compensated for it, or joined in (Rushing & Nanda 2024, arXiv 2402.15390).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from causal_tracing.engine.backend import Backend, Place, Recording
from causal_tracing.errors import ComponentNotOffered, InvalidOption
from causal_tracing.interventions.edits import Edit, From, Plus, Run, World
from causal_tracing.interventions.sites import FINAL_SCALE, RESIDUAL, Site
from causal_tracing.models.model import Model
from causal_tracing.patching.contrast import of_prompts
from causal_tracing.patching.metrics.built_in import BUILT_IN
from causal_tracing.patching.metrics.scoring import Scoring
from causal_tracing.patching.named_sites import NamedSite
from causal_tracing.prompts.pairs import TokenPair

NORM, WRITTEN, REST = "final_norm", "written", "rest"  # the lines that are of no writer
ADD_UP = 1e-3  # of the largest change: by more, the writers do not add up to the stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What one writer's change did to the answer, in logits, as the effect of what was patched is counted."""

    component: str
    layer: int | None
    change: float


def writers_of(model: Model) -> Mapping[Place, float]:
    """All that writes to the stream behind the embedding, and what the layer multiplies it by.

    Raises ComponentNotOffered where layers do more than add to the stream.
    """
    if model.backend is not None or model.anatomy.added_from or not model.anatomy.layouts:
        raise ComponentNotOffered(
            f"A ledger is not offered on this model ({model.anatomy.family}): it is not known that each of its layers "
            "gives the stream and what attention and MLP add to it, and nothing else."
        )
    return {
        (name, layer): scale
        for layer in model.active
        for each in model.layout(layer).sums
        for name, scale in each.parts
    }


def check_ledger(pair: TokenPair) -> None:
    """Raises InvalidOption for a pair whose answer is no difference of two logits: it would not be linear in these."""
    if pair.several_tokens or len(pair.answers) > 1 or len(pair.foils) != 1:
        raise InvalidOption(
            f"A ledger splits the difference of two logits, and pair {pair.id!r} has not one answer and one foil of "
            "one token each. Give it such an answer and foil."
        )


def lines(
    model: Model, backend: Backend, pair: TokenPair, sites: Sequence[NamedSite], *, restores: bool
) -> Iterator[Line]:
    """The ledger of one pair: a line a writer, then what was written into the stream itself, the norm, and the rest."""
    contrast = of_prompts(pair)
    base, donor = contrast.sides(0, restores=restores)
    edits = tuple(edit for site in sites for edit in site.edits(pair, contrast, donor, restores=restores))
    changes = _changes(backend.record([base, Run(base.tokens, edits)], _places(model)), model)
    # Where the stream itself is written, what the writers do not explain is that write.
    if not any(site.component in RESIDUAL for site in sites):
        _check_sum(model, changes)
    last, end = len(base.tokens) - 1, model.num_layers - 1
    held = Edit(Site(FINAL_SCALE, end, last), From(base, last))
    apart = [World(base, (Edit(Site("resid_post", end, last), Plus(each)), held), (last,)) for each in changes.values()]
    worlds = [World(base, (), (last,)), World(base, edits, (last,)), World(base, (*edits, held), (last,)), *apart]
    found = Scoring(backend, {0: pair}, metrics=[BUILT_IN["logit_diff"]]).evaluate(worlds).values[:, 0]
    (unedited, patched, frozen), each = found[:3], found[3:] - found[0]
    sign = 1.0 if restores else -1.0
    for (component, layer), change in zip(changes, each, strict=True):
        yield Line(component=component, layer=None if component == WRITTEN else layer, change=sign * float(change))
    yield Line(component=NORM, layer=None, change=sign * float(patched - frozen))
    yield Line(component=REST, layer=None, change=sign * float(frozen - unedited - each.sum()))


def _places(model: Model) -> list[Place]:
    return [("resid_pre", 0), *writers_of(model), ("resid_post", model.num_layers - 1)]


def _changes(found: Mapping[Run, Recording], model: Model) -> dict[Place, Float[Tensor, " d_model"]]:
    """By how much each writer's contribution at the last token changed, and what was written into the stream itself."""
    base, patched = (each.activations for each in found.values())

    def change(place: Place) -> Any:
        # Few bits are left of a difference of two long sums.
        return patched[place][-1].double() - base[place][-1].double()

    writers = {place: scale * change(place) for place, scale in writers_of(model).items()}
    whole, embedded = change(("resid_post", model.num_layers - 1)), change(("resid_pre", 0))
    written = whole - embedded - torch.stack([*writers.values()]).sum(0)
    return {("embed", 0): embedded, **writers, (WRITTEN, 0): written}


def _check_sum(model: Model, changes: Mapping[Place, Tensor]) -> None:
    """Raises ComponentNotOffered where the writers' changes are not the stream's."""
    size = max(float(each.abs().max()) for each in changes.values())
    left = float(changes[WRITTEN, 0].abs().max())
    if left > ADD_UP * size:
        raise ComponentNotOffered(
            f"A ledger is not offered on this model ({model.anatomy.family}): what its layers write does not add up to "
            f"the stream (by {left / size:.1e} of the largest change)."
        )
