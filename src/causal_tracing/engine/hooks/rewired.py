"""Worlds whose readers read of some senders what these add in another run: all of a world in one forward of few rows.

1. A world's first row is the run itself. Each reader whose senders are cut has a row in its layer (readers with the
   same cuts share one), which begins as the first row with what is cut put in: so the layer's own modules make of it
   what that reader makes, and this goes into the first row in its place.
2. What each sender adds otherwise is known where the first row passes it: what the edits make of it, less what is
   there. Of heads it is what the output projection makes of each, or of all that are cut of a layer at once, where a
   norm stands behind and they do not add up.
3. Rows last a layer: in the next one they begin anew.

Readers of the first row read what senders add there, live (the rule of edges in Hanna et al. 2024, arXiv 2403.17806).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from causal_tracing.engine.backend import Measure, Place, Recording, whole
from causal_tracing.engine.hooks.apply import rewritten
from causal_tracing.engine.hooks.forward import scale_at, watched
from causal_tracing.engine.hooks.modules import layers_told
from causal_tracing.engine.hooks.record import donor_recordings
from causal_tracing.engine.hooks.wiring import LOGITS, Wiring, rewired_in
from causal_tracing.engine.memory import alike, from_the_end, in_batches, rows_that_fit
from causal_tracing.engine.progress import Tick, never
from causal_tracing.errors import ComponentNotOffered
from causal_tracing.interventions.edits import Run, World
from causal_tracing.models.anatomy import Sum
from causal_tracing.models.model import Model

# In shares of the largest number: how far two ways to the same sum may be apart by rounding.
NEAR = {torch.float64: 1e-9, torch.float32: 1e-4}
NEAR_IN_HALF = 0.05


class Rewirings:
    """Rewired worlds on whole forwards. With `joint` heads of a layer are never added up one by one."""

    def __init__(self, model: Model, worlds: Sequence[World], budget: int, *, joint: bool = False) -> None:
        if model.anatomy.alone:
            raise ComponentNotOffered(
                f"Edges are not offered on {model.name}: a world of theirs takes several rows, and what this model "
                "makes of one depends on the others. Patch nodes."
            )
        self.model = model
        self.worlds = worlds
        self.budget = budget
        self.joint = joint
        self.donors = donor_recordings(model, (world.run for world in worlds))
        self.wirings = [Wiring(model, rewired) for world in worlds if (rewired := rewired_in(world))]
        self.furthest = (0, -1)  # every row has its own place

    def batches(self, rows: int | None = None) -> Iterator[list[int]]:
        """The worlds' numbers, in batches whose rows fit the memory; `rows` caps how many worlds they are."""
        for numbers in alike(self.worlds):
            first = self.worlds[numbers[0]]
            keep = len(first.base.tokens) - min(first.readout)
            most = rows_that_fit(self.model, len(first.base.tokens), keep, self.budget)
            for batch in in_batches((self.wirings[number].rows for number in numbers), most, rows):
                yield [numbers[each] for each in batch]

    def logits(self, batch: Sequence[int]) -> Iterator[tuple[list[int], Float[Tensor, "world readout vocab"]]]:
        """The worlds' logits at their readouts, all at once."""
        yield from self.numbers(batch, whole)

    def numbers(
        self, batch: Sequence[int], measure: Measure, tick: Tick = never
    ) -> Iterator[tuple[list[int], Float[Tensor, "world *metric"]]]:
        """What a measure makes of the worlds' logits, all at once; `tick` is told of every layer."""
        model, worlds = self.model, [self.worlds[number] for number in batch]
        lanes = [_Lane(model, self.wirings[number], self.donors, joint=self.joint) for number in batch]
        runs = [world.base for world, lane in zip(worlds, lanes, strict=True) for _ in range(lane.wiring.rows)]
        sizes = [lane.wiring.rows for lane in lanes]

        def watch(place: Place, value: Tensor) -> Tensor:
            parts = value.split(sizes)
            return torch.cat([lane.passed(place, part) for lane, part in zip(lanes, parts, strict=True)])

        places = dict.fromkeys(place for lane in lanes for place in lane.wiring.places)
        keep, wanted = from_the_end(worlds)
        with model.at_rest(), layers_told(model, tick):
            logits = watched(model, runs, self.donors, [*places], watch, keep=keep)
        firsts = torch.tensor([sum(sizes[:number]) for number in range(len(sizes))])
        yield list(batch), measure(logits[firsts[:, None], wanted.to(logits.device)], worlds)


