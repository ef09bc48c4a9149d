"""What a page says of a cell by the logit lens: what both runs would say behind its layer, at its token.

Numbers are rounded here, to what the page writes of them: whoever rounds a rounded number says 0.26 of 0.2546.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.prompts.tokens import Column
from causal_tracing.report.page.text import rounded, visible
from causal_tracing.results.columns import is_token
from causal_tracing.results.lens import RUNS, lens_of, mean_lens
from causal_tracing.results.means import NoMean
from causal_tracing.results.measurements import Measurements

TOLD = {"top_prob": ".2f", "answer_prob": ".2g", "logit_diff": ".3g"}  # as the page writes them
Cells = dict[str, list[list[list[Any] | None]]]


def lens_cells(measurements: Measurements, pair: str, columns: Sequence[Column], layers: Sequence[int]) -> Cells:
    """Of each run and cell [layer][column] the first choice, its probability, p(answer), and answer minus foil.

    Null where the column is no single token of the run, or the layer was not read.
    """
    lens, data = lens_of(measurements).sel(pair=pair), measurements.pairs.sel(pair=pair)
    found: Cells = {}
    for run in RUNS:
        tokens, here = [_token(data, run, column) for column in columns], lens.sel(run=run)
        tops = [[visible(repr(text)) if text else "" for text in row] for row in here.top.values.tolist()]
        found[run] = _laid_out(here, tops, layers, tokens)
    return found


def mean_lens_cells(measurements: Measurements, columns: Sequence[Column], layers: Sequence[int]) -> Cells:
    """The same of the means over pairs, which have no first choices; nothing where there are no means."""
    try:
        means = mean_lens(measurements)
    except NoMean:
        return {}
    known = means.position.values.tolist()
    places = [known.index(column) if column in known else None for column in columns]
    none = [[""] * len(known)] * means.sizes["layer"]
    return {run: _laid_out(means.sel(run=run), none, layers, places) for run in RUNS}


def _laid_out(
    here: xr.Dataset, tops: list[list[str]], layers: Sequence[int], places: Sequence[int | None]
) -> list[list[list[Any] | None]]:
    """One run's cells, at these places of its tokens or columns."""
    read = here.layer.values.tolist()
    nothing = np.full_like(here.answer_prob.values, np.nan)
    numbers = [(here[name].values if name in here else nothing, digits) for name, digits in TOLD.items()]

    def cell(layer: int, place: int | None) -> list[Any] | None:
        if place is None or layer not in read:
            return None
        at = read.index(layer), place
        return [tops[at[0]][place], *(rounded(float(format(each[at], digits))) for each, digits in numbers)]

    return [[cell(layer, place) for place in places] for layer in layers]


def _token(data: xr.Dataset, run: str, column: Column) -> int | None:
    """The run's token that a column is: the one that the clean token is paired with, or the only one of its role."""
    if is_token(column):
        there = column if run == "clean" else int(data.corrupt_position.values[column])
        return there if there >= 0 else None
    found = np.flatnonzero(data[f"{run}_role"].values == column)
    return int(found[0]) if len(found) == 1 else None
