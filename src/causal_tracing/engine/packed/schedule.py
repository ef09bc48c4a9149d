"""Which tokens of a world must be computed in which layer: the plan of a wave. Pure; runs nothing.

A world changes nothing before its first edited layer, and no token before its first edited position. So it joins the
wave there, with the tokens from that position to the last one read. Edits inside a layer change in that layer their
own tokens only: those are computed alone (its *points*), and the world joins at the next layer.

A world that from there on overwrites all that layers add to its tokens with what its base run adds is *held*: its
layers are not computed, for the stream behind each is the stream before it and what is recorded of the base run.

Of donors, which have no readout, some activations are *kept*: they go as far as the last of these. In a layer of which
something is kept a held one is computed too, and what the layer makes of its tokens is dropped.
"""

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter, itemgetter

from causal_tracing.engine.backend import Place
from causal_tracing.interventions.donors import Kept
from causal_tracing.interventions.edits import Edit, From, Run, World
from causal_tracing.interventions.sites import ATTENTION, FINAL_SCALE, MIXTURE

PARTS, MIXER = ("attn_out", "mlp_out"), "mixer_out"  # what a layer adds: two parts, or its only one
BETWEEN = ("embed", "resid_pre", FINAL_SCALE)  # before the layers, between them, and behind the last one
# Components whose edits change in their own layer no other token than the edited one.
INSIDE = ("q", ATTENTION, "pattern", "z", "attn_out", "resid_mid", "neurons", *MIXTURE, "mlp_out", "mixer_out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One world of a wave. `joins` is the layer at whose input it joins; `points` are computed in the layer before.

    `held`: from there on no layer needs to be computed for it, but for what is `kept`.
    """

    number: int
    base: Run
    readout: tuple[int, ...]
    first: int
    joins: int
    points: tuple[int, ...]
    writes: tuple[Edit, ...]
    held: bool = False
    kept: tuple[Kept, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Worlds whose base runs share a tape and whose first edited position is the same, in the order that they join.

    Each has the tokens `first` to `stop` − 1 in the wave. All of them are `held`, or none is; `until` is the last layer
    that any of them is wanted of (None: they are read behind the last one).
    """

    tape: int
    first: int
    stop: int
    members: Sequence[Member]
    held: bool = False
    until: int | None = None

    @property
    def length(self) -> int:
        """How many tokens each of its worlds has in the wave."""
        return max(0, self.stop - self.first)

    @cached_property
    def _joins(self) -> list[int]:
        return [member.joins for member in self.members]

    def joined(self, layer: int) -> int:
        """How many of its worlds are in the wave when the layer runs: its first so many members."""
        return bisect_right(self._joins, layer)

    @cached_property
    def writes(self) -> Mapping[Place, Sequence[tuple[int, Edit]]]:
        """At each place, the members that are written to there, in order, and the edits."""
        found: dict[Place, list[tuple[int, Edit]]] = {}
        for index, member in enumerate(self.members):
            for edit in member.writes:
                if edit.site.position < self.stop:
                    found.setdefault(_place(edit), []).append((index, edit))
        return found

    @cached_property
    def kept(self) -> Mapping[Place, Sequence[tuple[int, Kept]]]:
        """At each place, the members of which something is kept there, in order, and what it is."""
        found: dict[Place, list[tuple[int, Kept]]] = {}
        for index, member in enumerate(self.members):
            for each in member.kept:
                found.setdefault(each[:2], []).append((index, each))
        return found

    def passes(self, layer: int) -> bool:
        """Whether the layer matters to any of its worlds."""
        return self.until is None or layer <= self.until

    def rows(self, layer: int, last: int) -> int:
        """How many tokens of its worlds the layer must compute, the points of the next layer's joiners included."""
        joined, joining = self.joined(layer), self.joined(layer + 1)
        points = sum(point < self.stop for member in self.members[joined:joining] for point in member.points)
        if self.held:
            return points
        if layer < last:
            return joined * self.length + points
        return points + sum(len(self.read(member)) for member in self.members[:joined])

    def kept_rows(self) -> int:
        """How many tokens of its worlds are computed in all layers, for what is kept of them; of donors alone."""
        assert self.until is not None
        found = 0
        for member in self.members:
            kept = {layer for _, layer, _ in member.kept if layer >= member.joins}
            layers = len(kept) if self.held else self.until - member.joins + 1
            found += len(member.points) + self.length * max(0, layers)
        return found

    def read(self, member: Member) -> tuple[int, ...]:
        """The member's readout positions that are in the wave; at those before, it is its base run."""
        return tuple(position for position in member.readout if position >= self.first)


def groups(
    worlds: Sequence[World], numbers: Sequence[int], tapes: Mapping[Run, int], num_layers: int, added_from: int
) -> list[Group]:
    """The worlds of these numbers by tape, first edited position, and whether they are held.

    Groups of one tape lie together. `tapes` says on which tape each base run lies, `added_from` from which layer on
    each one gives the stream and what its parts add (`Anatomy`).
    """
    members = [joining(worlds[number], number, num_layers, added_from) for number in numbers]
    return _grouped(members, tapes, lambda member: max(member.readout), None)


def donor_groups(
    worlds: Sequence[World],
    kept: Mapping[int, Collection[Kept]],
    tapes: Mapping[Run, int],
    num_layers: int,
    added_from: int,
) -> list[Group]:
    """The worlds of which something is `kept`, by their numbers, as `groups` has them, and by how far they go."""
    found = []
    by_end: dict[int, list[Member]] = {}
    for number, wanted in kept.items():
        until = max(layer for _, layer, _ in wanted)
        member = joining(worlds[number], number, num_layers, added_from, until=until)
        changed = tuple(each for each in wanted if changes(member, each))
        if changed:
            by_end.setdefault(until, []).append(replace(member, kept=changed))
    for until, members in by_end.items():
        found += _grouped(members, tapes, lambda member: max(position for *_, position in member.kept), until)
    return sorted(found, key=attrgetter("tape"))


def changes(member: Member, kept: Kept) -> bool:
    """Whether an activation of a world may be another than its base run's."""
    _, layer, position = kept
    return position >= member.first and (
        layer >= member.joins or (layer == member.joins - 1 and position in member.points)
    )


def _grouped(
    members: Iterable[Member], tapes: Mapping[Run, int], last: Callable[[Member], int], until: int | None
) -> list[Group]:
    stops: dict[int, int] = {}
    gathered: dict[tuple[int, int, bool], list[Member]] = {}
    for member in members:
        tape = tapes[member.base]
        # No token behind the last one that is read is ever computed.
        stops[tape] = max(stops.get(tape, 0), last(member) + 1)
        # Worlds with the same first token send equally many of them: they share matrices without padding.
        gathered.setdefault((tape, member.first, member.held), []).append(member)
    return [
        Group(
            tape=tape,
            first=first,
            stop=stops[tape],
            members=sorted(members, key=attrgetter("joins")),
            held=held,
            until=until,
        )
        for (tape, first, held), members in sorted(gathered.items(), key=itemgetter(0))
    ]


def joining(world: World, number: int, num_layers: int, added_from: int, *, until: int | None = None) -> Member:
    """Where a world joins the wave. One without edits never does: it is its base run, unless it is a repeat.

    `until` is the last layer that it is wanted of; None: it is read behind the last one.
    """
    if world.again and not world.edits:
        layer = (world.again - 1) % num_layers
        writes = tuple(_again(world.base.edits, 0, layer, ()))
        return Member(
            number=number, base=world.base, readout=world.readout, first=0, joins=layer, points=(), writes=writes
        )
    edits = [edit for edit in world.edits if edit.site.component != FINAL_SCALE]  # that is behind the wave
    first = min((edit.site.position for edit in edits), default=len(world.base.tokens))
    layer = min((edit.site.place.layer for edit in edits), default=num_layers)
    here = [edit for edit in edits if edit.site.place.layer == layer]
    # One edit that reaches later tokens already here makes the world join here, with all that follow.
    inside = bool(here) and all(edit.site.component in INSIDE for edit in here)
    points = tuple(sorted({edit.site.position for edit in here})) if inside else ()
    return Member(
        number=number,
        base=world.base,
        readout=world.readout,
        first=first,
        joins=layer + inside,
        points=points,
        writes=(*_again(world.base.edits, first, layer, points), *edits),
        held=bool(edits)
        and layer + inside >= added_from
        and _holds(world, first, range(layer + inside, num_layers if until is None else until)),
    )


def _holds(world: World, first: int, layers: Sequence[int]) -> bool:
    """Whether a world has in these layers what its base run adds, at each of its tokens, and is edited nowhere else."""
    held: set[tuple[str, int, int]] = set()
    for edit in world.run.edits:
        site = edit.site.place
        if site.layer not in layers or site.component in BETWEEN:
            continue
        if site.component not in (*PARTS, MIXER) or edit.alpha != 1 or edit.source != From(world.base, site.position):
            return False
        held.add((site.component, site.layer, site.position))
    single = any(component == MIXER for component, *_ in held)
    tokens = range(first, max(world.readout) + 1)
    return all((part, n, token) in held for part in ([MIXER] if single else PARTS) for n in layers for token in tokens)


def _again(edits: Sequence[Edit], first: int, layer: int, points: Sequence[int]) -> Iterator[Edit]:
    """The base run's own edits that are made anew: those at tokens that the wave computes, from there on.

    What was taken from the base run's tape has them already.
    """
    for edit in edits:
        component, at = _place(edit)
        position = edit.site.position
        # At single tokens the layer is computed for those alone; what was edited beside them is on the tape.
        if points and (at == layer or (at == layer + 1 and component == "resid_pre")):
            computed = position in points and (at > layer or component not in ("embed", "resid_pre"))
        else:
            computed = at > layer or (at == layer and component not in ("embed", "resid_pre"))
        if computed and position >= first:
            yield edit


def _place(edit: Edit) -> Place:
    return edit.site.place.component, edit.site.place.layer