@dataclass(frozen=True, eq=False)
class _Heads:
    """What a layer's heads add to the stream: made of all of them at once, by what stands between."""

    of: Callable[[Tensor], Tensor]
    live: Float[Tensor, "token width"]
    instead: Float[Tensor, "token width"]
    senders: Sequence[tuple[int, int | None]]  # which of them is which head
    parts: int

    def alone(self) -> Float[Tensor, "head token d_model"]:
        """How much more each head adds where it is the other one, of those that add up."""
        apart = (self.instead - self.live).unflatten(1, (self.parts, -1))
        each = apart.new_zeros(1 + len(self.senders), *apart.shape)
        for number, (_, head) in enumerate(self.senders):
            each[1 + number, :, head] = apart[:, head]
        made = self.of(each.flatten(2))
        return made[1:] - made[:1]

    def together(self, cuts: Float[Tensor, "cut sender"]) -> Float[Tensor, "cut token d_model"]:
        """How much more all of them add where some are the others."""
        chosen = torch.zeros(len(cuts), self.parts, dtype=torch.bool, device=self.live.device)
        for sender, head in self.senders:
            chosen[:, head] = cuts[:, sender] > 0
        live, instead = (each.unflatten(1, (self.parts, -1)) for each in (self.live, self.instead))
        mixed = torch.where(chosen[:, None, :, None], instead, live).flatten(2)
        made = self.of(torch.cat([self.live[None], mixed]))
        return made[1:] - made[:1]


@dataclass(eq=False)
class _Lane:
    """One world on its way through the layers.

    `apart` is how much more each sender adds to the stream where it is the other one, as the stream is now; `joined`
    are layers whose heads do not add up, each with what the stream has since been multiplied by.
    """

    model: Model
    wiring: Wiring
    donors: Mapping[Run, Recording]
    joint: bool = field(kw_only=True)
    seen: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # a layer's heads, as they are and otherwise
    heads: dict[int, _Heads] = field(default_factory=dict)  # those that do not add up, until they are added
    waiting: dict[int, list[str]] = field(default_factory=dict)  # parts of a layer that are added up soon
    joined: list[tuple[_Heads, float]] = field(default_factory=list)
    added: dict[int, Tensor] = field(default_factory=dict)
    apart: Tensor | None = None
    known: int = 0

    def passed(self, place: Place, value: Float[Tensor, "row token width"]) -> Float[Tensor, "row token width"]:
        """What goes on from a place, of what arrives there."""
        component, layer = place
        value = self._received(place, value)
        if component == "z":
            self._note_heads(layer, value[0])
        elif place in self.wiring.senders:
            self._note(place, value[0])
        layout = self.model.layout(layer)
        if component == layout.attention and layer in self.seen:
            self._note_attention(place, value[0])
        if component in layout.parts:
            self._add_up(component, layer)
        return self._read(place, value)

    def _received(self, place: Place, value: Tensor) -> Tensor:
        """The first row with what its readers make of what they read in rows of their own."""
        received = self.wiring.received.get(place)
        if not received:
            return value
        value, size = value.clone(), value.shape[-1] // self.model.parts(*place)
        for part, row in received:
            here = slice(None) if part is None else slice(part * size, (part + 1) * size)
            value[0, :, here] = value[row, :, here]
        return value

    def _read(self, place: Place, value: Tensor) -> Tensor:
        """Rows of their own for what is read here, each the first row with what is cut in its place."""
        cuts = self.wiring.cuts.get(place)
        if cuts is None:
            return value
        moved = self._moved(cuts.to(value.device))
        here = (value[:1] + moved).to(value.dtype)
        rest = value[len(here) :] if place[0] == LOGITS else value[:1].expand(len(value) - 1 - len(here), -1, -1)
        return torch.cat([here, rest]) if place[0] == LOGITS else torch.cat([value[:1], here, rest])

    def _moved(self, cuts: Float[Tensor, "cut sender"]) -> Float[Tensor, "cut token d_model"]:
        """How much else the stream is where these senders are the others."""
        assert self.apart is not None, "what is read stands behind what is added"
        known = self.apart[: self.known]
        moved = (cuts[:, : self.known] @ known.flatten(1)).unflatten(1, known.shape[1:])
        for heads, factor in self.joined:
            moved = moved + factor * heads.together(cuts).to(moved.dtype)
        return moved

    def _note(self, place: Place, live: Float[Tensor, "token d_model"]) -> None:
        """What a whole component adds otherwise."""
        ((sender, _),) = self.wiring.senders[place]
        scale = scale_at(self.model, place)
        instead = rewritten(live, self.wiring.writes.get(place, ()), self.donors, scale=scale)
        self.added[sender] = scale * (instead.to(self.wiring.dtype) - live.to(self.wiring.dtype))
        if place[0] == "resid_pre":
            self._put()

    def _note_heads(self, layer: int, live: Float[Tensor, "token width"]) -> None:
        place = "z", layer
        parts, writes = self.model.parts(*place), self.wiring.writes.get(place, ())
        self.seen[layer] = live.clone(), rewritten(live, writes, self.donors, parts=parts)

    def _note_attention(self, place: Place, live: Float[Tensor, "token d_model"]) -> None:
        """What a layer's heads add otherwise, one by one where they add up."""
        layer = place[1]
        before, instead = self.seen.pop(layer)
        way, adds_up = projection(self.model, layer, before, live)
        heads = _Heads(way, before, instead, self.wiring.senders["z", layer], self.model.parts("z", layer))
        if self.joint or not adds_up:
            self.heads[layer] = heads
            return
        scale, dtype = scale_at(self.model, place), self.wiring.dtype
        each = heads.alone()
        for (sender, _), apart in zip(heads.senders, each, strict=True):
            self.added[sender] = scale * apart.to(dtype)

    def _add_up(self, part: str, layer: int) -> None:
        """The stream as it is behind a sum, once all that the layer adds there is known."""
        number = next(n for n, each in enumerate(self._sums(layer)) if part in dict(each.parts))
        one, here = self._sums(layer)[number], self.waiting.setdefault(layer, [])
        here.append(part)
        if not {name for name, _ in one.parts} <= {*here}:
            return
        if one.gain != 1:
            if self.apart is not None:
                self.apart *= one.gain
            self.joined = [(heads, factor * one.gain) for heads, factor in self.joined]
        attention = self.model.layout(layer).attention
        if layer in self.heads and attention in dict(one.parts):
            self.joined.append((self.heads.pop(layer), scale_at(self.model, (attention, layer))))
        self._put()

    def _sums(self, layer: int) -> Sequence[Sum]:
        return self.model.layout(layer).sums

    def _put(self) -> None:
        """What was added becomes part of the stream."""
        for sender, apart in self.added.items():
            if self.apart is None:
                self.apart = apart.new_zeros(len(self.wiring.rewired.senders), *apart.shape)
            self.apart[sender] = apart
            self.known = max(self.known, sender + 1)
        self.added.clear()


