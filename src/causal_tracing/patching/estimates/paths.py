"""Estimates of paths from senders to receivers: what a sender adds to the stream, and what each receiver makes of it.

- eap: what is added, times the metric's slope with what the receiver reads, in the base run (edge attribution patching:
  Syed, Rager & Conmy 2023, arXiv 2310.10348).
- eap-ig: that slope averaged over `steps` points of the way from the base run's embeddings to the donor's (EAP-IG,
  inputs: Hanna, Pezzelle & Belinkov 2024, arXiv 2403.17806).
- reception: the receiver's own arithmetic is done on what it reads, and a slope goes on behind it (`reception`).

Receivers of several parts are the sum over these. In the column of all paths stands the sender's own estimate: what is
put in, times the slope there.
"""

import numpy as np
import torch
from jaxtyping import Float

from causal_tracing.engine.backend import Differentiable
from causal_tracing.interventions.edits import From, Run
from causal_tracing.patching.cells import Question
from causal_tracing.patching.estimates.followed import Followed, followed
from causal_tracing.patching.estimates.path_slopes import by_slopes, way
from causal_tracing.patching.estimates.reception import by_reception
from causal_tracing.patching.estimates.screen import Screen
from causal_tracing.patching.job import Job
from causal_tracing.patching.kinds.senders import EVERY, PathGrid
from causal_tracing.patching.metrics.scoring import Scoring
from causal_tracing.patching.metrics.terms import Term
from causal_tracing.patching.options.trace import Progress


def path_estimates(
    job: Job, screen: Screen, question: Question, grid: PathGrid, term: Term, scoring: Scoring, progress: Progress
) -> tuple[Float[np.ndarray, "component sender receiver"], np.ndarray]:
    """The estimated effects of all paths, and what is known of each beforehand: "structural_zero", "unpaired", or "".

    Raises InvalidOption, ComponentNotOffered.
    """
    paths, steps = followed(job, grid, question), screen.steps if screen.method == "eap-ig" else 1
    if screen.method == "reception":
        found = by_reception(paths, term.measure, scoring, progress)
    else:
        found = by_slopes(paths, term.measure, steps)
    members = paths.members.astype(float)  # numpy multiplies booleans one by one
    estimates = np.where(paths.reaches, found, 0.0) @ members
    known = np.array(["structural_zero", ""], dtype=object)[(paths.reaches @ members > 0).astype(int)]
    every = [name for name, _ in grid.receivers].index(EVERY)
    estimates[:, every], known[:, every] = _senders(paths, term.measure, way(paths.base, paths.donor, steps)), ""
    none = [sender for sender, changed in enumerate(paths.changed) if not changed]
    estimates[none], known[none] = np.nan, "unpaired"
    progress(1, 1)
    return (estimates if grid.arms[0].restores else -estimates)[None], known[None]


def _senders(paths: Followed, measure: Differentiable, runs: list[Run]) -> Float[np.ndarray, " sender"]:
    """The estimate of each sender as a site: what is put in, times the slope there (the mean over the runs)."""
    backend = paths.job.backend
    places = sorted({(edit.site.component, edit.site.layer) for edits in paths.changed for edit in edits})
    both = backend.record([paths.base, paths.donor], places)
    held, given = both[paths.base].activations, both[paths.donor].activations
    parts = [part.gradients for part in backend.gradients(runs, places, measure)]
    slopes = {place: torch.cat([part[place] for part in parts]).double().mean(0) for place in places}
    found = np.zeros(len(paths.changed))
    for sender, edits in enumerate(paths.changed):
        for site, source in ((edit.site, edit.source) for edit in edits):
            assert isinstance(source, From), "estimates put in what the other prompt's run has"
            place = site.component, site.layer
            apart = given[place][source.position].double() - held[place][site.position].double()
            each = (apart * slopes[place][site.position]).unflatten(0, (paths.parts(place), -1)).sum(1)
            found[sender] += float(each.sum() if site.part is None else each[site.part])
    return found
