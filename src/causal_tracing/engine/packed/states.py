"""The states of worlds on their way through the layers, and the stretches of tokens that they send to a layer."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from causal_tracing.engine.backend import Place
from causal_tracing.engine.hooks.apply import Donors, Write, rewritten
from causal_tracing.engine.indices import indices
from causal_tracing.engine.packed.base_runs import Attended, Tape
from causal_tracing.engine.packed.schedule import INSIDE, Group, Member
from causal_tracing.interventions.donors import Kept
from causal_tracing.models.anatomy import Sum

Writes = Mapping[Place, Sequence[Write]]
Marked = Mapping[Place, Sequence[tuple[int, tuple[int, Kept]]]]  # rows, and of which world they are kept as what
KeysValues = tuple[Tensor, Tensor]


@dataclass(kw_only=True, eq=False)
class Stretch:
    """Worlds of one group that send the same tokens to a layer, one world after the other.

    They attend to their base run's keys before `first`, and from there to `stop` to their own: those that the layer
    computes of these tokens, or `own`. The layer's output goes to `out`; `arrives` says which rows of the group's
    states it then replaces (None: `out` is a part of the states).
    """

    states: "States"
    members: Sequence[int]
    rows: Int[Tensor, " world"]
    positions: Int[Tensor, " token"]
    queries: slice | Tensor  # the positions again: of tokens in a row, which need not be gathered, a slice
    first: int
    stop: int
    hidden: Float[Tensor, "world token d_model"]
    out: Float[Tensor, "world token d_model"]
    writes: Writes
    marked: Marked
    arrives: Int[Tensor, " row"] | None = None
    own: KeysValues | None = None

    @property
    def tape(self) -> Tape:
        """The tape of its base runs."""
        return self.states.tape

    @cached_property
    def shape(self) -> tuple[int, int]:
        """How many worlds, and how many tokens of each. A tensor that is asked for its length is slow to answer."""
        return self.hidden.shape[0], self.hidden.shape[1]

    @cached_property
    def tokens(self) -> int:
        """How many tokens the stretch has in a packed call."""
        return self.shape[0] * self.shape[1]

    @property
    def last(self) -> int:
        """The number of the world whose tokens come last."""
        return self.states.group.members[self.members[-1]].number

    def part(
        self, value: Float[Tensor, "1 head packed d_head"], start: int
    ) -> Float[Tensor, "world head token d_head"]:
        """The stretch's tokens of packed queries, keys or values; it begins at token `start`."""
        mine = value[0, :, start : start + self.tokens]
        return mine.unflatten(1, self.shape).transpose(0, 1)

    def seen(self, base: Tensor, own: Tensor) -> Float[Tensor, "world kv_head key d"]:
        """The keys or values that the worlds attend to."""
        if not self.first:
            return own
        one = self.states.one_row
        before = (base if one is None else base[one : one + 1])[:, :, : self.first]
        # Expanded, not copied, where the worlds have one base run.
        before = before.expand(self.shape[0], -1, -1, -1) if before.shape[0] == 1 else before[self.rows]
        return before if self.first == self.stop else torch.cat([before, own], 2)

    def mask(self, attended: Attended) -> Tensor:
        """The rows of the model's own mask."""
        mask = attended.mask[:, :, self.queries, : self.stop]
        return mask if mask.shape[0] == 1 else mask[self.rows]


