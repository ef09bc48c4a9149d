"""One walk through the layers with many worlds, whose tokens lie in one sequence [1, token, d_model]."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate, chain, groupby
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from causal_tracing.engine.backend import Place
from causal_tracing.engine.hooks.apply import Donors, narrowed, rewritten
from causal_tracing.engine.hooks.attending import attended
from causal_tracing.engine.hooks.attention import SEEN, Asked, attention_by, by_token, with_patterns
from causal_tracing.engine.hooks.forward import scale_at
from causal_tracing.engine.hooks.modules import attached
from causal_tracing.engine.indices import indices
from causal_tracing.engine.packed.base_runs import Tape
from causal_tracing.engine.packed.schedule import Group
from causal_tracing.engine.packed.states import KeysValues, Marked, States, Stretch, Writes
from causal_tracing.engine.progress import Tick, never
from causal_tracing.errors import CannotPack
from causal_tracing.interventions.donors import Kept
from causal_tracing.interventions.sites import ATTENTION
from causal_tracing.models.model import Model

SLACK = 1.25  # a call may be so much longer, where a short one would be left over


class Wave:
    """Groups of worlds on their way through a model. The model must be at rest."""

    def __init__(
        self, model: Model, order: Sequence[Tape], planned: Sequence[Group], donors: Donors, limit: int
    ) -> None:
        self.model = model
        self.donors = donors
        self.limit = limit  # tokens in one call of a layer
        self.states = [States(group, order[group.tape]) for group in planned]
        self.arrived: list[Stretch] = []
        self.sent: Sequence[Stretch] = ()
        self.gathered: list[KeysValues] | None = None
        self.kept: dict[tuple[int, Kept], Tensor] = {}  # of a world by its number
        self.wanted: int | None = None  # how much is still to be kept of a call that is made for nothing else
        self.furthest = (0, -1)  # behind how many tokens of one call a world's last one lay at most, and its number

    def run(self, tick: Tick = never) -> Iterator[tuple[list[int], Float[Tensor, "world readout d_model"]]]:
        """Worlds' numbers and their states behind the last layer at their readouts, by how many those are."""
        last = self.model.num_layers - 1
        with attention_by(self.model, self._attend):
            for layer in range(last + 1):
                tick(layer)
                self._pass(layer, last)
        # Edits behind the last layer, at its resid_post, are made here.
        self._join(last + 1)
        return _by_width(part for states in self.states for part in states.final())

    def keep(self) -> dict[tuple[int, Kept], Tensor]:
        """What is kept of each world, by its number, which go as far as the last of it."""
        last = max((states.group.until or 0 for states in self.states), default=-1)
        with attention_by(self.model, self._attend):
            for layer in range(last + 1):
                self._pass(layer, None)
        return self.kept

    def _pass(self, layer: int, last: int | None) -> None:
        """One layer; of the last one, only what is read of it."""
        self._join(layer)
        passing = [states for states in self.states if states.group.passes(layer)]
        held = [states for states in passing if states.group.held]
        # What ends in this layer is looked at alone, since what it gives goes nowhere.
        going = [states for states in passing if states.group.until != layer]
        whole = self._whole(layer, going)
        stretches = self._read(layer, whole) if layer == last else whole
        for sent in _calls(chain(stretches, self._points(layer, going)), self.limit):
            self._compute(layer, sent)
        ending = [states for states in passing if states.group.until == layer]
        asides = (stretch for states in held for stretch in states.asides(layer, self.limit))
        for sent in _calls(chain(asides, self._whole(layer, ending), self._points(layer, ending)), self.limit):
            self._look(layer, sent)
        for states in held:
            states.add(layer, self.model.layout(layer).sums)

    def _whole(self, layer: int, some: Iterable[States]) -> Iterator[Stretch]:
        computed = (states for states in some if not states.group.held)
        return (stretch for states in computed for stretch in states.whole(layer, self.limit))

    def _points(self, layer: int, some: Iterable[States]) -> Iterator[Stretch]:
        return (stretch for states in some for stretch in states.points(layer))

    def _join(self, layer: int) -> None:
        """Worlds join at this layer's input, and the edits of the stream are made."""
        for states in self.states:
            states.to(states.tape.streams[layer].device)
            states.join(layer)
        # Behind the joining, which gives a world its base run's tokens: these single ones replace some of them.
        for stretch in self.arrived:
            stretch.states.put(stretch)
        self.arrived = []
        for states in self.states:
            states.write(layer, self.donors)

    def _read(self, layer: int, whole: Iterable[Stretch]) -> Iterator[Stretch]:
        """What is read of these stretches: the layer makes the keys and values of all their tokens, and stops there."""
        for sent in _calls(whole, self.limit):
            for stretch, own in zip(sent, self._keys_and_values(layer, sent), strict=True):
                yield from stretch.states.read(layer, stretch, own)

    def _keys_and_values(self, layer: int, sent: Sequence[Stretch]) -> Sequence[KeysValues]:
        # Attention is asked with keys and values in hand, and there the call is left.
        self.gathered = gathered = []
        try:
            self._send(layer, sent)
        except _Enough:
            return gathered
        finally:
            self.gathered = None
        raise CannotPack(f"layer {layer} does not attend.")

    def _look(self, layer: int, sent: Sequence[Stretch]) -> None:
        """Computes of a layer no more than what is kept: what it gives is dropped."""
        self.wanted = sum(len(rows) for stretch in sent for rows in stretch.marked.values())
        try:
            self._send(layer, sent)
        except _Enough:
            pass
        finally:
            self.wanted = None

    def _compute(self, layer: int, sent: Sequence[Stretch]) -> None:
        output = self._send(layer, sent)
        for stretch, out in zip(sent, output[0].split([stretch.tokens for stretch in sent]), strict=True):
            stretch.out.copy_(out.view_as(stretch.out))
        self.arrived += [stretch for stretch in sent if stretch.arrives is not None]

    def _send(self, layer: int, sent: Sequence[Stretch]) -> Float[Tensor, "1 token d_model"]:
        """Calls the model's own layer on the packed tokens of these stretches."""
        self.sent = sent
        self.furthest = max(self.furthest, (sum(stretch.tokens for stretch in sent), sent[-1].last))
        hidden = torch.cat([stretch.hidden.flatten(0, 1) for stretch in sent])[None]
        writes, rows = narrowed(_merged([(each.writes, each.tokens) for each in sent]))
        marked = _merged([(each.marked, each.tokens) for each in sent])
        # Tapes lie together in the schedule, so that each is asked once.
        index = [Index(tape, list(stretches)) for tape, stretches in groupby(sent, lambda stretch: stretch.tape)]
        calls = [one.tape.calls[layer] for one in index]
        args = [_gathered([call.args[number] for call in calls], index) for number in range(len(calls[0].args))]
        kwargs = {name: _gathered([call.kwargs[name] for call in calls], index) for name in calls[0].kwargs}
        if calls[0].named:
            kwargs["hidden_states"] = hidden
        else:
            args = [hidden, *args]
        places = [place for place in {**writes, **marked} if place[0] not in SEEN]
        with attached(self.model, places, partial(self._visit, writes, marked), batch=1, rows=rows):
            output = self.model.layer(layer)(*args, **kwargs)
        return output[0] if isinstance(output, (tuple, list)) else output

    def _visit(self, writes: Writes, marked: Marked, component: str, layer: int, value: Tensor) -> Tensor:
        """A place's value with the edits made; what is marked of it is kept."""
        place = component, layer
        if place in writes:
            flat, parts, scale = value.flatten(0, 1), self.model.parts(*place), scale_at(self.model, place)
            value = rewritten(flat, writes[place], self.donors, parts=parts, scale=scale).view(value.shape)
        if place in marked:
            rows = indices([row for row, _ in marked[place]], value.device)
            self.kept |= zip((key for _, key in marked[place]), value.flatten(0, 1)[rows], strict=True)
            self._note(len(rows))
        return value

    def _note(self, kept: int) -> None:
        """Stops a call that is made for what is kept alone, as soon as all of it is."""
        if self.wanted is not None:
            self.wanted -= kept
            if not self.wanted:
                raise _Enough

    def _attend(self, asked: Asked) -> tuple[Tensor, None]:
        """The model's own attention, stretch by stretch: the only place where worlds are told apart."""
        starts = [0, *accumulate(stretch.tokens for stretch in self.sent)]
        # A layer may drop or add tokens: then it cannot be told which are whose.
        tokens = asked.query.shape[2]
        if tokens != starts[-1]:
            raise CannotPack(f"layer {asked.layer} attends with {tokens} tokens where {starts[-1]} were sent.")
        outputs = []
        for stretch, start in zip(self.sent, starts, strict=False):
            own = stretch.own or self._keys_and_values_of(stretch, start, asked)
            if self.gathered is None:
                output = self._attend_stretch(stretch, start, own, asked)
                outputs.append(output.reshape(1, stretch.tokens, *output.shape[2:]))
            else:
                self.gathered.append(own)
        if self.gathered is not None:
            raise _Enough
        return torch.cat(outputs, 1), None

    def _keys_and_values_of(self, stretch: Stretch, start: int, asked: Asked) -> KeysValues:
        keys, values = stretch.part(asked.key, start), stretch.part(asked.value, start)
        return self._see(stretch, asked.layer, "k", keys), self._see(stretch, asked.layer, "v", values)

    def _attend_stretch(self, stretch: Stretch, start: int, own: KeysValues, asked: Asked) -> Tensor:
        """One stretch's worlds: its queries, and the keys and values that each of its worlds sees."""
        layer, attended = asked.layer, stretch.tape.attended[asked.layer]
        asked = replace(
            asked,
            query=self._see(stretch, layer, "q", stretch.part(asked.query, start)),
            key=stretch.seen(attended.keys, own[0]),
            value=stretch.seen(attended.values, own[1]),
            mask=stretch.mask(attended),
        )
        asked, output = self._answer(stretch, asked)
        if ("pattern", layer) in stretch.writes:
            output = with_patterns(output, partial(self._see_pattern, stretch, layer), asked)
        return output

    def _answer(self, stretch: Stretch, asked: Asked) -> tuple[Asked, Tensor]:
        """What the layer's attention gives, where queries attend otherwise too, and what it was asked then."""
        writes = stretch.writes.get((ATTENTION, asked.layer), ())
        if not writes:
            return asked, asked.answer()[0]
        return attended(asked, [(*divmod(row, len(stretch.positions)), edit) for row, edit in writes], self.donors)

    def _see(self, stretch: Stretch, layer: int, component: str, value: Tensor) -> Tensor:
        """The stretch's queries, keys or values, with the edits made."""
        if (component, layer) not in stretch.writes and (component, layer) not in stretch.marked:
            return value
        return by_token(partial(self._visit, stretch.writes, stretch.marked, component, layer), value)

    def _see_pattern(self, stretch: Stretch, layer: int, pattern: Tensor) -> Tensor:
        """The same for patterns, which donors have of all their tokens: what lies behind `stop` is zero."""
        behind = stretch.tape.length - stretch.stop
        return self._see(stretch, layer, "pattern", nn.functional.pad(pattern, (0, behind)))[..., : stretch.stop]


