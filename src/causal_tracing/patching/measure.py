"""A job's numbers: its worlds run some pairs at a time, its unedited runs repeated, and a few cells run again."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.patching.arrays import PairNumbers, collect
from causal_tracing.patching.contrast import Contrast
from causal_tracing.patching.grid import cells, worlds_of
from causal_tracing.patching.job import Job
from causal_tracing.patching.metrics import METRICS
from causal_tracing.patching.scoring import Scoring
from causal_tracing.patching.units import Picked, UnitSweep, measure_units, picked_units

# Bounds the memory that donors and worlds take, however many pairs there are: of so many pairs, or corrupt runs.
PAIRS_AT_ONCE = 8
BOTH = 2  # the unedited runs that are repeated: the clean one, and one corrupt one, however many draws there are

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Numbers:
    """What a job gave: each pair's numbers, those of its heads and neurons, and how cells agreed when run again."""

    pairs: Sequence[PairNumbers]
    units: Mapping[str, Sequence[xr.Dataset]]
    spot_checks: Mapping[str, Any]

    @property
    def worlds(self) -> int:
        """How many worlds were asked for."""
        return sum(pair.worlds for pair in self.pairs) + self._of_units("worlds")

    @property
    def worlds_run(self) -> int:
        """How many of them had to be run."""
        return sum(pair.worlds_run for pair in self.pairs) + self._of_units("worlds_run")

    def _of_units(self, name: str) -> int:
        return sum(found.attrs[name] for each in self.units.values() for found in each)


def measure(job: Job, progress: Progress | None) -> Numbers:
    """Runs a job. `progress` is told how much of the whole is done."""
    parts = 1 + len(job.units)
    pairs = list(_blocks(job, _share(progress, 0, parts)))
    units = {
        name: list(_units(job, sweep, pairs, _share(progress, part, parts)))
        for part, (name, sweep) in enumerate(job.units.items(), start=1)
    }
    return Numbers(pairs=pairs, units=units, spot_checks=_spot_checks(job, list(_picked(job, pairs, units))))


def pairs_at_once(contrasts: Sequence[Contrast]) -> int:
    """How many pairs are in work at a time."""
    return max(1, PAIRS_AT_ONCE // max(contrast.draws for contrast in contrasts))


def _blocks(job: Job, progress: Progress) -> Iterator[PairNumbers]:
    """Each pair's numbers, a few pairs at a time."""
    engine, budget, total, at_once = job.choice.engine, job.options.budget, len(job.pairs), pairs_at_once(job.contrasts)
    for start in range(0, total, at_once):
        chunk = range(start, min(start + at_once, total))
        scoring = Scoring(job.model, {number: job.pairs[number] for number in chunk})
        asked = {number: worlds_of(job.pairs[number], job.contrasts[number], job.sweep, number) for number in chunk}
        worlds = [world for unedited, found in asked.values() for world in (*unedited, *(cell.world for cell in found))]

        def report(done: int, of: int, first: int = start, size: int = len(chunk)) -> None:
            progress(round(1000 * (first + size * done / of)), 1000 * total)

        result = scoring.evaluate(worlds, engine=engine, budget=budget, progress=report)
        repeated = [unedited[:BOTH] for unedited, _ in asked.values()]
        repeats = iter(scoring.spread([world for both in repeated for world in both]))
        reached = 0
        for (number, (unedited, found)), both in zip(asked.items(), repeated, strict=True):
            mine = slice(reached, reached + len(unedited) + len(found))
            reached = mine.stop
            yield collect(
                scoring,
                job.sweep,
                found,
                draws=job.contrasts[number].draws,
                values=result.values[mine],
                structural_zero=result.structural_zero[mine],
                spread=np.max([next(repeats) for _ in both], axis=0),
                worlds_run=result.worlds_run if number == start else 0,
            )


def _units(job: Job, sweep: UnitSweep, numbers: Sequence[PairNumbers], progress: Progress) -> Iterator[xr.Dataset]:
    """Each pair's heads or neurons."""
    both = list(zip(job.pairs, job.contrasts, strict=True))
    total, reached = sum(sweep.cells(pair) * contrast.draws for pair, contrast in both), 0

    def done(more: int) -> None:
        nonlocal reached
        reached += more
        progress(reached, total)

    for number, (pair, contrast) in enumerate(both):
        unedited = {"restoration": numbers[number].corrupt, "disruption": numbers[number].clean}
        options = {"engine": job.choice.engine, "budget": job.options.budget, "done": done}
        yield measure_units(Scoring(job.model, {number: pair}), pair, contrast, sweep, number, unedited, **options)


def _share(progress: Progress | None, part: int, parts: int) -> Progress:
    """Progress of one part of the work, told as progress of the whole."""

    def report(done: int, total: int) -> None:
        if progress:
            progress(round(1000 * (part + done / max(1, total)) / parts), 1000)

    return report


def _spot_checks(job: Job, picked: Sequence[Picked]) -> dict[str, float | int | None]:
    """Cells run again on replay, alone (with their own draws) and unpruned, against what the trace says."""
    if not picked:
        return {"cells": 0, "largest_difference": None}
    worlds = [world for one in picked for world in one.worlds]
    scoring = Scoring(job.model, {number: job.pairs[number] for number in sorted({world.pair for world in worlds})})
    metric = METRICS.index(job.metric)
    draws = max(contrast.draws for contrast in job.contrasts)
    alone = iter(scoring.evaluate(worlds, engine="replay", prune=False, rows=draws).values[:, metric])
    differences = [abs(float(np.mean([next(alone) for _ in one.worlds])) - one.told[metric]) for one in picked]
    return {"cells": len(differences), "largest_difference": float(max(differences))}


def _picked(job: Job, numbers: Sequence[PairNumbers], units: Mapping[str, Sequence[xr.Dataset]]) -> Iterator[Picked]:
    """Random cells of every table, with the numbers that the trace has for them.

    A cell of several worlds (a role of several tokens, draws of noise) is their mean.
    """
    random, count = np.random.default_rng(job.options.seed), job.options.spot_checks
    arms = [arm for arm in job.sweep.arms if not arm.endswith("_sum")]
    for number, times in sorted(Counter(random.integers(len(job.pairs), size=count).tolist()).items()):
        found = list(cells(job.pairs[number], job.contrasts[number], job.sweep, number, arms))
        for one in (found[random.integers(len(found))] for _ in range(times if found else 0)):
            same = [cell.world for cell in found if (cell.arm, cell.at) == (one.arm, one.at)]
            yield Picked(worlds=same, told=numbers[number].patched[one.arm][(slice(None), *one.at)])
    for name, tables in units.items():
        number = int(random.integers(len(job.pairs)))
        pair, contrast = job.pairs[number], job.contrasts[number]
        yield from picked_units(pair, contrast, job.units[name], number, tables[number], count, random)