class States:
    """The states of a group's worlds on their way [world, token, d_model]."""

    def __init__(self, group: Group, tape: Tape) -> None:
        self.group = group
        self.tape = tape
        stream = tape.streams[0]
        rows = [tape.rows[member.base] for member in group.members]
        self.rows = indices(rows, stream.device)
        self.one_row = rows[0] if len({*rows}) == 1 else None  # of worlds with one base run no keys are gathered
        self.listed = range(group.first, group.first + group.length)
        self.positions = torch.arange(group.first, group.first + group.length, device=stream.device)
        # Filled as worlds join; no layer is given a row before.
        self.values = stream.new_empty(len(group.members), group.length, stream.shape[-1])

    def to(self, device: torch.device) -> None:
        """States follow the layers over devices."""
        self.rows, self.positions = self.rows.to(device), self.positions.to(device)
        self.values = self.values.to(device)

    def join(self, layer: int) -> None:
        """The worlds that join at this layer's input start with their base run's stream."""
        new = slice(self.group.joined(layer - 1), self.group.joined(layer))
        if new.start < new.stop and self.group.length:
            self.values[new] = self.tape.streams[layer][:, self.group.first : self.group.stop][self.rows[new]]

    def put(self, stretch: Stretch) -> None:
        """Takes over what a layer computed for single tokens."""
        if stretch.arrives is not None:
            self._flat[stretch.arrives.to(self.values.device)] = stretch.out.flatten(0, 1).to(self.values)

    def write(self, layer: int, donors: Donors) -> None:
        """Makes the edits of the stream at this layer's input."""
        edits = self.group.writes.get(("resid_pre", layer), ())
        if edits:
            rows = self._row_numbers([(member, edit.site.position) for member, edit in edits])
            numbered = [(number, edit) for number, (_, edit) in enumerate(edits)]
            self._flat[rows] = rewritten(self._flat[rows], numbered, donors)

    def add(self, layer: int, sums: Sequence[Sum]) -> None:
        """Goes on behind a layer of which each world has what its base run adds: added as the layer does it."""
        joined = self.group.joined(layer)
        if joined and self.group.length:
            values = self.values[:joined]
            for each in sums:
                values = values if each.gain == 1 else values * each.gain
                for component, scale in each.parts:
                    added = self._recorded(component, layer)[self.rows[:joined]]
                    values = values + (added if scale == 1 else added * scale)
            self.values[:joined] = values

    def _recorded(self, component: str, layer: int) -> Float[Tensor, "run token d_model"]:
        """What the tape's runs have there, at the tokens of the group."""
        runs = sorted(self.tape.rows, key=self.tape.rows.__getitem__)
        found = [self.tape.recordings[run].activations[component, layer] for run in runs]
        return torch.stack([each[self.group.first : self.group.stop] for each in found]).to(self.values)

    def whole(self, layer: int, limit: int) -> Iterator[Stretch]:
        """All tokens of the worlds that have joined, in stretches of about `limit` tokens."""
        joined, length = self.group.joined(layer), self.group.length
        size = max(1, limit // max(1, length))
        for start in range(0, joined if length else 0, size):
            members = range(start, min(start + size, joined))
            values = self.values[members.start : members.stop]
            yield self._block(layer, members, self.listed, self.positions, values, out=values)

    def asides(self, layer: int, limit: int) -> Iterator[Stretch]:
        """The tokens of held worlds of which something is kept in this layer; the layer's output is dropped."""
        joined = self.group.joined(layer)
        inside = (each for (_, at), each in self.group.kept.items() if at == layer)
        members = sorted({member for each in inside for member, _ in each if member < joined})
        size = max(1, limit // max(1, self.group.length))
        for start in range(0, len(members) if self.group.length else 0, size):
            some = members[start : start + size]
            hidden = self.values[some]
            yield self._block(layer, some, self.listed, self.positions, hidden, out=torch.empty_like(hidden))

    def read(self, layer: int, stretch: Stretch, own: KeysValues) -> Iterator[Stretch]:
        """The tokens of a whole stretch that are read behind the last layer; their keys and values are known."""
        for read, members in _alike(stretch.members, lambda member: self.group.read(self._member(member))):
            if read:
                positions = indices(read, self.values.device)
                hidden = self.values[members][:, positions - self.group.first]
                at = [member - stretch.members[0] for member in members]
                yield self._block(layer, members, read, positions, hidden, own=(own[0][at], own[1][at]))

    def points(self, layer: int) -> Iterator[Stretch]:
        """The tokens edited inside this layer, of worlds that join behind it: until then they are the base run's."""
        joining = range(self.group.joined(layer), self.group.joined(layer + 1))
        for points, members in _alike(joining, lambda member: self._member(member).points):
            listed = [point for point in points if point < self.group.stop]
            if listed:
                positions = indices(listed, self.values.device)
                hidden = self.tape.streams[layer][self.rows[members][:, None], positions]
                # Edits inside a layer change no keys or values: up to `stop` these tokens see the base run's alone.
                yield self._block(layer, members, listed, positions, hidden, first=self.group.stop)

    def final(self) -> Iterator[tuple[list[int], Float[Tensor, "world readout d_model"]]]:
        """Worlds' numbers and their states behind the last layer, for each set of readout positions."""
        everyone = range(len(self.group.members))
        for readout, members in _alike(everyone, lambda member: self._member(member).readout):
            # What is read before the first edit is the base run's.
            states = self.tape.streams[-1][self.rows[members][:, None], list(readout)]
            for number, position in enumerate(readout):
                if position >= self.group.first:
                    states[:, number] = self.values[members, position - self.group.first]
            yield [self._member(member).number for member in members], states

    def _block(
        self,
        layer: int,
        members: Sequence[int],
        listed: Sequence[int],
        positions: Tensor,
        hidden: Tensor,
        *,
        out: Tensor | None = None,
        own: KeysValues | None = None,
        first: int | None = None,
    ) -> Stretch:
        """A stretch; its positions come as numbers too, since asking the device for them would wait for it."""
        picked = slice(members.start, members.stop) if isinstance(members, range) else members
        arrives = [(member, position) for member in members for position in listed] if out is None else None
        return Stretch(
            states=self,
            members=members,
            rows=self.rows[picked],
            positions=positions,
            queries=slice(listed.start, listed.stop) if isinstance(listed, range) else positions,
            first=self.group.first if first is None else first,
            stop=self.group.stop,
            hidden=hidden,
            out=torch.empty_like(hidden) if out is None else out,
            writes=self._writes(layer, members, listed),
            marked=self._marked(layer, members, listed),
            arrives=None if arrives is None else self._row_numbers(arrives),
            own=own,
        )

    def _writes(self, layer: int, members: Sequence[int], positions: Sequence[int]) -> Writes:
        """The edits inside the layer, by their rows of [member · position]."""
        found: dict[Place, list[Write]] = {}
        row_of = {member: row for row, member in enumerate(members)}
        column_of = {position: column for column, position in enumerate(positions)}
        # Edits of the stream are not among them: those are made between the layers.
        for component in (*INSIDE, "k", "v"):
            for member, edit in self.group.writes.get((component, layer), ()):
                row, column = row_of.get(member), column_of.get(edit.site.position)
                if row is not None and column is not None:
                    found.setdefault((component, layer), []).append((row * len(positions) + column, edit))
        return found

    def _marked(self, layer: int, members: Sequence[int], positions: Sequence[int]) -> Marked:
        """What is kept of the layer, by its rows of [member · position]."""
        found: dict[Place, list[tuple[int, tuple[int, Kept]]]] = {}
        row_of = {member: row for row, member in enumerate(members)} if self.group.kept else {}
        for place, kept in self.group.kept.items():
            for member, each in kept if place[1] == layer else ():
                if member in row_of and each[2] in positions:
                    row = row_of[member] * len(positions) + positions.index(each[2])
                    found.setdefault(place, []).append((row, (self._member(member).number, each)))
        return found

    @property
    def _flat(self) -> Float[Tensor, "row d_model"]:
        return self.values.flatten(0, 1)

    def _row_numbers(self, tokens: Iterable[tuple[int, int]]) -> Int[Tensor, " row"]:
        """The rows of [member · token] of these (member, position)."""
        length, first = self.group.length, self.group.first
        rows = [member * length + position - first for member, position in tokens]
        return indices(rows, self.values.device)

    def _member(self, number: int) -> Member:
        return self.group.members[number]


def _alike(members: Iterable[int], by: Callable[[int], tuple[int, ...]]) -> Iterator[tuple[tuple[int, ...], list[int]]]:
    """The members in parts that agree."""
    parts: dict[tuple[int, ...], list[int]] = {}
    for member in members:
        parts.setdefault(by(member), []).append(member)
    yield from parts.items()
