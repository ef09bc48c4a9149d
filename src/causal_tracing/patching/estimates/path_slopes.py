"""Edge attribution: what a sender adds to the stream, times the slope of the metric with what each receiver reads.

1. The metric's slope at every part of every layer that receives: one forward and one backward.
2. Each head's slope by itself is pulled back to the stream that it reads, through its own layer alone (`pulled_back`).
3. What each sender adds to the stream at its tokens is multiplied with these, where the receiver is behind it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from causal_tracing.engine.backend import Differentiable, Place
from causal_tracing.errors import ComponentNotOffered, InvalidOption
from causal_tracing.interventions.donors import Kept
from causal_tracing.interventions.edits import Edit, From, Run
from causal_tracing.interventions.sites import Site
from causal_tracing.patching.estimates.followed import Followed
from causal_tracing.patching.kinds.receivers import LOGITS
from causal_tracing.patching.kinds.senders import SingleReceiver, Stage

READ_AT = ("resid_mid", "resid_pre")  # where a part of a layer reads the stream: one of these
Slopes = Mapping[SingleReceiver, Float[Tensor, "token d_model"]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Piece:
    """What one sender adds to the stream at one token, and the first stage that reads it."""

    sender: int
    position: int
    first: Stage
    added: Float[Tensor, " d_model"]


def by_slopes(paths: Followed, measure: Differentiable, steps: int) -> Float[np.ndarray, "sender reading"]:
    """The estimate of each path, from the slopes at `steps` points of the way from base to donor (1: at the base run).

    Raises InvalidOption where there is no such way: between prompts of different lengths; ComponentNotOffered where
    what is added does not stay as it is on its way.
    """
    _check_stream(paths)
    slopes = _slopes(paths, measure, way(paths.base, paths.donor, steps))
    found = np.zeros((len(paths.changed), len(paths.readings)))
    stream, gains = paths.grid.stream, gains_before(paths)
    by_position: dict[int, list[_Piece]] = {}
    for piece in _pieces(paths):
        by_position.setdefault(piece.position, []).append(piece)
    stages = [stream.stage(reading) for reading in paths.readings]
    behind: dict[Stage, np.ndarray] = {}  # by how much what begins at a stage has grown where each reads
    for position, pieces in by_position.items():
        # One product of matrices for each token, instead of one of vectors for each path.
        there = torch.stack([slopes[reading][position] for reading in paths.readings])
        values = (torch.stack([piece.added for piece in pieces]) @ there.T).cpu().numpy()
        for piece, row in zip(pieces, values, strict=True):
            if piece.first not in behind:
                grown = (gains[stage] / gains[piece.first] if stage >= piece.first else 0.0 for stage in stages)
                behind[piece.first] = np.array([*grown])
            found[piece.sender] += row * behind[piece.first]
    return found


def _check_stream(paths: Followed) -> None:
    """Raises ComponentNotOffered where norms stand between the sums."""
    model = paths.job.model
    for layer in range(model.num_layers):
        if not all(each.plain for each in model.layout(layer).sums):
            raise ComponentNotOffered(
                f"Edge attribution is not offered on this model ({model.anatomy.family}): in layer {layer} the stream "
                "is normed between the sums, so that what is added does not reach later layers as it is. Use "
                'method="reception".'
            )


def way(base: Run, donor: Run, steps: int) -> list[Run]:
    """Points of the straight line between two runs' embeddings: the first is the base run, the donor is left out."""
    if steps > 1 and len(base.tokens) != len(donor.tokens):
        raise InvalidOption(
            f'method="eap-ig" goes from the embeddings of one prompt to those of the other, and these have '
            f'{len(base.tokens)} and {len(donor.tokens)} tokens. Use prompts of one length, or method="eap".'
        )
    tokens = range(len(base.tokens))

    def edits(alpha: float) -> tuple[Edit, ...]:
        return tuple(Edit(Site("resid_pre", 0, position), From(donor, position), alpha) for position in tokens)

    return [base, *(Run(base.tokens, (*base.edits, *edits(step / steps))) for step in range(1, steps))]


