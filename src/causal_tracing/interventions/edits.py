"""What is run: runs, edits and worlds. An intervention is a value, never a callback."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from causal_tracing.errors import InvalidEdit
from causal_tracing.interventions.sites import ATTENTION, WIRING, Site

if TYPE_CHECKING:  # every --help reads this: nothing heavy
    import numpy as np
    from jaxtyping import Bool


@dataclass(frozen=True, slots=True)
class From:
    """The activation that another run (the donor) has at the edited component and layer, at `position`."""

    run: "Run"
    position: int


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of what donors have there: over a reference set."""

    donors: tuple[From, ...]

    def __post_init__(self) -> None:
        if not self.donors:
            raise InvalidEdit("A mean needs at least one donor; it got none.")


@dataclass(frozen=True, slots=True)
class Zero:
    """Nothing: zeros."""


# Two tensors have no single answer to whether they are equal, so what holds one is compared by identity.
@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """A tensor of the site's size ([d_model] in the stream), as it is. Compared by identity."""

    tensor: Any


@dataclass(frozen=True, slots=True, eq=False)
class Plus:
    """What is there, with a tensor of the site's size added to it. Compared by identity."""

    tensor: Any


@dataclass(frozen=True, slots=True, eq=False)
class Subspace:
    """What is there, with the donor's part inside a subspace: h + P (h_donor − h). Compared by identity.

    `basis` spans the subspace, [rank, size of the site]; it need not be orthonormal.
    """

    basis: Any
    donor: From


@dataclass(frozen=True, slots=True, kw_only=True)
class Attending:
    """How one query attends, where that is not as it does by itself: written at sites of `attention` alone.

    `blocked` are keys (positions) that it cannot see: the softmax is over the rest, as if a mask hid them. Of `zeroed`
    keys the weight is taken away behind the softmax, and no other key gets it. `q`, `k` and `v` say at which keys
    another run stands in, for this query alone: a key's score is that of the donor's query; a key, or a value, is the
    donor's. Keys behind the query are never seen; naming them changes nothing.
    """

    blocked: tuple[int, ...] = ()
    zeroed: tuple[int, ...] = ()
    q: tuple[tuple[int, From], ...] = ()
    k: tuple[tuple[int, From], ...] = ()
    v: tuple[tuple[int, From], ...] = ()

    @property
    def keys(self) -> tuple[int, ...]:
        """Every key that is named."""
        return (*self.blocked, *self.zeroed, *(key for each in (self.q, self.k, self.v) for key, _ in each))

    @property
    def made_again(self) -> bool:
        """Whether the query's row is made again behind the mask, and not by hiding keys alone."""
        return bool(self.zeroed or self.q or self.k or self.v)

    def up_to(self, query: int) -> "Attending":
        """The same without the keys behind the query, which it does not see."""
        plain = {name: tuple(key for key in getattr(self, name) if key <= query) for name in ("blocked", "zeroed")}
        given = {name: tuple(each for each in getattr(self, name) if each[0] <= query) for name in ("q", "k", "v")}
        return Attending(**plain, **given)

    def check(self, site: Site, tokens: int) -> None:
        """Raises InvalidEdit where it cannot be written there, in a run of so many tokens."""
        if site.component != ATTENTION:
            raise InvalidEdit(f"How a query attends is told at {ATTENTION}, and not at {site}.")
        beyond = [key for key in self.keys if not 0 <= key < tokens]
        if beyond:
            raise InvalidEdit(f"{site} names the key {beyond[0]}, but the run has {tokens} tokens: 0 to {tokens - 1}.")
        for each in (self.q, self.k, self.v):
            if len({key for key, _ in each}) < len(each):
                raise InvalidEdit(f"{site} names a key twice, and only one donor can stand in for it.")
        if {*self.blocked} >= {*range(site.position + 1)}:
            raise InvalidEdit(f"{site}: every key that this query can see is blocked. Leave it one, or use zeroed=.")


