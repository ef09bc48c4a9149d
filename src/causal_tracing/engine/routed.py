"""Which experts add nothing: those that no token goes to. One forward of the unedited runs says it for all worlds."""

from collections.abc import Sequence

from causal_tracing.engine.hooks.record import record
from causal_tracing.interventions.edits import Edit, Run, World, donors_of
from causal_tracing.interventions.known import Silent
from causal_tracing.interventions.sites import Site
from causal_tracing.models.model import Model


def silent_experts(model: Model, worlds: Sequence[World]) -> Silent | None:
    """Whether the weight of an expert is zero in a run, at a position; None where no world patches single experts.

    Of the worlds' base runs and of all that they read.
    """
    found = [(world.base, edit) for world in worlds for edit in world.edits if _is_expert(edit)]
    if not found:
        return None
    runs = dict.fromkeys(run for base, edit in found for run in (base, *(each.run for each in donors_of(edit.source))))
    layers = sorted({edit.site.layer for _, edit in found})
    # Of base runs, edits of the world left out: where one has changed a token before, `effective` does not ask.
    recordings = record(model, [*runs], [("router", layer) for layer in layers])
    chosen = {
        (run, layer): (recordings[run].activations["router", layer] != 0).tolist() for run in runs for layer in layers
    }

    def silent(site: Site, run: Run, position: int) -> bool:
        return site.part is not None and not chosen[run, site.layer][position][site.part]

    return silent


def _is_expert(edit: Edit) -> bool:
    return edit.site.component == "experts" and edit.site.part is not None
