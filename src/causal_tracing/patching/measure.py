"""A job's numbers: its worlds run some thousands at a time, its unedited runs repeated, and a few cells run again.

1. Some pairs at a time: the unedited runs, and the cells of each grid behind them, in batches.
2. Each batch's numbers go to their cells. Whoever listens is handed the maps so far; then layers come from coarse to
   fine, so that the whole picture is there early, and batches are small.
3. With them ride repeats of the unedited runs, in other shapes (the spread); at the end a few cells are run
   again, on whole forwards (`spot_checks.py`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, repeat
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from causal_tracing.interventions.edits import World
from causal_tracing.patching.arrays import Sums, measurements_of
from causal_tracing.patching.cells import Cell, cells, given_cells
from causal_tracing.patching.contrast import Contrast
from causal_tracing.patching.grid import At, Grid
from causal_tracing.patching.job import Job
from causal_tracing.patching.lens import lenses
from causal_tracing.patching.metrics.scoring import Scoring, spread
from causal_tracing.patching.options.trace import Progress
from causal_tracing.patching.preview import Preview, check_known, check_length, understood
from causal_tracing.patching.spot_checks import Furthest, SpotChecks
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.storage.join import joined

# Bounds the memory that donors and worlds take, however many pairs there are: of so many pairs, or corrupt runs.
PAIRS_AT_ONCE = 8
AT_ONCE = 16_384  # cells
AT_ONCE_SHOWN = 1024  # cells, where somebody looks on
FIRST_SHOWN = 40  # cells, so that something is there at once
STEPS = 1000  # in which progress is told


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Filled:
    """What is known of one pair so far: its measurements, NaN where nothing was run yet, and what is new in them.

    `new` are places in the arrays of the map of `kind`; there are none when the unedited runs alone are known. Zeros
    that are known without a run are in the measurements from the first, and never new.
    """

    kind: str
    pair: int
    measurements: Measurements
    new: tuple[At, ...]


Sink = Callable[[Filled], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Numbers:
    """What a job gave: its pairs' measurements, how many worlds that took, and how cells agreed when run again."""

    measurements: Measurements
    worlds: int
    worlds_run: int
    spot_checks: Mapping[str, Any]


def measure(job: Job, *, progress: Progress | None = None, sink: Sink | None = None) -> Numbers:
    """Runs a job. `progress` is told how much of the whole is done, `sink` is handed the maps while they fill.

    What either raises stops the work, between two layers or two batches, and leaves nothing behind.
    """
    for pair in job.pairs:
        check_known(job.model, pair)
        check_length(job.model, pair)
    checks = SpotChecks(job)
    tally = _Tally(progress, sum(_count(job, grid) for grid in job.grids))
    chunks: list[_Chunk] = []
    clean: dict[int, Tensor] = {}
    far: Furthest | None = None
    far_clean: dict[int, Tensor] = {}
    at_once = pairs_at_once(job.contrasts)
    for start in range(0, len(job.pairs), at_once):
        chunk = _Chunk(job, range(start, min(start + at_once, len(job.pairs))), tally, sink)
        expected = chunk.run()
        clean |= {number: expected[number] for number in checks.pairs & expected.keys()}
        if chunk.furthest and chunk.furthest.tokens > (far.tokens if far else 0):
            far = chunk.furthest  # the numbers of the whole vocabulary are kept of this pair alone
            far_clean = {far.number: expected[far.number]}
        chunks.append(chunk)
    sums = {number: each for chunk in chunks for number, each in chunk.sums.items()}
    unedited = {number: each for chunk in chunks for number, each in chunk.unedited.items()}
    return Numbers(
        measurements=joined([each for chunk in chunks for each in chunk.measurements()], {}),
        worlds=sum(chunk.worlds for chunk in chunks),
        worlds_run=sum(chunk.worlds_run for chunk in chunks),
        spot_checks=checks.run(sums, unedited, clean | far_clean, far),
    )


