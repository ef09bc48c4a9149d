"""From a grid to worlds: every cell of a pair's map, as the what-ifs that measure it.

A cell of a role is the mean over one world for each of the role's tokens; where noise corrupts, or donors are drawn,
every cell has a world for each draw.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from causal_tracing.interventions.edits import Edit, Run, World
from causal_tracing.patching.contrast import Contrast
from causal_tracing.patching.grid import At, Grid
from causal_tracing.prompts.pairs import TokenPair
from causal_tracing.results.arms import Arm


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One pair: its tokens, the runs that it compares, and the number by which its logits are measured."""

    number: int
    pair: TokenPair
    contrast: Contrast

    @property
    def unedited(self) -> list[World]:
        """The clean run, then the corrupt ones."""
        runs = (self.contrast.clean, *self.contrast.corrupt)
        return [World(run, (), last_of(run), self.number) for run in runs]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One world of a map, and where its number belongs."""

    arm: Arm
    draw: int
    at: At
    world: World


def cells(question: Question, grid: Grid, slices: Sequence[int] | None = None) -> Iterator[Cell]:
    """Every world of the pair's map, or of some of its layers (by index); none where nothing arrives."""
    unreached, contrast = grid.unreached(question.pair), question.contrast
    places = [at for at in grid.cells(slices) if unreached is None or not unreached[at]]
    # In this order, so that worlds which read from one donor lie together.
    for draw in range(contrast.draws):
        for arm in grid.arms:
            base, donor = contrast.sides(draw, restores=arm.restores)
            for at, made in grid.sweep(places, question.pair, contrast, arm, base, donor):
                for world in _worlds(question, base, made):
                    yield Cell(arm=arm, draw=draw, at=at, world=world)


def worlds_of(question: Question, grid: Grid, arm: Arm, draw: int, at: At) -> Iterator[World]:
    """The worlds that measure one cell in one draw: their mean is its number."""
    base, donor = question.contrast.sides(draw, restores=arm.restores)
    for _, made in grid.sweep([at], question.pair, question.contrast, arm, base, donor):
        yield from _worlds(question, base, made)


def _worlds(question: Question, base: Run, made: Iterable[tuple[Edit, ...]]) -> Iterator[World]:
    if question.contrast.donors:
        made = list(made)
        if any(written_twice(base, edits) for edits in made):
            return  # what is given already has no effect of its own there: it is undefined, and not zero
    for edits in made:
        yield World(base, edits, last_of(base), question.number)


def given_cells(question: Question, grid: Grid) -> Bool[np.ndarray, "..."] | None:
    """Which places of a map are patched already, in every cell of it; None where nothing is."""
    contrast, pair, arm = question.contrast, question.pair, grid.arms[0]
    if not (contrast.donors or grid.overlaps):
        return None
    found = np.zeros(grid.shape, dtype=bool)
    # By the first draw and arm: where something is written depends on neither.
    base, donor = contrast.sides(0, restores=arm.restores)
    for at, made in grid.sweep(grid.cells(), pair, contrast, arm, base, donor):
        taken = grid.held(at, pair) or (contrast.donors and any(written_twice(base, each) for each in made))
        for place in grid.alike(at):
            found[place] = bool(taken)
    return found


def written_twice(base: Run, edits: Sequence[Edit]) -> bool:
    """Whether edits write where the base run's own do, whole or in part."""
    places = {(edit.site.place.component, edit.site.place.layer, edit.site.position, edit.site.part) for edit in edits}
    whole = {place[:3] for place in places if place[3] is None}
    for edit in base.edits:
        place, part = edit.site.place, edit.site.part
        here = place.component, place.layer, place.position
        # Whole over part, part over the same part, and part over whole: each writes what another one has written.
        if here in whole or (*here, part) in places or (part is None and here in {each[:3] for each in places}):
            return True
    return False


def last_of(run: Run) -> tuple[int]:
    """Where a run is read: at its last token."""
    return (len(run.tokens) - 1,)
