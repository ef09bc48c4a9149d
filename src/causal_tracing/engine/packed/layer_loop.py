"""One walk through the layers with many worlds, whose tokens lie in one sequence [1, token, d_model]."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate, chain, groupby
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from causal_tracing.engine.backend import Place, Recording
from causal_tracing.engine.hooks.apply import Write, rewritten
from causal_tracing.engine.hooks.attention import SEEN, Asked, attention_by, by_token, with_patterns
from causal_tracing.engine.hooks.forward import scale_at
from causal_tracing.engine.hooks.modules import attached
from causal_tracing.engine.packed.base_runs import Tape
from causal_tracing.engine.packed.schedule import Group
from causal_tracing.engine.packed.states import Block, KeysValues, States, Writes
from causal_tracing.engine.progress import Tick, never
from causal_tracing.errors import CannotPack
from causal_tracing.interventions.edits import Run
from causal_tracing.models.model import Model

SLACK = 1.25  # a call may be so much longer, where a short one would be left over


class Wave:
    """Groups of worlds on their way through a model. The model must be at rest."""

    def __init__(
        self, model: Model, order: Sequence[Tape], planned: Sequence[Group], donors: Mapping[Run, Recording], limit: int
    ) -> None:
        self.model = model
        self.donors = donors
        self.limit = limit  # tokens in one call of a layer
        self.states = [States(group, order[group.tape]) for group in planned]
        self.arrived: list[Block] = []
        self.sent: Sequence[Block] = ()
        self.kept: list[KeysValues] | None = None

    def run(self, tick: Tick = never) -> Iterator[tuple[list[int], Float[Tensor, "world readout d_model"]]]:
        """Worlds' numbers and their states behind the last layer at their readouts, by how many those are."""
        last = self.model.num_layers - 1
        with attention_by(self.model, self._attend):
            for layer in range(last + 1):
                tick(layer)
                self._join(layer)
                whole = (block for states in self.states for block in states.whole(layer, self.limit))
                blocks = whole if layer < last else self._read(layer, whole)
                points = (block for states in self.states for block in states.points(layer))
                for sent in _calls(chain(blocks, points), self.limit):
                    self._compute(layer, sent)
        self._join(last + 1)
        return _by_width(part for states in self.states for part in states.final())

    def _join(self, layer: int) -> None:
        """Worlds join at this layer's input, and the edits of the stream are made."""
        for states in self.states:
            states.to(states.tape.streams[layer].device)
            states.join(layer)
        for block in self.arrived:
            block.states.put(block)
        self.arrived = []
        for states in self.states:
            states.write(layer, self.donors)

    def _read(self, layer: int, whole: Iterable[Block]) -> Iterator[Block]:
        """What is read of these blocks: the layer makes the keys and values of all their tokens, and stops there."""
        for sent in _calls(whole, self.limit):
            for block, own in zip(sent, self._keys_and_values(layer, sent), strict=True):
                yield from block.states.read(layer, block, own)

    def _keys_and_values(self, layer: int, sent: Sequence[Block]) -> Sequence[KeysValues]:
        self.kept = kept = []
        try:
            self._send(layer, sent)
        except _Enough:
            return kept
        finally:
            self.kept = None
        raise CannotPack(f"layer {layer} does not attend.")

    def _compute(self, layer: int, sent: Sequence[Block]) -> None:
        output = self._send(layer, sent)
        for block, out in zip(sent, output[0].split([block.tokens for block in sent]), strict=True):
            block.out.copy_(out.view_as(block.out))
        self.arrived += [block for block in sent if block.arrives is not None]

    def _send(self, layer: int, sent: Sequence[Block]) -> Float[Tensor, "1 token d_model"]:
        """Calls the model's own layer on the packed tokens of these blocks."""
        self.sent = sent
        hidden = torch.cat([block.hidden.flatten(0, 1) for block in sent])[None]
        writes = _merged(sent)
        index = [Index(tape, list(blocks)) for tape, blocks in groupby(sent, lambda block: block.tape)]
        calls = [one.tape.calls[layer] for one in index]
        args = [_gathered([call.args[number] for call in calls], index) for number in range(len(calls[0].args))]
        kwargs = {name: _gathered([call.kwargs[name] for call in calls], index) for name in calls[0].kwargs}
        if calls[0].named:
            kwargs["hidden_states"] = hidden
        else:
            args = [hidden, *args]
        places = [place for place in writes if place[0] not in SEEN]
        with attached(self.model, places, partial(self._visit, writes), batch=1):
            output = self.model.layers[layer](*args, **kwargs)
        return output[0] if isinstance(output, tuple) else output

    def _visit(self, writes: Writes, component: str, layer: int, value: Tensor) -> Tensor:
        place = component, layer
        units, scale = self.model.units(component), scale_at(self.model, place)
        return rewritten(value.flatten(0, 1), writes[place], self.donors, units=units, scale=scale).view(value.shape)

    def _attend(self, asked: Asked) -> tuple[Tensor, None]:
        """The model's own attention, block by block: the only place where worlds are told apart."""
        starts = [0, *accumulate(block.tokens for block in self.sent)]
        tokens = asked.query.shape[2]
        if tokens != starts[-1]:
            raise CannotPack(f"layer {asked.layer} attends with {tokens} tokens where {starts[-1]} were sent.")
        outputs = []
        for block, start in zip(self.sent, starts, strict=False):
            own = block.own or self._keys_and_values_of(block, start, asked)
            if self.kept is None:
                output = self._attend_block(block, start, own, asked)
                outputs.append(output.reshape(1, block.tokens, *output.shape[2:]))
            else:
                self.kept.append(own)
        if self.kept is not None:
            raise _Enough
        return torch.cat(outputs, 1), None

    def _keys_and_values_of(self, block: Block, start: int, asked: Asked) -> KeysValues:
        keys, values = block.part(asked.key, start), block.part(asked.value, start)
        return self._see(block, asked.layer, "k", keys), self._see(block, asked.layer, "v", values)

    def _attend_block(self, block: Block, start: int, own: KeysValues, asked: Asked) -> Tensor:
        """One block's worlds: its queries, and the keys and values that each of its worlds sees."""
        layer, attended = asked.layer, block.tape.attended[asked.layer]
        asked = replace(
            asked,
            query=self._see(block, layer, "q", block.part(asked.query, start)),
            key=block.seen(attended.keys, own[0]),
            value=block.seen(attended.values, own[1]),
            mask=block.mask(attended),
        )
        output, _ = asked.answer()
        if ("pattern", layer) in block.writes:
            output = with_patterns(output, partial(self._see_pattern, block, layer), asked)
        return output

    def _see(self, block: Block, layer: int, component: str, value: Tensor) -> Tensor:
        """The block's queries, keys or values, with the edits made."""
        if (component, layer) not in block.writes:
            return value
        return by_token(partial(self._visit, block.writes, component, layer), value)

    def _see_pattern(self, block: Block, layer: int, pattern: Tensor) -> Tensor:
        """The same for patterns, which donors have of all their tokens: what lies behind `stop` is zero."""
        behind = block.tape.length - block.stop
        return self._see(block, layer, "pattern", nn.functional.pad(pattern, (0, behind)))[..., : block.stop]


