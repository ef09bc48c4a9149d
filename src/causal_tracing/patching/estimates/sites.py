"""Estimates of single sites: what is put in, times the metric's gradient there.

- atp: (donor - base) times the metric's gradient at the base run (attribution patching, Nanda 2023): two forwards and
  one backward for everything.
- ig: the gradient averaged at `steps` midpoints of the straight line from the base run's activations to the donor's
  (integrated gradients, Sundararajan et al. 2017), all positions of one layer's component together: as many forwards
  and backwards for each layer and component as steps.
"""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from causal_tracing.engine.backend import Backend, Differentiable, Recording
from causal_tracing.interventions.edits import Edit, From, Run
from causal_tracing.interventions.sites import Site
from causal_tracing.patching.cells import Question
from causal_tracing.patching.columns import patched_together
from causal_tracing.patching.estimates.screen import Screen, share
from causal_tracing.patching.job import Job
from causal_tracing.patching.metrics.terms import Term
from causal_tracing.patching.options.trace import Progress
from causal_tracing.prompts.alignment import Slot
from causal_tracing.results.arms import Arm


def site_estimates(
    job: Job, screen: Screen, question: Question, terms: Sequence[Term], progress: Progress
) -> dict[str, np.ndarray]:
    """The estimated effects of every cell by kind, each of a position of its own; NaN where it is paired with none."""
    arm, pair = job.grids[0].arms[0], question.pair
    # Estimates are of single positions: each column has one slot, or none where the token is not paired.
    slots = {n: one[0] for n, column in enumerate(job.grids[0].columns) for one in patched_together(pair, column)}
    places = [place for grid in job.grids for place in grid.written()]
    moved = [
        _moved(job.backend, screen, term, question, arm, places, list(slots.values()), share(progress, n, len(terms)))
        for n, term in enumerate(terms)
    ]
    weights = [(1.0 if arm.restores else -1.0) * term.weight for term in terms]
    found = {}
    for grid in job.grids:
        found[grid.kind.name] = into = np.full(grid.shape, np.nan)
        for (c, component), (n, layer) in product(enumerate(grid.components), enumerate(grid.layers)):
            if (component, layer) not in places:
                continue
            both = zip(weights, moved, strict=True)
            values = np.sum([weight * each[component, layer] for weight, each in both], axis=0)  # [slot, part]
            # Of fewer heads (grouped keys and values) the places behind the last one stay undefined.
            target = into[c, n] if grid.kind.part else into[c, n][None]  # [part, column]
            target[: values.shape[1], list(slots)] = values.T
    return found


def _moved(
    backend: Backend,
    screen: Screen,
    term: Term,
    question: Question,
    arm: Arm,
    places: Sequence[tuple[str, int]],
    slots: Sequence[Slot],
    progress: Progress,
) -> dict[tuple[str, int], np.ndarray]:
    """How far the term moves with what is put in at each slot [slot, part]."""
    base, donor = map(term.longer, question.contrast.sides(0, restores=arm.restores))
    here = [slot.corrupt if arm.restores else slot.clean for slot in slots]
    there = [slot.clean if arm.restores else slot.corrupt for slot in slots]
    donors = backend.record([donor], places)
    given = donors[donor].activations
    if screen.method == "atp":
        (found,) = backend.gradients([base], places, term.measure, keep=term.keep)
        held, slopes = ({place: each[place][0] for place in places} for each in found)
    else:
        # Integrated gradients are at other runs than the base run, whose activations are needed all the same.
        held = backend.record([base], places)[base].activations
        slopes = {}
        for done, (component, layer) in enumerate(places):
            progress(done, len(places))
            sites = [Site(component, layer, position) for position in here]
            mean = integrated(
                backend, base, donor, sites, term.measure, screen.steps, there=there, donors=donors, keep=term.keep
            )
            slopes[component, layer] = torch.zeros_like(held[component, layer], dtype=mean.dtype)
            slopes[component, layer][here] = mean
    progress(1, 1)
    described, moved = backend.describe(), {}
    for place in places:
        apart = (given[place][there] - held[place][here]).double() * slopes[place][here].double()
        moved[place] = apart.unflatten(1, (described.parts(*place), -1)).sum(-1).cpu().numpy()
    return moved


def integrated(
    backend: Backend,
    base: Run,
    donor: Run,
    sites: Sequence[Site],
    measure: Differentiable,
    steps: int,
    *,
    there: Sequence[int] | None = None,
    donors: Mapping[Run, Recording] | None = None,
    keep: int = 1,
) -> Float[Tensor, "site width"]:
    """The gradient at sites of one component and layer, averaged over the way of all of them from base to donor.

    All sites move together and at the same pace, to what the donor has at the positions `there` (default: the same);
    what lies before them is the base run's, what lies behind them follows. Over them all, Σ (donor − base) · this tends
    to metric(patched) − metric(base) as steps grow.
    """
    component, layer = sites[0].component, sites[0].layer
    read = [site.position for site in sites] if there is None else there
    both = list(zip(sites, read, strict=True))
    runs = [
        # Midpoints: where the slope changes evenly they give the integral exactly, with any number of steps.
        Run(base.tokens, tuple(Edit(site, From(donor, at), (step + 0.5) / steps) for site, at in both))
        for step in range(steps)
    ]
    found = backend.gradients(runs, [(component, layer)], measure, donors=donors, keep=keep)
    parts = [part.gradients[component, layer].double().sum(0) for part in found]
    mean = torch.stack(parts).sum(0) / steps
    return mean[[site.position for site in sites]]
