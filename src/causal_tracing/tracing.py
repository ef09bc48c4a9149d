"""The main job, on one page.

1. Tokens: each pair becomes token ids, spans and answers; what the model makes of both prompts is noted.
2. Worlds: every cell of the map becomes a base run with edits (`sweeps.py`).
3. Numbers: the engine runs what can matter, and measures every metric from the same logits.
4. Repeats: the unedited runs again in other batches (the spread), and a few random cells alone (the spot checks).
5. Measurements: arrays with names, and where they came from (`assembly.py`).
"""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.assembly import PairNumbers, assemble, collect
from causal_tracing.engine.agreement import choose
from causal_tracing.errors import EngineNote, InvalidOption, nearest
from causal_tracing.estimates import Estimate, estimate_sweep
from causal_tracing.metrics import METRICS
from causal_tracing.model import Model, require_model
from causal_tracing.previews import preview_tokens
from causal_tracing.prompts import Pair, TokenPair, tokenize_pairs
from causal_tracing.provenance import provenance
from causal_tracing.scoring import Scoring
from causal_tracing.sweeps import DIRECTIONS, Column, Sweep, cells, plan_sweep, worlds_of
from causal_tracing.traces import Trace
from causal_tracing.units import Neurons, Picked, UnitSweep, measure_units, picked_units, plan_units, unit_table

COMPONENTS = ("resid_post", "attn_out", "mlp_out")
ENGINES = ("auto", "packed", "replay")
PAIRS_AT_ONCE = 8  # bounds the memory that donors and worlds take, however many pairs there are


