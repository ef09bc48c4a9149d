"""Donors that are a base run with edits of their own: recorded like worlds, without what the edits cannot change.

What a sender brings to tens of thousands of receivers is read in a few hundred such runs, of a token or two each.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from causal_tracing.engine.backend import Place, Recording
from causal_tracing.engine.hooks.apply import LARGE, Donors
from causal_tracing.engine.memory import Sizes, in_batches
from causal_tracing.engine.packed.base_runs import Tape
from causal_tracing.engine.packed.layer_loop import Wave
from causal_tracing.engine.packed.schedule import INSIDE, donor_groups
from causal_tracing.interventions.donors import Kept
from causal_tracing.interventions.edits import Run, World
from causal_tracing.interventions.sites import ATTENTION
from causal_tracing.models.model import Model

KEPT = tuple(
    name for name in (*INSIDE, "k", "v") if name not in (ATTENTION, "pattern", *LARGE)
)  # what can be kept of a wave


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Changed:
    """What a run leaves behind, where that is not what its base run does."""

    base: Recording
    changed: dict[Kept, Float[Tensor, " width"]] = field(default_factory=dict)

    def at(self, place: Place, position: int) -> Float[Tensor, " width"]:
        """The activation of one token."""
        found = self.changed.get((*place, position))
        return self.base.at(place, position) if found is None else found


def behind_bases(bases: Iterable[Run], donors: Mapping[Run, Collection[Kept]]) -> dict[Run, World]:
    """The donors that are one of the base runs with more edits, as such worlds; the others are recorded whole.

    `donors` says what is read of each.
    """
    by_tokens: dict[tuple[int, ...], list[Run]] = {}
    for base in bases:
        by_tokens.setdefault(base.tokens, []).append(base)
    found: dict[Run, World] = {}
    for run, kept in donors.items():
        if all(component in KEPT for component, *_ in kept):
            for base in by_tokens.get(run.tokens, ()):
                edits = run.edits[len(base.edits) :]
                # A wave begins behind the embedding, where noise is added.
                noised = any(edit.site.component == "embed" for edit in edits)
                if edits and not noised and run.edits[: len(base.edits)] == base.edits:
                    found[run] = World(base, edits, (max(position for *_, position in kept),))
    return found


def recorded_behind(
    model: Model,
    worlds: Mapping[Run, World],
    kept: Mapping[Run, Collection[Kept]],
    tapes: Mapping[Run, Tape],
    known: Donors,
    limits: Sizes,
) -> dict[Run, Changed]:
    """What is kept of donors that are worlds behind base runs on the tapes; `known` has what their edits read."""
    found = {run: Changed(base=tapes[world.base].recordings[world.base]) for run, world in worlds.items()}
    order = {tape: number for number, tape in enumerate(dict.fromkeys(tapes.values()))}
    by_run = {run: order[tape] for run, tape in tapes.items()}
    runs = [*worlds]
    for numbers in in_batches((len(run.tokens) for run in runs), limits.wave):
        wanted = {number: kept[runs[number]] for number in numbers}
        planned = donor_groups([*worlds.values()], wanted, by_run, model.num_layers, model.anatomy.added_from)
        with model.at_rest():
            made = Wave(model, [*order], planned, known, limits.call).keep()
        for group in planned:
            for number, each in ((member.number, each) for member in group.members for each in member.kept):
                found[runs[number]].changed[each] = made[number, each]  # a KeyError where it passed unseen
    return found
