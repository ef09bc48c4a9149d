"""Activations and logits of runs: what donors leave behind, and what methods look at."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial

from causal_tracing.engine.backend import Place, Recording
from causal_tracing.engine.hooks.forward import check_layer, forward
from causal_tracing.engine.memory import too_large
from causal_tracing.interventions.edits import Run
from causal_tracing.models.memory import in_parts
from causal_tracing.models.model import Model

ROWS = 16  # donors are few; what they leave is kept, so that a larger batch would save little


def record(model: Model, runs: Sequence[Run], places: Collection[Place] = (), *, keep: int = 1) -> dict[Run, Recording]:
    """Each distinct run's activations at the places (component, layer), and its logits at the last `keep` positions.

    Activations are the modules' own outputs: a layer's scale is not applied. Donors of the runs' own edits are
    recorded first. Raises OutOfMemory where one run alone does not fit.
    """
    donors = donor_recordings(model, runs)
    recordings: dict[Run, Recording] = {}
    by_length: dict[int, list[Run]] = {}
    for run in dict.fromkeys(runs):
        by_length.setdefault(len(run.tokens), []).append(run)
    for alike in by_length.values():
        for start in range(0, len(alike), ROWS):
            work = partial(_recorded, model, donors=donors, places=places, keep=keep)
            for part in in_parts(alike[start : start + ROWS], work, too_large(model, len(alike[0].tokens))):
                recordings |= part
    return recordings


def _recorded(
    model: Model, batch: Sequence[Run], *, donors: Mapping[Run, Recording], places: Collection[Place], keep: int
) -> dict[Run, Recording]:
    """The recordings of runs of equal length, in one forward."""
    logits, captured = forward(model, batch, donors, keep=keep, wanted=places)
    return {
        run: Recording(
            activations={place: values[row].clone() for place, values in captured.items()}, logits=logits[row].clone()
        )
        for row, run in enumerate(batch)
    }


def donor_recordings(model: Model, runs: Iterable[Run]) -> dict[Run, Recording]:
    """A recording of every run that an edit of these runs reads from, at the places that are read."""
    places: dict[Run, set[Place]] = {}
    for run in runs:
        for edit in run.edits:
            check_layer(model, edit)  # before the donor is recorded there
            for component, donor in edit.reads:
                places.setdefault(donor.run, set()).add((component, edit.site.layer))
    alike: dict[frozenset[Place], list[Run]] = {}
    everywhere = frozenset(place for wanted in places.values() for place in wanted)
    for donor, wanted in places.items():  # of a few, more is kept than is read, so that they share a forward
        alike.setdefault(everywhere if len(places) <= ROWS else frozenset(wanted), []).append(donor)
    recordings: dict[Run, Recording] = {}
    for wanted, donors in alike.items():
        recordings |= record(model, donors, wanted)
    return recordings
