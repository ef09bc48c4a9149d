"""From the engine's numbers to labelled arrays: each world's number goes to its cell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.metrics import METRICS, UNITS
from causal_tracing.previews import CHOICES, Preview
from causal_tracing.prompts import TokenPrompt
from causal_tracing.results import Measurements
from causal_tracing.scoring import Scoring
from causal_tracing.sweeps import Cell, Sweep

CELL = ("component", "layer", "position")
VARIABLES = {"restoration": "restored", "disruption": "disrupted"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairNumbers:
    """One pair's numbers: unedited [metric], patched by direction [metric, component, layer, position], and flags."""

    clean: np.ndarray
    corrupt: np.ndarray
    spread: np.ndarray
    patched: Mapping[str, np.ndarray]
    structural_zero: np.ndarray
    cut: np.ndarray
    unpaired: np.ndarray
    worlds: int
    worlds_run: int


def collect(
    scoring: Scoring,
    sweep: Sweep,
    cells: Sequence[Cell],
    *,
    values: np.ndarray,
    structural_zero: np.ndarray,
    spread: np.ndarray,
    worlds_run: int,
) -> PairNumbers:
    """One pair's numbers from its worlds' values: the clean run's, the corrupt run's, then its cells'.

    A cell of several worlds (a role of several tokens) is their mean.
    """
    shape = (len(sweep.components), len(sweep.layers), len(sweep.columns))
    sums = {direction: np.zeros((len(METRICS), *shape)) for direction in sweep.directions}
    counts, zeros, cuts = (np.zeros(shape, dtype=int) for _ in range(3))
    for cell, value, zero in zip(cells, values[2:], structural_zero[2:], strict=True):
        at = cell.at
        sums[cell.direction][(slice(None), *at)] += value
        if cell.direction == sweep.directions[0]:
            counts[at] += 1
            zeros[at] += zero
            cuts[at] += scoring.is_cut(cell.world)
    with np.errstate(invalid="ignore"):
        patched = {direction: total / np.where(counts, counts, np.nan) for direction, total in sums.items()}
    return PairNumbers(
        clean=values[0],
        corrupt=values[1],
        spread=spread,
        patched=patched,
        structural_zero=(counts > 0) & (zeros == counts),
        cut=(cuts > 0) & (zeros < counts),
        unpaired=counts == 0,
        worlds=len(values),
        worlds_run=worlds_run,
    )


def assemble(
    previews: Sequence[Preview],
    sweep: Sweep,
    numbers: Sequence[PairNumbers],
    *,
    metric: str,
    provenance: Mapping[str, Any],
) -> Measurements:
    """All pairs' numbers as Measurements, with the shown metric first."""
    order = [METRICS.index(metric), *(n for n, name in enumerate(METRICS) if name != metric)]

    def by_metric(arrays: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack(arrays, axis=1)[order]

    variables: dict[str, Any] = {
        name: (("metric", "pair"), by_metric([getattr(pair, name) for pair in numbers]))
        for name in ("clean", "corrupt", "spread")
    }
    for direction in sweep.directions:
        patched = by_metric([pair.patched[direction] for pair in numbers])
        variables[VARIABLES[direction]] = (("metric", "pair", *CELL), patched)
    for name in ("structural_zero", "cut", "unpaired"):
        variables[name] = (("pair", *CELL), np.stack([getattr(pair, name) for pair in numbers]))
    coordinates = {
        "metric": _texts([METRICS[n] for n in order]),
        "unit": (("metric",), _texts([UNITS[METRICS[n]] for n in order])),
        "pair": _texts([preview.pair.id for preview in previews]),
        "component": _texts(sweep.components),
        "layer": list(sweep.layers),
        "position": _columns(sweep),
    }
    return Measurements(data=xr.Dataset(variables | _prompts(previews), coordinates), provenance=provenance)


def _columns(sweep: Sweep) -> np.ndarray:
    if all(isinstance(column, int) for column in sweep.columns):
        return np.array(sweep.columns)
    return _texts([str(column) for column in sweep.columns])


def _prompts(previews: Sequence[Preview]) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Tokens, roles, prompts and first choices of each pair."""
    length = max(len(preview.pair.clean.tokens) for preview in previews)
    found: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    for name in ("clean", "corrupt"):
        prompts: list[TokenPrompt] = [getattr(preview.pair, name) for preview in previews]
        tops = [getattr(preview, f"{name}_top") for preview in previews]
        found[f"{name}_length"] = (("pair",), np.array([len(prompt.tokens) for prompt in prompts]))
        found[f"{name}_prompt"] = (("pair",), _texts([prompt.text for prompt in prompts]))
        found[f"{name}_token"] = (("pair", "token"), _padded([prompt.strings for prompt in prompts], length))
        found[f"{name}_role"] = (("pair", "token"), _padded([prompt.roles for prompt in prompts], length))
        found[f"{name}_top"] = (("pair", "rank"), _padded([[c.token for c in top] for top in tops], CHOICES))
        probs = [[choice.prob for choice in top] + [np.nan] * (CHOICES - len(top)) for top in tops]
        found[f"{name}_top_prob"] = (("pair", "rank"), np.array(probs))
    found["answer_length"] = (("pair",), np.array([len(preview.pair.answer_tokens) for preview in previews]))
    found["answer"] = (("pair",), _texts([preview.pair.pair.answer for preview in previews]))
    found["foil"] = (("pair",), _texts([preview.pair.pair.foil or "" for preview in previews]))
    return found


def _padded(rows: Sequence[Sequence[str]], length: int) -> np.ndarray:
    return np.array([[*row, *[""] * (length - len(row))] for row in rows], dtype=object)


def _texts(values: Sequence[str]) -> np.ndarray:
    return np.array(values, dtype=object)