def trace(
    model: Model,
    pairs: Pair | Sequence[Pair],
    *,
    components: Sequence[str] = COMPONENTS,
    layers: Sequence[int] | None = None,
    positions: str | Sequence[Column] = "each",
    metric: str | None = None,
    directions: Sequence[str] = DIRECTIONS,
    align: str = "strict",
    heads: bool | Sequence[str] = False,
    head_positions: str | Sequence[Column] = "each",
    neurons: Neurons = False,
    neuron_positions: str | Sequence[Column] = ("last",),
    engine: str = "auto",
    budget: int | None = None,
    seed: int = 0,
    spot_checks: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> Trace:
    """How much of each pair's behaviour comes back, and how much is lost, at every component, layer and position.

    `positions` is "each", "together" (all at once: one world a layer), or a list of positions and roles (a role with
    several tokens is their mean). `metric` is shown first; all are measured (default: logit_diff, or log_prob where
    a pair has no foil). `heads` adds maps of single heads: True for their outputs z, or names of q, k, v, pattern, z;
    `neurons` of single neurons: True for all of the layers, or a mapping from layer to neurons; both at positions of
    their own. `budget` is in bytes a batch. Raises InputError (pairs, options), ModelError, MachineError.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    require_model(model)
    _check_options(metric, engine, budget, spot_checks)
    pairs = [pairs] if isinstance(pairs, Pair) else list(pairs)
    tokens = tokenize_pairs(pairs, model.tokenizer, align=align)
    sweep = plan_sweep(model, tokens, components=components, layers=layers, positions=positions, directions=directions)
    model, unit_sweeps = plan_units(
        model,
        tokens,
        heads=heads,
        head_positions=head_positions,
        neurons=neurons,
        neuron_positions=neuron_positions,
        layers=layers,
        directions=sweep.directions,
    )
    mediators = [name for units in unit_sweeps.values() for name in units.components]
    chosen = choose(model, [*sweep.components, *mediators], engine)
    if chosen.note:
        warnings.warn(chosen.note, EngineNote, stacklevel=2)
    previews = preview_tokens(model, tokens)
    common = {"engine": chosen.engine, "budget": budget}
    parts = 1 + len(unit_sweeps)
    numbers = list(_numbers(model, tokens, sweep, **common, progress=_share(progress, 0, parts)))
    units = {
        name: list(_unit_numbers(model, tokens, asked, numbers, **common, progress=_share(progress, part, parts)))
        for part, (name, asked) in enumerate(unit_sweeps.items(), start=1)
    }
    random = np.random.default_rng(seed)
    by_sweep = [(asked, units[name]) for name, asked in unit_sweeps.items()]
    picked = list(_picked(tokens, sweep, numbers, by_sweep, spot_checks, random))
    first = metric or ("logit_diff" if all(pair.foil is not None for pair in tokens) else "log_prob")
    measurements = assemble(
        previews,
        sweep,
        numbers,
        metric=first,
        provenance=provenance(
            model,
            tokens,
            options={
                "components": list(sweep.components),
                "layers": list(sweep.layers),
                "positions": positions if isinstance(positions, str) else list(positions),
                "metric": metric,
                "directions": list(sweep.directions),
                "align": align,
                **_unit_options(heads, head_positions, neurons, neuron_positions),
                "engine": engine,
                "budget": budget,
                "seed": seed,
                "spot_checks": spot_checks,
            },
            engine=chosen,
            started=started,
            seconds=time.perf_counter() - clock,
            worlds=sum(pair.worlds for pair in numbers) + _sum(units, "worlds"),
            worlds_run=sum(pair.worlds_run for pair in numbers) + _sum(units, "worlds_run"),
            spot_checks=_spot_checks(model, tokens, picked, METRICS.index(first)),
        ),
    )
    metrics = measurements.data.metric.values.tolist()
    tables = {name: unit_table(model, unit_sweeps[name], tokens, found, metrics) for name, found in units.items()}
    return Trace(replace(measurements, **tables))


def estimate(
    model: Model,
    pairs: Pair | Sequence[Pair],
    *,
    components: Sequence[str] = COMPONENTS,
    layers: Sequence[int] | None = None,
    positions: str | Sequence[Column] = "each",
    directions: Sequence[str] = DIRECTIONS,
    align: str = "strict",
    heads: bool | Sequence[str] = False,
    head_positions: str | Sequence[Column] = "each",
    neurons: Neurons = False,
    neuron_positions: str | Sequence[Column] = ("last",),
    engine: str = "auto",
    budget: int | None = None,
) -> Estimate:
    """What `trace` with these options would take: worlds, token-layers, memory, a guess at the time. Traces nothing.

    Raises what `trace` raises for these options.
    """
    require_model(model)
    _check_options(None, engine, budget, 0)
    tokens = tokenize_pairs([pairs] if isinstance(pairs, Pair) else list(pairs), model.tokenizer, align=align)
    sweep = plan_sweep(model, tokens, components=components, layers=layers, positions=positions, directions=directions)
    model, units = plan_units(
        model,
        tokens,
        heads=heads,
        head_positions=head_positions,
        neurons=neurons,
        neuron_positions=neuron_positions,
        layers=layers,
        directions=sweep.directions,
    )
    named = [*sweep.components, *(name for each in units.values() for name in each.components)]
    return estimate_sweep(model, tokens, sweep, units.values(), choose(model, named, engine), budget)


def _check_options(metric: str | None, engine: str, budget: int | None, spot_checks: int) -> None:
    ranked = [name for name in METRICS if name != "entropy"]
    if metric is not None and metric not in ranked:
        raise InvalidOption(f"There is no metric {metric!r} to trace by. {nearest(str(metric), ranked)}")
    if engine not in ENGINES:
        raise InvalidOption(f"There is no engine {engine!r}. {nearest(str(engine), ENGINES)}")
    if budget is not None and budget <= 0:
        raise InvalidOption(f"budget= is in bytes and must be positive; it is {budget}.")
    if spot_checks < 0:
        raise InvalidOption(f"spot_checks= is a number of cells, 0 or more; it is {spot_checks}.")


def _numbers(
    model: Model,
    pairs: Sequence[TokenPair],
    sweep: Sweep,
    *,
    engine: str,
    budget: int | None,
    progress: Callable[[int, int], None],
) -> Iterator[PairNumbers]:
    """Each pair's numbers, a few pairs at a time."""
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        chunk = range(start, min(start + PAIRS_AT_ONCE, len(pairs)))
        scoring = Scoring(model, {number: pairs[number] for number in chunk})
        asked = {number: worlds_of(pairs[number], sweep, number) for number in chunk}
        worlds = [world for unedited, found in asked.values() for world in (*unedited, *(cell.world for cell in found))]

        def report(done: int, total: int, first: int = start, size: int = len(chunk)) -> None:
            progress(round(1000 * (first + size * done / total)), 1000 * len(pairs))

        result = scoring.evaluate(worlds, engine=engine, budget=budget, progress=report)
        repeats = scoring.spread([world for unedited, _ in asked.values() for world in unedited])
        reached = 0
        for place, (number, (unedited, found)) in enumerate(asked.items()):
            mine = slice(reached, reached + len(unedited) + len(found))
            reached = mine.stop
            yield collect(
                scoring,
                sweep,
                found,
                values=result.values[mine],
                structural_zero=result.structural_zero[mine],
                spread=repeats[2 * place : 2 * place + 2].max(0),
                worlds_run=result.worlds_run if number == start else 0,
            )


def _unit_numbers(
    model: Model,
    pairs: Sequence[TokenPair],
    sweep: UnitSweep,
    numbers: Sequence[PairNumbers],
    *,
    engine: str,
    budget: int | None,
    progress: Callable[[int, int], None],
) -> Iterator[xr.Dataset]:
    """Each pair's heads or neurons."""
    total, cells = sum(sweep.cells(pair) for pair in pairs), 0

    def done(more: int) -> None:
        nonlocal cells
        cells += more
        progress(cells, total)

    for number, pair in enumerate(pairs):
        unedited = {"restoration": numbers[number].corrupt, "disruption": numbers[number].clean}
        scoring = Scoring(model, {number: pair})
        yield measure_units(scoring, pair, sweep, number, unedited, engine=engine, budget=budget, done=done)


def _share(progress: Callable[[int, int], None] | None, part: int, parts: int) -> Callable[[int, int], None]:
    """Progress of one part of the work, told as progress of the whole."""

    def report(done: int, total: int) -> None:
        if progress:
            progress(round(1000 * (part + done / max(1, total)) / parts), 1000)

    return report


def _sum(units: Mapping[str, Sequence[xr.Dataset]], name: str) -> int:
    return sum(found.attrs[name] for each in units.values() for found in each)


def _unit_options(
    heads: bool | Sequence[str],
    head_positions: str | Sequence[Column],
    neurons: Neurons,
    neuron_positions: str | Sequence[Column],
) -> dict[str, Any]:
    """The options of heads and neurons as JSON holds them, where they were asked for."""
    options: dict[str, Any] = {}
    if heads:
        options["heads"] = ["z"] if heads is True else list(heads)
        options["head_positions"] = head_positions if isinstance(head_positions, str) else list(head_positions)
    if neurons:
        mapped = {str(layer): list(listed) for layer, listed in neurons.items()} if neurons is not True else True  # type: ignore[union-attr]
        options["neurons"] = mapped
        options["neuron_positions"] = neuron_positions if isinstance(neuron_positions, str) else list(neuron_positions)
    return options


def _spot_checks(
    model: Model, pairs: Sequence[TokenPair], picked: Sequence[Picked], metric: int
) -> dict[str, float | int | None]:
    """Cells run again on replay, alone and unpruned, against what the trace says: the largest difference."""
    if not picked:
        return {"cells": 0, "largest_difference": None}
    worlds = [world for one in picked for world in one.worlds]
    scoring = Scoring(model, {number: pairs[number] for number in sorted({world.pair for world in worlds})})
    alone = iter(scoring.evaluate(worlds, engine="replay", prune=False, rows=1).values[:, metric])
    differences = [abs(float(np.mean([next(alone) for _ in one.worlds])) - one.told[metric]) for one in picked]
    return {"cells": len(differences), "largest_difference": float(max(differences))}


def _picked(
    pairs: Sequence[TokenPair],
    sweep: Sweep,
    numbers: Sequence[PairNumbers],
    units: Sequence[tuple[UnitSweep, Sequence[xr.Dataset]]],
    count: int,
    random: np.random.Generator,
) -> Iterator[Picked]:
    """Random cells of every table, with the numbers that the trace has for them.

    A cell of several worlds (a role of several tokens) is their mean.
    """
    for number in sorted(random.integers(len(pairs), size=count).tolist()):
        found = list(cells(pairs[number], sweep, number))
        if found:
            one = found[random.integers(len(found))]
            same = [cell.world for cell in found if (cell.direction, cell.at) == (one.direction, one.at)]
            yield Picked(worlds=same, told=numbers[number].patched[one.direction][(slice(None), *one.at)])
    for asked, tables in units:
        number = int(random.integers(len(pairs)))
        yield from picked_units(pairs[number], asked, number, tables[number], count, random)
