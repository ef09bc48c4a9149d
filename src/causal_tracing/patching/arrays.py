"""From the engine's numbers to labelled arrays: each world's number goes to its cell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.patching.grid import Cell, Sweep
from causal_tracing.patching.metrics import METRICS, UNITS
from causal_tracing.patching.preview import CHOICES, Preview
from causal_tracing.patching.scoring import Scoring
from causal_tracing.prompts.pairs import TokenPair
from causal_tracing.prompts.tokens import TokenPrompt
from causal_tracing.results.measurements import Measurements

CELL = ("component", "layer", "position")
# How the numbers of each arm are called: what the metric is in the patched runs.
VARIABLES = {
    "restoration": "restored",
    "disruption": "disrupted",
    "restoration_sum": "restored_sum",
    "disruption_sum": "disrupted_sum",
    "severed_attn_out": "restored_severed_attn_out",
    "severed_mlp_out": "restored_severed_mlp_out",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairNumbers:
    """One pair's numbers: unedited [metric], patched by arm [metric, component, layer, position], and flags.

    Over draws they are means; `deviation` is the effects' standard deviation over draws (empty for a single one), and
    `corrupt_deviation` that of the corrupt runs, and so of the total effect (NaN for a single one).
    """

    clean: np.ndarray
    corrupt: np.ndarray
    corrupt_deviation: np.ndarray
    spread: np.ndarray
    patched: Mapping[str, np.ndarray]
    deviation: Mapping[str, np.ndarray]
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
    draws: int,
    values: np.ndarray,
    structural_zero: np.ndarray,
    spread: np.ndarray,
    worlds_run: int,
) -> PairNumbers:
    """One pair's numbers from its worlds' values: the clean run's, the corrupt runs', then its cells'.

    A cell of several worlds (a role of several tokens) is their mean; where noise corrupts, or donors are drawn,
    every draw has one.
    """
    unedited = len(values) - len(cells)
    corrupt = values[1:unedited].T  # [metric, draw], or one for all draws
    shape = (len(sweep.components), len(sweep.layers), len(sweep.columns))
    sums = {arm: np.zeros((len(METRICS), draws, *shape)) for arm in sweep.arms}
    taken = {arm: np.zeros((draws, *shape), dtype=int) for arm in sweep.arms}
    zeros, cuts = np.zeros(shape, dtype=int), np.zeros(shape, dtype=int)
    for cell, value, zero in zip(cells, values[unedited:], structural_zero[unedited:], strict=True):
        sums[cell.arm][(slice(None), cell.draw, *cell.at)] += value
        taken[cell.arm][(cell.draw, *cell.at)] += 1
        if cell.arm == sweep.arms[0]:
            zeros[cell.at] += zero
            cuts[cell.at] += scoring.is_cut(cell.world)
    drawn = {arm: _drawn(sweep, arm, sums[arm], taken[arm], values[0], corrupt) for arm in sweep.arms}
    counts = taken[sweep.arms[0]].sum(0)
    return PairNumbers(
        clean=values[0],
        corrupt=corrupt.mean(1),
        corrupt_deviation=_deviation(corrupt),
        spread=spread,
        patched={arm: found.mean(1) for arm, found in drawn.items()},
        deviation={arm: _deviation(found - _over(corrupt, found)) for arm, found in drawn.items() if draws > 1},
        structural_zero=(counts > 0) & (zeros == counts),
        cut=(cuts > 0) & (zeros < counts),
        unpaired=counts == 0,
        worlds=len(values),
        worlds_run=worlds_run,
    )


def _drawn(
    sweep: Sweep, arm: str, sums: np.ndarray, taken: np.ndarray, clean: np.ndarray, corrupt: np.ndarray
) -> np.ndarray:
    """The numbers of each draw [metric, draw, component, layer, position]; NaN where nothing was run.

    A sum over a window's layers is the base run's number and all that each of the layers adds to it alone.
    """
    found = sums / np.where(taken, taken, np.nan)
    if not arm.endswith("_sum"):
        return found
    base = _over(clean[:, None] if arm.startswith("disruption") else corrupt, found)
    layers = [[len(sweep.windows.layers(name, layer)) for layer in sweep.layers] for name in sweep.components]
    return base + np.array(layers)[..., None] * (found - base)


def _over(unedited: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Unedited numbers [metric, draw] as they go with [metric, draw, component, layer, position]."""
    return unedited.reshape(*unedited.shape, *[1] * (found.ndim - unedited.ndim))


