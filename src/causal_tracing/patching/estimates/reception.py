"""Exact reception: a receiver's own arithmetic on the stream with what a sender adds, and a slope behind it.

1. Each sender's stream is carried to its receivers as for the path itself (`Sending.carried`), and what they make of
   it is read: values, MLPs.
2. Queries and keys are written into the base run, all of a layer's heads at once, and what each head then gives is
   read: so its softmax is done, over the other keys as they are. Of keys that is at every query that sees them.
3. What has changed is multiplied with the metric's slope there in the base run.

What the logits read is the path itself, which is measured. Sources: the softmax of queries and keys as in Kramar et
al. 2024 (arXiv 2403.00745, section 3.1.1); between tokens as in PEAP (Haklay et al. 2025, arXiv 2502.04577).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from causal_tracing.engine.backend import Differentiable, Donor, Place
from causal_tracing.interventions.donors import Kept
from causal_tracing.interventions.edits import Edit, From, Run, World, one_run
from causal_tracing.interventions.sites import Site
from causal_tracing.patching.cells import last_of
from causal_tracing.patching.estimates.followed import Followed
from causal_tracing.patching.kinds.receivers import LOGITS
from causal_tracing.patching.kinds.senders import sending
from causal_tracing.patching.metrics.scoring import Scoring
from causal_tracing.patching.options.trace import Progress

SENDERS = 64  # that are read at once: what is kept of them is held together
SOFTMAX = ("q", "k")  # what is received there changes a pattern


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """What is read of one run for the receivers of a component in one layer, and of which sender."""

    sender: int
    component: str  # of the receivers: q, k, v, or what reads as a whole
    layer: int
    run: Run
    place: Place  # where their part of the change is seen
    positions: tuple[int, ...]


def by_reception(
    paths: Followed, measure: Differentiable, scoring: Scoring, progress: Progress
) -> Float[np.ndarray, "sender reading"]:
    """The estimate of each path: what the receiver makes of what is sent, exactly, and then along the slope."""
    found = np.zeros((len(paths.changed), len(paths.readings)))
    seen = {("z" if name in SOFTMAX else name, layer) for name, layer in paths.places}
    number = {reading: n for n, reading in enumerate(paths.readings)}
    slopes: dict[Place, Tensor] = {}
    if seen:
        (linear,) = paths.job.backend.gradients([paths.base], sorted(seen), measure)
        slopes = {place: linear.gradients[place][0].double() for place in seen}
    for start in range(0, len(paths.changed), SENDERS):
        progress(start, len(paths.changed))
        some = range(start, min(start + SENDERS, len(paths.changed)))
        reads = [each for sender in some for each in _reads(paths, sender)]
        for each, parts in zip(reads, _moved(paths, reads, slopes), strict=True) if reads else ():
            for part, value in enumerate(parts):
                if (each.component, each.layer, part) in number:
                    found[each.sender, number[each.component, each.layer, part]] = value
            if (each.component, each.layer, None) in number:
                found[each.sender, number[each.component, each.layer, None]] = sum(parts)
    if paths.reads_logits:
        found[:, number[(LOGITS, len(paths.grid.stream.parts), None)]] = _at_the_logits(paths, scoring)
    return found


def _reads(paths: Followed, sender: int) -> Iterator[_Read]:
    """All that is read for one sender."""
    changed = paths.changed[sender]
    if not changed:
        return
    stream, base = paths.grid.stream, paths.base
    sent = sending(stream, base, changed)
    positions = tuple(sent.positions)
    for component, layer in paths.places:
        at = stream.stage((component, layer, None))
        if at < sent.first:
            continue
        run, place, seen = sent.carried(component, base, at), (component, layer), tuple(sent.seen(component))
        if component in SOFTMAX:
            edits = (Edit(Site(component, layer, position), From(run, position)) for position in positions)
            run, place = one_run(base.tokens, (*base.edits, *edits)), ("z", layer)
            seen = tuple(sent.later) if component == "k" else positions
        yield _Read(sender=sender, component=component, layer=layer, run=run, place=place, positions=seen)


def _moved(paths: Followed, reads: Sequence[_Read], slopes: Mapping[Place, Tensor]) -> list[Float[np.ndarray, " part"]]:
    """How far the metric moves along the slope with what each part of a receiver makes of what is sent."""
    wanted: dict[Run, list[Kept]] = {paths.base: []}
    for each in reads:
        kept = [(*each.place, position) for position in each.positions]
        wanted.setdefault(each.run, []).extend(kept)
        wanted[paths.base] += kept
    found = paths.backend.read(paths.base, wanted)
    alike: dict[tuple[str, int, tuple[int, ...]], list[int]] = {}
    for number, each in enumerate(reads):
        alike.setdefault((each.component, each.layer, each.positions), []).append(number)
    moved: dict[int, np.ndarray] = {}
    for numbers in alike.values():
        some = [reads[number] for number in numbers]
        moved.update(zip(numbers, _along(paths, some, found, slopes[some[0].place]), strict=True))
    return [moved[number] for number in range(len(reads))]


def _along(
    paths: Followed, reads: Sequence[_Read], found: Mapping[Run, Donor], slopes: Float[Tensor, "token width"]
) -> Float[np.ndarray, "read part"]:
    """The same of reads of one place: by heads of queries, or of keys and values the sum over those that share them."""
    first, at = reads[0], list(reads[0].positions)
    runs = [*(each.run for each in reads), paths.base]
    values = torch.stack([torch.stack([found[run].at(first.place, position) for position in at]) for run in runs])
    moved = ((values[:-1].double() - values[-1].double()) * slopes[at]).sum(1)
    return moved.unflatten(1, (paths.parts((first.component, first.layer)), -1)).sum(2).cpu().numpy()


def _at_the_logits(paths: Followed, scoring: Scoring) -> Float[np.ndarray, " sender"]:
    """What each sender's path to the logits changes of the metric, measured: of the world less the base run."""
    stream, base, pair = paths.grid.stream, paths.base, paths.question.number
    logits = [(LOGITS, len(stream.parts), None)]
    sent = [n for n, changed in enumerate(paths.changed) if changed]
    edits = [sending(stream, base, paths.changed[n]).received(logits) for n in sent]
    worlds = [World(base, each, last_of(base), pair) for each in [(), *edits]]
    values = scoring.evaluate(worlds).values[:, 0]
    found = np.zeros(len(paths.changed))
    found[sent] = values[1:] - values[0]
    return found