def pairs_at_once(contrasts: Sequence[Contrast]) -> int:
    """How many pairs are in work at a time."""
    return max(1, PAIRS_AT_ONCE // max(contrast.draws for contrast in contrasts))


def _count(job: Job, grid: Grid) -> int:
    """The worlds of a grid, of all pairs."""
    return sum(grid.count(pair) * each.draws for pair, each in zip(job.pairs, job.contrasts, strict=True))


class _Tally:
    """How much of the whole is done: worlds that are, and the share of the batch that is being run."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress = progress
        self.total = max(1, total)
        self.done = 0

    def batch(self, size: int) -> Progress | None:
        """Progress of a batch of so many worlds, told as progress of the whole."""
        if self.progress is None:
            return None
        tell, before = self.progress, self.done

        def report(done: int, of: int) -> None:
            # How many worlds there are is a guess (`Grid.count`): told as no more than all.
            tell(min(STEPS, round(STEPS * (before + size * done / of) / self.total)), STEPS)

        return report


class _Chunk:
    """Some pairs in work at once: their worlds, and the numbers that these have given so far."""

    def __init__(self, job: Job, numbers: Sequence[int], tally: _Tally, sink: Sink | None) -> None:
        self.job, self.numbers, self.tally, self.sink = job, numbers, tally, sink
        self.previews: dict[int, Preview] = {}
        self.rows: dict[int, list[np.ndarray]] = {number: [] for number in numbers}  # of the unedited runs
        self.repeats: dict[int, list[np.ndarray]] = {number: [] for number in numbers}
        self.sums: dict[int, dict[str, Sums]] = {
            number: {grid.kind.name: _sums(job, number, grid) for grid in job.grids} for number in numbers
        }
        self.lenses: dict[int, xr.Dataset] = {}
        self.worlds = self.worlds_run = 0
        self.furthest: Furthest | None = None

    def run(self) -> dict[int, Float[Tensor, " vocab"]]:
        """All cells of all grids; of kinds with parts, whose maps are large, one pair at a time.

        Returns what the model expects after each clean prompt.
        """
        job, pairs = self.job, {number: self.job.pairs[number] for number in self.numbers}
        contrasts = [job.contrasts[number] for number in self.numbers]
        previews, expected = understood(job.model, job.backend, list(pairs.values()), contrasts)
        self.previews = dict(zip(self.numbers, previews, strict=True))
        clean = dict(zip(self.numbers, expected, strict=True))
        self._read_lenses()
        whole = Scoring(job.backend, pairs, clean, job.metrics)
        for grid in job.grids:
            metrics, apart = job.metrics_of(grid.kind), [[number] for number in self.numbers]
            scoring = whole if metrics == job.metrics else Scoring(job.backend, pairs, clean, metrics)
            for numbers in apart if grid.kind.part or grid.kind.large else [list(self.numbers)]:
                if scoring is not whole:  # the unedited runs have all metrics, and cannot ride with these cells
                    self._run_unedited(whole, [number for number in numbers if not self.rows[number]])
                for batch in self._batches(grid, numbers, scoring):
                    self._measure(grid, scoring, batch)
        return clean

    def _read_lenses(self) -> None:
        """The pairs' logit lenses, where they are asked for; every world of them is run."""
        if self.job.lens:
            self.lenses, worlds = lenses(self.job, self.numbers)
            self.worlds, self.worlds_run = self.worlds + worlds, self.worlds_run + worlds

    def _run_unedited(self, scoring: Scoring, numbers: Sequence[int]) -> None:
        """The unedited runs of these pairs and their repeats, by themselves."""
        worlds = [(number, world) for number in numbers for world in self._unedited_of(number, scoring)]
        if worlds:
            self._measure(self.job.grids[0], scoring, worlds)

    def _unedited_of(self, number: int, scoring: Scoring) -> list[World]:
        unedited = self.job.question(number).unedited
        return [*unedited, *scoring.repeats(unedited)]

    @property
    def unedited(self) -> dict[int, np.ndarray]:
        """Each pair's unedited runs [run, metric], the clean one first."""
        return {number: np.stack(rows) for number, rows in self.rows.items()}

    def measurements(self) -> Iterator[Measurements]:
        """What is known of each pair."""
        for number in self.numbers:
            yield self._of_pair(number)

    def _of_pair(self, number: int) -> Measurements:
        unedited = np.stack(self.rows[number])
        maps = {name: each.map(unedited) for name, each in self.sums[number].items()}
        apart = spread(unedited, np.stack(self.repeats[number]))
        found = measurements_of(self.previews[number], unedited, apart, maps, self.job.metrics)
        return replace(found, lens=self.lenses.get(number))

    def _batches(
        self, grid: Grid, numbers: Sequence[int], scoring: Scoring
    ) -> Iterator[list[tuple[int, Cell | World]]]:
        """Worlds with their pair's number: before a pair's first cells, its unedited runs and their repeats."""
        if self.sink is None:
            stream = (one for number in numbers for one in self._of(grid, number, scoring, None))
            while batch := list(islice(stream, AT_ONCE)):
                yield batch
            return
        sizes = chain([min(FIRST_SHOWN, AT_ONCE_SHOWN)], repeat(AT_ONCE_SHOWN))
        for layers in coarse_to_fine(grid.slices):
            stream = (one for number in numbers for one in self._of(grid, number, scoring, layers))
            while batch := list(islice(stream, next(sizes))):
                yield batch

    def _of(
        self, grid: Grid, number: int, scoring: Scoring, layers: Sequence[int] | None
    ) -> Iterator[tuple[int, Cell | World]]:
        question = self.job.question(number)
        # First, because a cell that is known to be zero gets its base run's numbers.
        if not self.rows[number]:
            yield from ((number, world) for world in self._unedited_of(number, scoring))
        yield from ((number, cell) for cell in cells(question, grid, layers))

    def _measure(self, grid: Grid, scoring: Scoring, batch: Sequence[tuple[int, Cell | World]]) -> None:
        """Runs a batch, and puts its numbers where they belong; what is known to be zero is exactly the base run's."""
        worlds = [one.world if isinstance(one, Cell) else one for _, one in batch]
        counted = sum(isinstance(one, Cell) for _, one in batch)
        found = scoring.evaluate(worlds, progress=self.tally.batch(counted))
        self.tally.done += counted
        self.worlds, self.worlds_run = self.worlds + found.worlds, self.worlds_run + found.worlds_run
        self._note_furthest(grid, batch, found.furthest)
        new: dict[int, list[At]] = {number: [] for number, _ in batch}
        for (number, one), value, zero in zip(batch, found.values, found.structural_zero, strict=True):
            if isinstance(one, World):
                (self.repeats if one.again else self.rows)[number].append(value)
                continue
            cut = one.arm == grid.arms[0] and scoring.is_cut(one.world)
            mine = self.sums[number][grid.kind.name]
            base = self._base(number, one)[: len(scoring.metrics)]
            mine.add(one, base if zero else value, zero=bool(zero), cut=cut)
            new[number].append(one.at)
        for number, places in new.items() if self.sink else ():
            # A batch may end among a pair's repeats, before its spread is known.
            if len(self.repeats[number]) == len(scoring.repeats(self.job.question(number).unedited)):
                self._show(grid, number, places)

    def _show(self, grid: Grid, number: int, places: Sequence[At]) -> None:
        """Hands on what is known of a pair; these cells of it are new."""
        assert self.sink is not None
        new = tuple(dict.fromkeys(places))  # a cell of several worlds is named by each of them
        self.sink(Filled(kind=grid.kind.name, pair=number, measurements=self._of_pair(number), new=new))

    def _note_furthest(
        self, grid: Grid, batch: Sequence[tuple[int, Cell | World]], found: tuple[int, int] | None
    ) -> None:
        """Keeps the cell that came last in the longest call; sums over a window's layers are not run again."""
        tokens, place = found or (0, 0)
        number, one = batch[place]
        if tokens > (self.furthest.tokens if self.furthest else 0) and isinstance(one, Cell) and not one.arm.alone:
            self.furthest = Furthest(tokens=tokens, grid=grid, number=number, cell=one)

    def _base(self, number: int, cell: Cell) -> np.ndarray:
        """The numbers of the run that a cell patches."""
        clean, *corrupt = self.rows[number]
        return corrupt[cell.draw if len(corrupt) > 1 else 0] if cell.arm.restores else clean


def _sums(job: Job, number: int, grid: Grid) -> Sums:
    names = [metric.name for metric in job.metrics_of(grid.kind)]
    question = job.question(number)
    given, unreached = given_cells(question, grid), grid.unreached(question.pair)
    return Sums(grid, question.contrast.draws, names, given, unreached)


def coarse_to_fine(count: int) -> Iterator[list[int]]:
    """Numbers 0 to count − 1 in rounds: a few that are far apart first, then those between them."""
    # A power of two by which the first round has four at most.
    step = 1 << max(0, (count - 1).bit_length() - 2)
    seen: set[int] = set()
    while len(seen) < count:
        numbers = [number for number in range(count) if number % step == 0 and number not in seen]
        if numbers:
            yield numbers
        seen.update(numbers)
        step = max(1, step // 2)