def _deviation(drawn: np.ndarray) -> np.ndarray:
    """The standard deviation over draws (axis 1); NaN for a single draw."""
    return drawn.std(1, ddof=1) if drawn.shape[1] > 1 else np.full_like(drawn[:, 0], np.nan)


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
        for name in ("clean", "corrupt", "corrupt_deviation", "spread")
        if name != "corrupt_deviation" or all(np.isfinite(pair.corrupt_deviation).any() for pair in numbers)
    }
    for arm in sweep.arms:
        patched = by_metric([pair.patched[arm] for pair in numbers])
        variables[VARIABLES[arm]] = (("metric", "pair", *CELL), patched)
        if all(pair.deviation for pair in numbers):
            deviation = by_metric([pair.deviation[arm] for pair in numbers])
            variables[f"{VARIABLES[arm]}_deviation"] = (("metric", "pair", *CELL), deviation)
    variables |= _windows(sweep)
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


def _windows(sweep: Sweep) -> dict[str, Any]:
    """The first and the last layer of each cell's window; −1 where there is no whole one."""
    if not sweep.windows.wide:
        return {}
    around = [[sweep.windows.layers(name, layer) for layer in sweep.layers] for name in sweep.components]
    ends = np.array([[(layers[0], layers[-1]) if layers else (-1, -1) for layers in row] for row in around])
    return {
        "window_first": (("component", "layer"), ends[..., 0]),
        "window_last": (("component", "layer"), ends[..., 1]),
    }


def _columns(sweep: Sweep) -> np.ndarray:
    if all(isinstance(column, int) for column in sweep.columns):
        return np.array(sweep.columns)
    return _texts([str(column) for column in sweep.columns])


def _prompts(previews: Sequence[Preview]) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Tokens, roles, prompts and first choices of each pair."""
    pairs = [preview.pair for preview in previews]
    length = max(len(prompt.tokens) for pair in pairs for prompt in (pair.clean, pair.corrupt))
    found: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    for name in ("clean", "corrupt"):
        prompts: list[TokenPrompt] = [getattr(pair, name) for pair in pairs]
        tops = [getattr(preview, f"{name}_top") for preview in previews]
        found[f"{name}_length"] = (("pair",), np.array([len(prompt.tokens) for prompt in prompts]))
        found[f"{name}_prompt"] = (("pair",), _texts([_own(pair, name) for pair in pairs]))
        found[f"{name}_token"] = (("pair", "token"), _padded([prompt.strings for prompt in prompts], length))
        found[f"{name}_role"] = (("pair", "token"), _padded([prompt.roles for prompt in prompts], length))
        found[f"{name}_top"] = (("pair", "rank"), _padded([[c.token for c in top] for top in tops], CHOICES))
        probs = [[choice.prob for choice in top] + [np.nan] * (CHOICES - len(top)) for top in tops]
        found[f"{name}_top_prob"] = (("pair", "rank"), np.array(probs))
    found["corrupt_position"] = (("pair", "token"), _paired_with(pairs, length))
    found["answer_length"] = (("pair",), np.array([len(pair.answer_tokens) for pair in pairs]))
    found["answer"] = (("pair",), _texts([pair.pair.answer for pair in pairs]))
    found["foil"] = (("pair",), _texts([pair.pair.foil or "" for pair in pairs]))
    return found


def _own(pair: TokenPair, name: str) -> str:
    """A prompt as the user wrote it, without a chat template; noise corrupts the clean one."""
    return getattr(pair.pair, name) or pair.pair.clean


def _paired_with(pairs: Sequence[TokenPair], length: int) -> np.ndarray:
    """The corrupt prompt's position that each position of the clean one is paired with; −1 for none."""
    found = np.full((len(pairs), length), -1)
    for row, pair in zip(found, pairs, strict=True):
        for here, there in pair.slots:
            row[here] = there
    return found


def _padded(rows: Sequence[Sequence[str]], length: int) -> np.ndarray:
    return np.array([[*row, *[""] * (length - len(row))] for row in rows], dtype=object)


def _texts(values: Sequence[str]) -> np.ndarray:
    return np.array(values, dtype=object)
