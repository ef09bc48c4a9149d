"""Numbers on their way into a map: the spread over draws is that of the effect, whichever run is patched."""

import numpy as np
import pytest

from causal_tracing.interventions.edits import Run, World
from causal_tracing.patching.arrays import Sums
from causal_tracing.patching.cells import Cell
from causal_tracing.patching.grid import Grid
from causal_tracing.results.arms import DISRUPTION, RESTORATION, Arm
from causal_tracing.results.site_kinds import BLOCKS

CLEAN, CORRUPT = [5.0], [[1.0], [2.0], [4.0]]  # of one metric: a clean run, and three draws of noise


def deviation(arm: Arm, patched: list[float], corrupt: list[list[float]]) -> float:
    """The spread that a map of one cell tells, where the patched runs of three draws have these numbers."""
    grid = Grid(kind=BLOCKS, components=("mlp_out",), layers=(0,), columns=(0,), arms=(arm,))
    sums = Sums(grid, len(patched), ["logit_diff"])
    for draw, value in enumerate(patched):
        cell = Cell(arm=arm, draw=draw, at=(0, 0, 0), world=World(Run((0,)), (), (0,)))
        sums.add(cell, np.array([value]), zero=False, cut=False)
    return sums.map(np.array([CLEAN, *corrupt]))[f"{arm.raw}_deviation"].item()


@pytest.mark.parametrize(
    ("arm", "patched", "expected"),
    [
        (RESTORATION, [2.0, 3.0, 5.0], 0.0),  # one above each noised run
        (RESTORATION, [3.0, 3.0, 3.0], np.std([2.0, 1.0, -1.0], ddof=1)),
        (DISRUPTION, [3.0, 3.0, 3.0], 0.0),  # the clean run is patched, which no noise moves
        (DISRUPTION, [3.0, 2.0, 4.0], 1.0),
    ],
)
def test_it_is_told_against_the_run_that_is_patched(arm: Arm, patched: list[float], expected: float) -> None:
    assert deviation(arm, patched, CORRUPT) == pytest.approx(expected)


def test_draws_of_the_clean_run_need_no_other() -> None:
    assert deviation(DISRUPTION, [3.0, 2.0, 4.0], []) == pytest.approx(1.0)
