"""What the page is told of measurements: numbers to draw, words, and what to copy. Needs no torch.

1. `first_look`: a map in which nothing is computed yet, but the runs that are not edited.
2. `new_cells`: what has been added to it.
3. `whole_view`: everything, once all is measured.
4. `strongest_parts`, `paths_from`: what is inside a cell.
"""

import re
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.report.page.maps import map_data
from causal_tracing.report.page.matrices import matrix_data
from causal_tracing.report.page.mean_story import mean_of
from causal_tracing.report.page.page import MOST_PAIRS, page_data, provenance_text, site_cells
from causal_tracing.report.page.sections import behind, drawn_form
from causal_tracing.report.page.text import metrics_with_effects, rounded, visible
from causal_tracing.report.words.one_pair import Reading, read
from causal_tracing.results.columns import columns_of, is_token
from causal_tracing.results.effects import STATUSES, effects
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.site_kinds import PATHS

NOT_YET, WAITING = "not_computed_yet", "w"  # as a status, and its letter
MOST_IN_WORDS = 20  # pairs
Place = tuple[int, ...]
_AXES = ("component", "layer", "position")


def first_look(measurements: Measurements) -> dict[str, Any]:
    """One pair's page before its cells are there: labels, the unedited runs' numbers, and the scale of the colours.

    The scale is the total effect, which is known before any cell is: no cell changes its colour while others come.
    """
    pair = str(measurements.pairs.pair.values[0])
    data = map_data(measurements, [pair])
    statuses = [*STATUSES, NOT_YET]
    unpaired = {n for n, each in enumerate(columns_of(measurements.maps["blocks"])) if _is_unpaired(measurements, each)}
    for numbers in data["pairs"][0]["metrics"].values():
        numbers["scale"] = abs(numbers["total"]) if numbers["total"] else None
        for name in measurements.directions:
            numbers[name] = {part: _emptied(values) for part, values in numbers[name].items()}
        coded = [STATUSES.index("unpaired") if n in unpaired else len(STATUSES) for n in range(_positions(data))]
        numbers["status"] = {name: [coded] * len(data["layers"]) for name in data["components"]}
    return data | {"statuses": statuses, "filling": True, "parts": []}


def new_cells(measurements: Measurements, new: tuple[Place, ...]) -> dict[str, Any]:
    """Cells that have just been computed, as [component, layer, position, {metric: [status, an effect each]}].

    A cell that was computed in one direction alone has no number in the other one yet.
    """
    metrics, directions = metrics_with_effects(measurements.pairs), list(measurements.directions)
    found = effects(measurements, "blocks", metrics=metrics).squeeze("pair").transpose("metric", *_AXES, ...)
    numbers = {name: found[name].values for name in directions}
    status = found.status.values
    cells = []
    for at in new:
        told: dict[str, Any] = {}
        for n, metric in enumerate(metrics):
            here = [rounded(float(numbers[name][(n, *at)])) for name in directions]
            # What has not come yet is NaN too, and would be taken for a cell that failed.
            waits = any(each is None for each in here) and len(directions) > 1 and not all(e is None for e in here)
            known = status[(n, *at)]  # that a cell cannot matter, or is a cut, is known of it from the start
            told[metric] = [len(STATUSES) if waits and known == "failed" else STATUSES.index(known), *here]
        cells.append([*at, told])
    return {"directions": directions, "cells": cells}


def whole_view(measurements: Measurements) -> dict[str, Any]:
    """All that the page shows of a finished trace: numbers, words of its first pairs, and where it came from."""
    shown = [str(pair) for pair in measurements.pairs.pair.values[:MOST_PAIRS]]
    mean = mean_of(measurements, shown)
    readings = [read(measurements, pair=pair) for pair in shown[:MOST_IN_WORDS]]
    kinds = behind(measurements)
    data = page_data(measurements, [kind for kind in kinds if drawn_form(kind)], shown, mean)
    for pair in data["pairs"]:
        for numbers in pair["metrics"].values():
            numbers["scale"] = abs(numbers["total"]) if len(shown) == 1 and numbers["total"] else None
    return {
        "data": data,
        "elsewhere": [kind.name.replace("_", " ") for kind in kinds if not drawn_form(kind)],
        "words": [_words(measurements, reading) for reading in readings],
        "how_to_read": list(readings[0].how_to_read),
        "provenance": provenance_text(measurements),
    }


