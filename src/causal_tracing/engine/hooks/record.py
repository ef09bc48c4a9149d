"""Activations and logits of runs: what donors leave behind, and what methods look at."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial

from causal_tracing.engine.backend import Place, Recording
from causal_tracing.engine.hooks.forward import check_layers, forward
from causal_tracing.engine.memory import RECORDED, by_length
from causal_tracing.interventions.donors import in_levels, read_by
from causal_tracing.interventions.edits import Run
from causal_tracing.models.model import Model


def record(model: Model, runs: Sequence[Run], places: Collection[Place] = (), *, keep: int = 1) -> dict[Run, Recording]:
    """Each distinct run's activations at the places (component, layer), and its logits at the last `keep` positions.

    Activations are the modules' own outputs: a layer's scale is not applied. Donors of the runs' own edits are
    recorded first. Raises OutOfMemory where one run alone does not fit.
    """
    return _recordings(model, runs, places, keep, donor_recordings(model, runs))


def _recordings(
    model: Model, runs: Sequence[Run], places: Collection[Place], keep: int, donors: Mapping[Run, Recording]
) -> dict[Run, Recording]:
    parts = by_length(model, runs, partial(_recorded, model, donors=donors, places=places, keep=keep))
    return {run: recording for part in parts for run, recording in part.items()}


def _recorded(
    model: Model, batch: Sequence[Run], *, donors: Mapping[Run, Recording], places: Collection[Place], keep: int
) -> dict[Run, Recording]:
    """The recordings of runs of equal length, in one forward."""
    logits, captured = forward(model, batch, donors, keep=keep, wanted=places)
    return {
        run: Recording(
            # Clones: a view of one row would keep the whole batch.
            activations={place: values[row].clone() for place, values in captured.items()},
            logits=logits[row].clone(),
        )
        for row, run in enumerate(batch)
    }


def donor_recordings(model: Model, runs: Iterable[Run], without: Collection[Run] = ()) -> dict[Run, Recording]:
    """A recording of every run that these runs read from, and that those read from, at the places that are read.

    Of those `without`, which are run beside them, there is none.
    """
    runs = list(runs)
    check_layers(model, (edit for run in runs for edit in run.edits))  # before donors are recorded there
    read = {run: kept for run, kept in read_by(runs).items() if run not in without}
    places = {run: frozenset((component, layer) for component, layer, _ in kept) for run, kept in read.items()}
    everywhere = frozenset(place for wanted in places.values() for place in wanted)
    recordings: dict[Run, Recording] = {}
    for level in in_levels(read):
        alike: dict[frozenset[Place], list[Run]] = {}
        for donor in level:  # of a few, more is kept than is read, so that they share a forward
            alike.setdefault(everywhere if len(read) <= RECORDED else places[donor], []).append(donor)
        for wanted, donors in alike.items():
            recordings |= _recordings(model, donors, wanted, 1, recordings)
    return recordings