class _Enough(Exception):
    """What a layer was asked for is known; the rest of it is not needed."""


@dataclass(frozen=True, eq=False)
class Index:
    """Where consecutive stretches of one tape have their tokens in its base runs."""

    tape: Tape
    stretches: Sequence[Stretch]

    @cached_property
    def positions(self) -> Tensor:
        """[token] of the packed call."""
        return torch.cat([stretch.positions.repeat(len(stretch.rows)) for stretch in self.stretches])

    @cached_property
    def rows(self) -> Tensor:
        """The tape's row of each token."""
        return torch.cat([stretch.rows.repeat_interleave(len(stretch.positions)) for stretch in self.stretches])


def _gathered(values: Sequence[Any], index: Sequence[Index]) -> Any:
    """What a layer was called with in each tape's base runs, at the packed tokens: no masks, no caches."""
    first = values[0]
    if isinstance(first, tuple):
        return tuple(_gathered(parts, index) for parts in zip(*values, strict=True))
    if not isinstance(first, Tensor):
        return first
    # The mask: each stretch gets its own rows of it where attention is asked.
    if first.ndim == 4 and first.shape[-2:] == (index[0].tape.length,) * 2:
        return None
    picked = [_picked(value, one) for value, one in zip(values, index, strict=True)]
    if len(picked) == 1:
        return picked[0]
    return first if picked[0] is first else torch.cat(picked, min(1, first.ndim - 1))