@dataclass(frozen=True, slots=True, eq=False)
class Rewired:
    """Who reads what of whom: written at the site of `wiring` alone, and of a whole run. Compared by identity.

    Senders are what adds to the stream, readers what reads it: a component of a layer, and its head (None: it has none;
    the logits read `resid_post` of the last layer). `edits` say what each sender adds instead, at each token. A reader
    reads that of the senders that `cut` marks, and of all others what they add in this very run, where they have read
    what is meant for them.
    """

    senders: tuple["Part", ...]
    readers: tuple["Part", ...]
    cut: "Bool[np.ndarray, 'reader sender']"
    edits: tuple["Edit", ...]

    def __post_init__(self) -> None:
        if self.cut.shape != (len(self.readers), len(self.senders)):
            raise InvalidEdit(
                f"cut has the shape {self.cut.shape}, and there are {len(self.readers)} readers and "
                f"{len(self.senders)} senders."
            )


Part = tuple[str, int, int | None]  # a component of a layer, and one of its heads
Source = From | Mean | Zero | Given | Plus | Subspace | Attending | Rewired


def donors_of(source: Source) -> tuple[From, ...]:
    """Where a source reads from other runs."""
    if isinstance(source, From):
        return (source,)
    if isinstance(source, Mean):
        return source.donors
    if isinstance(source, Attending):
        return tuple(donor for each in (source.q, source.k, source.v) for _, donor in each)
    if isinstance(source, Rewired):
        return tuple(donor for edit in source.edits for donor in donors_of(edit.source))
    return (source.donor,) if isinstance(source, Subspace) else ()


@dataclass(frozen=True, slots=True)
class Edit:
    """Writes (1 − alpha) · current + alpha · source at a site; alpha = 1 writes the source to the bit."""

    site: Site
    source: Source
    alpha: float = 1.0

    @property
    def reads(self) -> Iterator[tuple[tuple[str, int], From]]:
        """The components of layers that it reads of other runs, and where."""
        layer = self.site.layer
        if isinstance(self.source, Attending):
            by_component = {"q": self.source.q, "k": self.source.k, "v": self.source.v}
            yield from (((name, layer), donor) for name, each in by_component.items() for _, donor in each)
        elif isinstance(self.source, Rewired):
            for edit in self.source.edits:
                yield from edit.reads
        else:
            yield from (((self.site.component, layer), donor) for donor in donors_of(self.source))


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Run:
    """One forward computation over `tokens` (vocabulary ids), with the edits that belong to it."""

    tokens: tuple[int, ...]
    edits: tuple[Edit, ...] = ()
    _hash: int = field(init=False, repr=False)

    def __eq__(self, other: object) -> bool:
        if self is other or not isinstance(other, Run):
            return self is other
        # Hashes first: comparing edits would walk through all donors, and runs that differ nearly always differ here.
        return self._hash == other._hash and (self.tokens, self.edits) == (other.tokens, other.edits)

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        return Run, (self.tokens, self.edits)  # texts are hashed otherwise in every process

    def __post_init__(self) -> None:
        # Made once: a donor may have an edit in every layer, and tens of thousands of worlds read from it.
        object.__setattr__(self, "_hash", hash((self.tokens, self.edits)))
        if not self.tokens:
            raise InvalidEdit("A run needs at least one token; it got none.")
        written: dict[tuple[str, int, int], set[int | None]] = {}
        for edit in self.edits:
            _check_position("An edit is", edit.site.position, self)
            for donor in donors_of(edit.source):
                _check_position("A donor is read", donor.position, donor.run)
            _check_told(edit, self)
            place = edit.site.place
            at = place.component, place.layer, place.position
            if at not in written:  # nearly always, and there are hundreds of thousands
                written[at] = {place.part}
                continue
            # A whole site and a part of it overlap: which of them would count is not said.
            parts = written[at]
            if place.part in parts or place.part is None or None in parts:
                raise InvalidEdit(
                    f"Two edits of one run write at the same site: {edit.site}. (resid_post of a layer is "
                    "resid_pre of the next.) Keep one of them, or make two worlds."
                )
            parts.add(place.part)
        _check_patterns(self.edits)


