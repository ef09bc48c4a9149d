"""What is run: runs, edits and worlds. An intervention is a value, never a callback."""

from dataclasses import dataclass, field
from typing import Any

from causal_tracing.errors import InvalidEdit
from causal_tracing.interventions.sites import Site


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


Source = From | Mean | Zero | Given | Plus | Subspace


def donors_of(source: Source) -> tuple[From, ...]:
    """Where a source reads from other runs."""
    if isinstance(source, From):
        return (source,)
    if isinstance(source, Mean):
        return source.donors
    return (source.donor,) if isinstance(source, Subspace) else ()


@dataclass(frozen=True, slots=True)
class Edit:
    """Writes (1 − alpha) · current + alpha · source at a site; alpha = 1 writes the source to the bit."""

    site: Site
    source: Source
    alpha: float = 1.0


@dataclass(frozen=True, slots=True)
class Run:
    """One forward computation over `tokens` (vocabulary ids), with the edits that belong to it."""

    tokens: tuple[int, ...]
    edits: tuple[Edit, ...] = ()

    def __post_init__(self) -> None:
        if not self.tokens:
            raise InvalidEdit("A run needs at least one token; it got none.")
        written: dict[tuple[str, int, int], set[int | None]] = {}
        for edit in self.edits:
            _check_position("An edit is", edit.site.position, self)
            for donor in donors_of(edit.source):
                _check_position("A donor is read", donor.position, donor.run)
            place = edit.site.place
            parts = written.setdefault((place.component, place.layer, place.position), set())
            if place.part in parts or (parts and (place.part is None or None in parts)):
                raise InvalidEdit(
                    f"Two edits of one run write at the same site: {edit.site}. (resid_post of a layer is "
                    "resid_pre of the next.) Keep one of them, or make two worlds."
                )
            parts.add(place.part)


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


def _check_position(what: str, position: int, run: Run) -> None:
    if not 0 <= position < len(run.tokens):
        raise InvalidEdit(
            f"{what} at position {position}, but the run has {len(run.tokens)} tokens: "
            f"positions 0 to {len(run.tokens) - 1}."
        )