class _Enough(Exception):
    """Keys and values are known; the rest of the layer is not needed."""


@dataclass(frozen=True, eq=False)
class Index:
    """Where consecutive blocks of one tape have their tokens in its base runs."""

    tape: Tape
    blocks: Sequence[Block]

    @cached_property
    def positions(self) -> Tensor:
        """[token] of the packed call."""
        return torch.cat([block.positions.repeat(len(block.rows)) for block in self.blocks])

    @cached_property
    def rows(self) -> Tensor:
        """The tape's row of each token."""
        return torch.cat([block.rows.repeat_interleave(len(block.positions)) for block in self.blocks])


def _gathered(values: Sequence[Any], index: Sequence[Index]) -> Any:
    """What a layer was called with in each tape's base runs, at the packed tokens: no masks, no caches."""
    first = values[0]
    if isinstance(first, tuple):
        return tuple(_gathered(parts, index) for parts in zip(*values, strict=True))
    if not isinstance(first, Tensor):
        return first
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
        if len(value) == 1:
            return value[:, index.positions]
        if len(value) == len(index.tape.rows):
            return value[index.rows, index.positions][None]
    return value


def _calls(blocks: Iterable[Block], limit: int) -> Iterator[list[Block]]:
    """The blocks, put together into calls of at most `limit` tokens, or a little more: short calls are slow.

    One larger block goes alone.
    """
    waiting = list(blocks)
    left = sum(block.tokens for block in waiting)
    sent: list[Block] = []
    tokens = 0
    for block in waiting:
        if sent and tokens + block.tokens > limit and tokens + left > SLACK * limit:
            yield sent
            sent, tokens = [], 0
        sent.append(block)
        tokens += block.tokens
        left -= block.tokens
    if sent:
        yield sent


def _merged(sent: Sequence[Block]) -> Writes:
    """The blocks' edits, by their rows in the packed call."""
    found: dict[Place, list[Write]] = {}
    start = 0
    for block in sent:
        for place, writes in block.writes.items():
            found.setdefault(place, []).extend((start + row, edit) for row, edit in writes)
        start += block.tokens
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
