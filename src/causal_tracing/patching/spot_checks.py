"""A few cells run again another way: on the plain backend, each whole and unpruned, all of them in one batch.

Random ones, and the one whose tokens lay furthest back in the longest call of a layer: there a layer that counts tokens
by the call is the most wrong.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from causal_tracing.interventions.edits import World
from causal_tracing.patching.arrays import Sums
from causal_tracing.patching.cells import Cell, worlds_of
from causal_tracing.patching.grid import At, Grid
from causal_tracing.patching.job import Job, undefined
from causal_tracing.patching.metrics.scoring import Scoring
from causal_tracing.results.arms import Arm
from causal_tracing.results.spot_checks import record_of

# Log-probabilities below are of words that the model never says: a bound in proportion to them would allow anything.
MASKED = -1e4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picked:
    """A cell that is to be run again: its worlds, and the numbers that are told of it, by metric."""

    worlds: Sequence[World]
    told: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Furthest:
    """The cell that came last in the longest call so far, and how many tokens that call had."""

    tokens: int
    grid: Grid
    number: int
    cell: Cell


class SpotChecks:
    """The random cells of a job, and what became of them. `pairs` says beforehand of which pairs they are."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.random = np.random.default_rng(job.options.seed)
        # Drawn before the work, so that what the model expects of the whole vocabulary is kept for these pairs alone.
        drawn = [self.random.integers(len(job.pairs), size=job.options.spot_checks).tolist() for _ in job.grids]
        self.drawn: Sequence[tuple[Grid, list[int]]] = list(zip(job.grids, drawn, strict=True))

    @cached_property
    def pairs(self) -> frozenset[int]:
        """The pairs whose random cells are checked."""
        return frozenset(number for _, numbers in self.drawn for number in numbers)

    def run(
        self,
        sums: Mapping[int, Mapping[str, Sums]],
        unedited: Mapping[int, np.ndarray],
        clean: Mapping[int, Float[Tensor, " vocab"]],
        furthest: Furthest | None = None,
    ) -> dict[str, Any]:
        """The cells run again, against what the trace says; `clean` is what the model expects after clean prompts.

        Cells of pairs for which the metric is undefined say nothing, and are left out.
        """
        job = self.job
        picked = [*self._picked(sums, unedited)]
        if furthest and job.options.spot_checks:
            at, of = furthest.cell.at, (furthest.number, furthest.grid, furthest.cell.arm)
            picked.append(self._again(*of, at, sums, unedited))
        cells = [one for one in picked if not undefined(job.metrics[0], job.pairs[one.worlds[0].pair])]
        if not cells:
            return record_of([])
        worlds = [world for one in cells for world in one.worlds]
        # By the metric that is shown alone: one number a cell tells whether it is the same.
        scoring = Scoring(job.plain, {number: job.pairs[number] for number in sorted(clean)}, clean, job.metrics[:1])
        again = iter(scoring.evaluate(worlds, prune=False).values[:, 0])
        with np.errstate(invalid="ignore"):
            apart = [abs(float(np.mean([next(again) for _ in one.worlds]) - one.told[0])) for one in cells]
        found = record_of(apart)
        return found | {"bound": self._bound(clean)}

    def _bound(self, clean: Mapping[int, Float[Tensor, " vocab"]]) -> float | None:
        """What rounding explains, in units of the metric; None of ranks, which the last bit of a logit can move by one.

        A logit is as large as log-probabilities are far apart; those that are masked are left out.
        """
        rounding = self.job.backend.describe().rounding
        if rounding is None or self.job.metric == "neg_rank":
            return None
        known = [expected[expected > MASKED] for expected in clean.values()]
        return rounding * max((float(each.abs().max()) for each in known if len(each)), default=0.0)

    def _picked(self, sums: Mapping[int, Mapping[str, Sums]], unedited: Mapping[int, np.ndarray]) -> Iterator[Picked]:
        """Random cells of every map (sums over a window's layers left out)."""
        random = self.random
        for grid, numbers in self.drawn:
            arms = [arm for arm in grid.arms if not arm.alone]
            for number in numbers:
                arm, mine = arms[random.integers(len(arms))], sums[number][grid.kind.name]
                there = np.argwhere(mine.measured(arm))
                if not len(there):
                    continue
                at = tuple(there[random.integers(len(there))].tolist())
                yield self._again(number, grid, arm, at, sums, unedited)

    def _again(
        self,
        number: int,
        grid: Grid,
        arm: Arm,
        at: At,
        sums: Mapping[int, Mapping[str, Sums]],
        unedited: Mapping[int, np.ndarray],
    ) -> Picked:
        """A cell with the numbers that the trace has; of several worlds (tokens of a role, draws) it is their mean."""
        draws = range(self.job.contrasts[number].draws)
        worlds = [world for draw in draws for world in worlds_of(self.job.question(number), grid, arm, draw, at)]
        return Picked(worlds=worlds, told=sums[number][grid.kind.name].told(arm, at, unedited[number]))