# Weak, so that runs go with the traces that made them.
_ONE: WeakValueDictionary[Run, Run] = WeakValueDictionary()


def one_run(tokens: tuple[int, ...], edits: tuple[Edit, ...]) -> Run:
    """A run that is the same object whenever it is asked for.

    Where runs read from runs that read from runs, comparing two that are equal would follow every way through them.
    """
    made = Run(tokens, edits)
    return _ONE.setdefault(made, made)


@dataclass(frozen=True, slots=True)
class World:
    """A what-if: this base run with these edits, its logits wanted at the positions `readout`.

    `pair` says by whose answer and foil the logits are measured; the engine only hands it on. `again` marks a repeat: a
    world that is run though it may be known, and however often. The packed engine computes repeat n anew from layer
    n − 1 on, so that repeats of one run are products of different shapes. `run` is the patched run: the base run's own
    edits, then the world's.
    """

    base: Run
    edits: tuple[Edit, ...]
    readout: tuple[int, ...]
    pair: int = 0
    again: int = 0
    run: Run = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.readout:
            raise InvalidEdit("A world needs at least one readout position; it got none.")
        for position in self.readout:
            _check_position("The readout is", position, self.base)
        for edit in self.edits:
            if edit.site.component == "embed":
                raise InvalidEdit(
                    f"A world cannot edit {edit.site}: noise belongs to its base run; resid_pre of layer 0 restores."
                )
        patched = Run(self.base.tokens, self.base.edits + self.edits) if self.edits else self.base
        object.__setattr__(self, "run", patched)  # made once: that the edits go together is checked on the way


def _check_told(edit: Edit, run: Run) -> None:
    """Raises InvalidEdit where attention or wiring is written at as if it were an activation, or one as if it were."""
    # Nearly all of some hundred thousand edits are plain, and are let through first.
    if edit.site.component not in (ATTENTION, WIRING) and not isinstance(edit.source, (Attending, Rewired)):
        return
    if isinstance(edit.source, Attending):
        edit.source.check(edit.site, len(run.tokens))
    if (edit.site.component == ATTENTION) != isinstance(edit.source, Attending) or (
        edit.site.component == ATTENTION and edit.alpha != 1
    ):
        raise InvalidEdit(f"{edit.site} is no activation: only a whole Attending (alpha 1) can be written there.")
    # A rewired world is run in rows of its own, made of its base run: another edit beside it would be dropped unsaid.
    if (edit.site.component == WIRING) != isinstance(edit.source, Rewired) or (
        edit.site.component == WIRING and (edit.alpha != 1 or len(run.edits) > 1)
    ):
        raise InvalidEdit(f"{edit.site} is no activation: a Rewired (alpha 1) is written there, alone and there alone.")


def _check_patterns(edits: tuple[Edit, ...]) -> None:
    """Raises InvalidEdit where a pattern is written over a row that is made again: which of them counts is not said."""
    again = [edit.site for edit in edits if isinstance(edit.source, Attending) and edit.source.made_again]
    if not again:
        return
    rows = {(site.layer, site.position): site for site in again}
    for site in (edit.site for edit in edits if edit.site.component == "pattern"):
        told = rows.get((site.layer, site.position))
        if told is not None:
            raise InvalidEdit(
                f"{site} and {told} are written in one run: a pattern goes with blocked= keys of the same query alone. "
                "Make two worlds."
            )


def _check_position(what: str, position: int, run: Run) -> None:
    if not 0 <= position < len(run.tokens):
        raise InvalidEdit(
            f"{what} at position {position}, but the run has {len(run.tokens)} tokens: "
            f"positions 0 to {len(run.tokens) - 1}."
        )