def _picked(value: Tensor, index: Index) -> Tensor:
    """A tensor's rows for the packed tokens, if it has a token axis: [token], or [1 or run, token, ...]."""
    length = index.tape.length
    if value.ndim == 1 and len(value) == length:
        return value[index.positions]
    if value.ndim >= 2 and value.shape[1] == length:
        # One for all runs, such as positions; else each run has its own row.
        if len(value) == 1:
            return value[:, index.positions]
        if len(value) == len(index.tape.rows):
            return value[index.rows, index.positions][None]
    return value


def _calls(stretches: Iterable[Stretch], limit: int) -> Iterator[list[Stretch]]:
    """The stretches, put together into calls of at most `limit` tokens, or a little more: short calls are slow.

    One larger stretch goes alone.
    """
    waiting = list(stretches)
    left = sum(stretch.tokens for stretch in waiting)
    sent: list[Stretch] = []
    tokens = 0
    for stretch in waiting:
        if sent and tokens + stretch.tokens > limit and tokens + left > SLACK * limit:
            yield sent
            sent, tokens = [], 0
        sent.append(stretch)
        tokens += stretch.tokens
        left -= stretch.tokens
    if sent:
        yield sent


def _merged(parts: Iterable[tuple[Mapping[Place, Sequence[tuple[int, Any]]], int]]) -> dict[Place, list[Any]]:
    """What is told of the rows of some stretches, by their rows in the packed call; each with its number of tokens."""
    found: dict[Place, list[tuple[int, Any]]] = {}
    start = 0
    for told, tokens in parts:
        for place, rows in told.items():
            found.setdefault(place, []).extend((start + row, what) for row, what in rows)
        start += tokens
    return found


def _by_width(parts: Iterable[tuple[list[int], Tensor]]) -> Iterator[tuple[list[int], Tensor]]:
    """Parts that read equally many positions, put together."""
    by_width: dict[int, tuple[list[int], list[Tensor]]] = {}
    for numbers, states in parts:
        found = by_width.setdefault(states.shape[1], ([], []))
        found[0].extend(numbers)
        found[1].append(states)
    for numbers, states in by_width.values():
        yield numbers, torch.cat(states)