def strongest_parts(measurements: Measurements, kind: str, count: int | None) -> dict[str, Any]:
    """Parts of one layer at one position: all in their order, or the strongest by either direction.

    Rows are [part, share of the total effect each, an effect each]; those that are not computed yet are left out.
    """
    metric = measurements.metric
    found = effects(measurements, kind, metrics=[metric]).squeeze(["pair", "metric", "component", "layer", "position"])
    directions = list(measurements.directions)
    numbers = np.stack([found[name].values for name in directions], axis=1)
    there = np.flatnonzero(np.isfinite(numbers).all(1))
    if count is not None:
        there = there[np.argsort(-abs(numbers[there]).max(1), kind="stable")][:count]
    total = float(found.total_effect)
    scored = not found.fraction_reason.item() and np.isfinite(total)
    whole = total if scored else None
    rows = [
        [int(part), *(rounded(float(each)) for each in numbers[part]), *_shares(numbers[part], whole)] for part in there
    ]
    return {
        "metric": metric,
        "unit": str(found.unit.item()),
        "directions": directions,
        "scale": rounded(abs(total)) or None,
        "rows": rows,
        "measured": int(np.isfinite(numbers).all(1).sum()),
    }


def paths_from(measurements: Measurements, *, filling: bool) -> dict[str, Any]:
    """Paths of one pair's senders, as the report's matrix and graph are drawn from.

    While it is filling, what has no number is not computed yet.
    """
    found = matrix_data(measurements, PATHS, measurements.pairs.pair.values.tolist())
    for numbers in found["pairs"][0]["metrics"].values() if filling else ():
        numbers["status"] = [re.sub("[uf]", WAITING, row) for row in numbers["status"]]
    return found | {"filling": filling}


def _shares(effects_of: np.ndarray, total: float | None) -> list[float | None]:
    return [None if total is None else round(float(each / total), 6) for each in effects_of]


def _positions(data: dict[str, Any]) -> int:
    return len(data["pairs"][0]["rows"])


def _emptied(values: list[list[Any]]) -> list[list[None]]:
    return [[None] * len(row) for row in values]


def _is_unpaired(measurements: Measurements, column: Any) -> bool:
    return is_token(column) and int(measurements.pairs.corrupt_position.values[0, column]) < 0


def _words(measurements: Measurements, reading: Reading) -> dict[str, Any]:
    """A reading as plain texts, nothing hidden in them."""
    data = measurements.pairs.sel(pair=reading.pair)
    unit = data.unit.sel(metric=measurements.metric).item()
    noised = bool(measurements.provenance.get("noise"))
    sides = (("clean", "clean"), ("corrupt", "with noise" if noised else "corrupt"))
    return {
        "pair": reading.pair,
        "sides": [[visible(side.prompt), visible(side.follows)] for side in reading.sides],
        "sentences": [visible(each) for each in reading.sentences] or ["No effect could be measured."],
        "total": f"{reading.total} · {reading.run}",
        "warnings": [visible(each) for each in reading.warnings],
        "caveats": list(reading.caveats),
        "unit": unit,
        "sites": [site_cells(row) for row in reading.sites],
        "choices": [[called, *_choices(data, name)] for name, called in sides],
    }


def _choices(data: xr.Dataset, name: str) -> list[Any]:
    both = zip(data[f"{name}_top"].values, data[f"{name}_top_prob"].values, strict=True)
    prompt = visible(str(data[f"{name}_prompt"].item()))
    return [prompt, [[visible(repr(str(token))), f"{prob:.2f}"] for token, prob in both if not np.isnan(prob)]]