def projection(
    model: Model, layer: int, heads: Float[Tensor, "token width"], attention: Float[Tensor, "token d_model"]
) -> tuple[Callable[[Tensor], Tensor], bool]:
    """What makes of a layer's heads what attention adds, held against what it made of these; and whether they add up.

    It is the output projection; with a norm behind, heads do not add up. Raises ComponentNotOffered where it is
    neither.
    """
    layout = model.layout(layer)
    output, last = model.part(layer, layout.z or ""), model.part(layer, layout.attn or "")
    # Their own forward: hooks on them are of the run that is under way.
    ways: list[Callable[[Tensor], Tensor]] = [output.forward]
    if not (layout.z or "").startswith(layout.attn or ""):
        ways.append(lambda value: last.forward(output.forward(value)))
    for number, way in enumerate(ways):
        if _near(way(heads[None])[0], attention):
            return way, number == 0 and _linear(way, heads)
    raise ComponentNotOffered(
        f"Edges from single heads are not offered on this model ({model.anatomy.family}): in layer {layer} attention "
        "adds something else than what its output projection makes of the heads, with or without a norm behind it."
    )


def _linear(way: Callable[[Tensor], Tensor], heads: Float[Tensor, "token width"]) -> bool:
    """Whether twice the heads give twice as much, beyond what nothing gives."""
    none, once, twice = way(torch.stack([heads * factor for factor in (0, 1, 2)]))
    return _near(twice - none, 2 * (once - none))


def _near(one: Tensor, other: Tensor) -> bool:
    """Whether two are the same up to rounding."""
    bound = NEAR.get(other.dtype, NEAR_IN_HALF) * float(other.abs().max())
    return float((one - other).abs().max()) <= bound