def gains_before(paths: Followed) -> dict[Stage, float]:
    """What the stream has been multiplied by where each stage reads it, since the first layer: 1 in most models."""
    model, found, gain = paths.job.model, dict[Stage, float](), 1.0
    for layer in range(model.num_layers):
        number = 0
        for each in model.layout(layer).sums:
            found |= {(layer, number + part): gain for part in range(len(each.parts))}
            number, gain = number + len(each.parts), gain * each.gain
    return found | {(model.num_layers, 0): gain}


def _pieces(paths: Followed) -> Iterator[_Piece]:
    """What each sender adds, part by part and token by token."""
    stream, base = paths.grid.stream, paths.base
    made: list[tuple[int, Kept, Run]] = []
    for sender in range(len(paths.changed)):
        for kept, edits in paths.added_by(sender).items():
            made.append((sender, kept, Run(base.tokens, (*base.edits, *edits))))
    wanted: dict[Run, list[Kept]] = {base: [kept for _, kept, _ in made]}
    for _, kept, run in made:
        wanted.setdefault(run, []).append(kept)
    read = paths.backend.read(base, wanted)
    for sender, (part, layer, position), run in made:
        now, before = (read[each].at((part, layer), position).double() for each in (run, base))
        first = stream.first_behind([Edit(Site(part, layer, position), From(base, position))])
        yield _Piece(sender=sender, position=position, first=first, added=(now - before) * scale_of(paths, part, layer))


def scale_of(paths: Followed, part: str, layer: int) -> float:
    """What a layer multiplies a part by before it is added to the stream."""
    if part == "resid_pre":
        return 1.0
    return next(scale for each in paths.job.model.layout(layer).sums for name, scale in each.parts if name == part)


def _slopes(paths: Followed, measure: Differentiable, runs: Sequence[Run]) -> Slopes:
    """The metric's slope with what each reading reads of the stream, the mean over the runs."""
    backend, last = paths.job.backend, ("resid_post", paths.job.model.num_layers - 1)
    places = [*paths.places, *([last] if paths.reads_logits else [])]
    found: dict[SingleReceiver, Tensor] = {}
    number = 0
    for part in backend.gradients(runs, places, measure):
        for row in range(len(part.gradients[places[0]])):
            slopes = {place: part.gradients[place][row] for place in places}
            for reading, slope in _pulled_back(paths, runs[number], slopes):
                mine = slope.double() / len(runs)
                found[reading] = found[reading] + mine if reading in found else mine
            number += 1
    for reading in paths.readings:
        # What the logits read is the stream behind the last layer itself.
        if reading[0] == LOGITS:
            found[reading] = found.pop((*last, None))
    return found


def _pulled_back(
    paths: Followed, run: Run, slopes: Mapping[Place, Float[Tensor, "token width"]]
) -> Iterator[tuple[SingleReceiver, Float[Tensor, "token d_model"]]]:
    """Slopes at parts of layers as slopes at what they read, each head by itself; the last stream's is one already."""
    yield from (
        ((component, layer, None), slope) for (component, layer), slope in slopes.items() if component == "resid_post"
    )
    # The same part of all layers goes together: none of their slopes passes through another layer.
    alike: dict[tuple[str, int | None], list[SingleReceiver]] = {}
    for reading in paths.readings:
        if reading[0] != LOGITS:
            alike.setdefault((reading[0], reading[2]), []).append(reading)
    given = [
        {reading[:2]: _of_part(paths, slopes[reading[:2]], reading) for reading in some} for some in alike.values()
    ]
    pulled = paths.backend.pulled_back(run, given) if given else ()  # of the logits alone no forward is run
    for some, behind in zip(alike.values(), pulled, strict=True):
        for reading in some:
            yield reading, next(behind[name, reading[1]] for name in READ_AT if (name, reading[1]) in behind)


def _of_part(
    paths: Followed, slope: Float[Tensor, "token width"], reading: SingleReceiver
) -> Float[Tensor, "token width"]:
    """A component's slope where it is that of one head alone; as it is for all heads together."""
    part = reading[2]
    if part is None:
        return slope
    size = slope.shape[-1] // paths.parts(reading[:2])
    here = slice(part * size, (part + 1) * size)
    found = torch.zeros_like(slope)
    found[:, here] = slope[:, here]
    return found
