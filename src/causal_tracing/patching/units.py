"""Heads and neurons of a pair: every cell of their maps, run and put into arrays.

A cell is (direction, component, layer, unit, column); a unit is a head of q, k, v, pattern or z, or a neuron. There
may be tens of thousands of cells, so they are made, run and forgotten some thousands at a time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing import validation
from causal_tracing.engine.checks.check import prove
from causal_tracing.errors import InvalidOption
from causal_tracing.interventions.edits import World
from causal_tracing.interventions.sites import HEADS
from causal_tracing.models.model import Model
from causal_tracing.patching.columns import Column, patched_together, resolved_columns
from causal_tracing.patching.contrast import Contrast
from causal_tracing.patching.grid import checked_layers, last_of, restores
from causal_tracing.patching.metrics import METRICS
from causal_tracing.patching.scoring import Scoring
from causal_tracing.prompts.pairs import TokenPair

AT_ONCE = 8192  # cells
RAW = {"restoration": "restored", "disruption": "disrupted"}

Neurons = bool | Mapping[int, Sequence[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSweep:
    """Which heads or neurons are patched: `units[component][layer]` lists them; columns as in a sweep of blocks.

    `unit` is "head" or "neuron"; `counts` says how many a layer has.
    """

    unit: str
    components: tuple[str, ...]
    layers: tuple[int, ...]
    units: Mapping[str, Mapping[int, Sequence[int]]]
    counts: Mapping[str, int]
    columns: tuple[Column, ...]
    directions: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of one direction's map: component, layer, unit, column."""
        return len(self.components), len(self.layers), max(self.counts.values()), len(self.columns)

    def cells(self, pair: TokenPair) -> int:
        """How many worlds the pair's maps take."""
        columns = sum(len(patched_together(pair, column)) for column in self.columns)
        units = sum(len(self.units[name][layer]) for name in self.components for layer in self.layers)
        return len(self.directions) * columns * units

    @property
    def dims(self) -> tuple[str, str, str, str]:
        """The axes' names, in that order."""
        return "component", "layer", self.unit, "position"


def plan_units(
    model: Model,
    pairs: Sequence[TokenPair],
    *,
    heads: bool | Sequence[str],
    head_positions: str | Sequence[Column],
    neurons: Neurons,
    neuron_positions: str | Sequence[Column],
    layers: Sequence[int] | None,
    directions: Sequence[str],
) -> tuple[Model, dict[str, UnitSweep]]:
    """The sweeps of heads and neurons that are asked for, and the model with these components proved.

    Raises InvalidOption or ComponentNotOffered, with what is possible.
    """
    asked = ("z",) if heads is True else heads
    if asked is not False and asked != [] and asked != ():
        validation.names("heads' component", asked, HEADS)
    names = tuple(dict.fromkeys(asked or ()))
    _check_neurons(neurons)
    mediators = (*names, *(("neurons",) if neurons else ()))
    for component in mediators:
        model.anatomy.require(component)
    if mediators:
        model, _ = prove(model, mediators)
    planned = {}
    if names:
        planned["heads"] = plan_heads(
            model, pairs, components=names, layers=layers, positions=head_positions, directions=directions
        )
    if neurons:
        planned["neurons"] = plan_neurons(
            model, pairs, neurons=neurons, layers=layers, positions=neuron_positions, directions=directions
        )
    return model, planned


def _check_neurons(neurons: Neurons) -> None:
    if not isinstance(neurons, (bool, Mapping)) or neurons == {}:
        raise InvalidOption(
            f"neurons= is True (all neurons of the layers), or a mapping from layers to neurons, such as "
            f"{{5: [], 20: [14, 1035]}}; it is {neurons!r}."
        )


def plan_heads(
    model: Model,
    pairs: Sequence[TokenPair],
    *,
    components: Sequence[str],
    layers: Sequence[int] | None,
    positions: str | Sequence[Column],
    directions: Sequence[str],
) -> UnitSweep:
    """All heads of these components. Raises InvalidOption or ComponentNotOffered."""
    counts = {name: model.units(name) for name in components}
    chosen = checked_layers(model, layers)
    return UnitSweep(
        unit="head",
        components=tuple(counts),
        layers=chosen,
        units={name: dict.fromkeys(chosen, range(count)) for name, count in counts.items()},
        counts=counts,
        columns=resolved_columns(pairs, positions),
        directions=tuple(directions),
    )


def plan_neurons(
    model: Model,
    pairs: Sequence[TokenPair],
    *,
    neurons: Neurons,
    layers: Sequence[int] | None,
    positions: str | Sequence[Column],
    directions: Sequence[str],
) -> UnitSweep:
    """All neurons of the layers, or those of a mapping from layer to neurons (none: all). Raises as `plan_heads`."""
    count = model.units("neurons")
    if isinstance(neurons, Mapping):
        chosen = checked_layers(model, list(neurons))
        units: dict[int, Sequence[int]] = dict.fromkeys(chosen, range(count))
        for layer, listed in neurons.items():
            if not hasattr(listed, "__len__") or len(listed):
                validation.numbered("neuron", listed, count, f"layer {layer} of {model.name}")
                units[layer] = sorted({int(neuron) for neuron in listed})
    else:
        chosen = checked_layers(model, layers)
        units = dict.fromkeys(chosen, range(count))
    return UnitSweep(
        unit="neuron",
        components=("neurons",),
        layers=chosen,
        units={"neurons": units},
        counts={"neurons": count},
        columns=resolved_columns(pairs, positions),
        directions=tuple(directions),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitCell:
    """One world, and where its number belongs in the map of its direction."""

    direction: str
    at: tuple[int, int, int, int]
    world: World


def unit_cells(pair: TokenPair, contrast: Contrast, sweep: UnitSweep, number: int) -> Iterator[UnitCell]:
    """Every world of the pair's heads or neurons, layer by layer."""
    for direction, draw in product(sweep.directions, range(contrast.draws)):
        into = restores(direction)
        base, donor = contrast.sides(draw, restores=into)
        for c, component in enumerate(sweep.components):
            for n, layer in enumerate(sweep.layers):
                for k, column in enumerate(sweep.columns):
                    for slots in patched_together(pair, column):
                        for unit in sweep.units[component][layer]:
                            edits = [contrast.edit(component, layer, s, donor, restores=into, unit=unit) for s in slots]
                            world = World(base, tuple(edits), last_of(base), number)
                            yield UnitCell(direction=direction, at=(c, n, unit, k), world=world)


def measure_units(
    scoring: Scoring,
    pair: TokenPair,
    contrast: Contrast,
    sweep: UnitSweep,
    number: int,
    unedited: Mapping[str, np.ndarray],
    *,
    engine: str,
    budget: int | None,
    done: Callable[[int], None],
) -> xr.Dataset:
    """One pair's raw numbers (metric, component, layer, head or neuron, position) and flags.

    `unedited` holds the base run's numbers of each direction: what is known to be zero is exactly these. A column of
    several tokens is the mean over them, and so are several draws. `done` is told how many worlds have been run.
    """
    sums = {direction: np.zeros((len(METRICS), *sweep.shape)) for direction in sweep.directions}
    counts = {direction: np.zeros(sweep.shape, dtype=int) for direction in sweep.directions}
    zeros, cells, run = np.zeros(sweep.shape, dtype=int), unit_cells(pair, contrast, sweep, number), 0
    while batch := list(islice(cells, AT_ONCE)):
        found = scoring.evaluate([cell.world for cell in batch], engine=engine, budget=budget)
        run += found.worlds_run
        for cell, value, zero in zip(batch, found.values, found.structural_zero, strict=True):
            sums[cell.direction][(slice(None), *cell.at)] += unedited[cell.direction] if zero else value
            counts[cell.direction][cell.at] += 1
            zeros[cell.at] += zero and cell.direction == sweep.directions[0]
        done(len(batch))
    first = counts[sweep.directions[0]]
    raw = {
        RAW[direction]: (("metric", *sweep.dims), total / np.where(counts[direction], counts[direction], np.nan))
        for direction, total in sums.items()
    }
    flags = {
        "structural_zero": (sweep.dims, (first > 0) & (zeros == first)),
        "cut": (sweep.dims, np.zeros(sweep.shape, dtype=bool)),
        "unpaired": (sweep.dims, first == 0),
    }
    return xr.Dataset(raw | flags, attrs={"worlds": int(first.sum()) * len(sweep.directions), "worlds_run": run})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picked:
    """A cell that is to be run again: its worlds, and the numbers that are told of it, by metric."""

    worlds: Sequence[World]
    told: np.ndarray


def picked_units(
    pair: TokenPair,
    contrast: Contrast,
    sweep: UnitSweep,
    number: int,
    found: xr.Dataset,
    count: int,
    random: np.random.Generator,
) -> Iterator[Picked]:
    """So many random cells of one pair's heads or neurons (fewer where two of them meet)."""
    chosen = set(random.integers(max(1, sweep.cells(pair)), size=count).tolist())
    everything = unit_cells(pair, contrast, sweep, number)
    keys = {(cell.direction, cell.at) for n, cell in enumerate(everything) if n in chosen}
    worlds: dict[tuple[str, tuple[int, int, int, int]], list[World]] = {}
    for cell in unit_cells(pair, contrast, sweep, number):
        if (cell.direction, cell.at) in keys:
            worlds.setdefault((cell.direction, cell.at), []).append(cell.world)
    for (direction, at), same in worlds.items():
        yield Picked(worlds=same, told=found[RAW[direction]].values[(slice(None), *at)])


def unit_table(
    model: Model, sweep: UnitSweep, pairs: Sequence[TokenPair], found: Sequence[xr.Dataset], metrics: Sequence[str]
) -> xr.Dataset:
    """All pairs' numbers as one labelled table, its metrics in the order asked for."""
    labels = unit_labels(model, sweep) | {"metric": np.array(METRICS, dtype=object)}
    ids = xr.DataArray(np.array([pair.id for pair in pairs], dtype=object), dims="pair", name="pair")
    table = xr.concat(list(found), dim=ids, coords="minimal", compat="equals", join="exact", combine_attrs="drop")
    table = table.assign_coords(labels).sel(metric=list(metrics))
    return table.transpose("metric", "pair", *sweep.dims, missing_dims="ignore")


def unit_labels(model: Model, sweep: UnitSweep) -> dict[str, Any]:
    """The labels of the maps' axes, and which query heads read each head of keys or values."""
    numbers = all(isinstance(column, int) for column in sweep.columns)
    columns = list(sweep.columns) if numbers else np.array([str(column) for column in sweep.columns], dtype=object)
    labels: dict[str, Any] = {
        "component": np.array(sweep.components, dtype=object),
        "layer": list(sweep.layers),
        sweep.unit: np.arange(sweep.shape[2]),
        "position": columns,
    }
    if sweep.unit == "head":
        readers = [[_readers(model, name, head) for head in range(sweep.shape[2])] for name in sweep.components]
        labels["readers"] = (("component", "head"), np.array(readers, dtype=object))
    return labels


def _readers(model: Model, component: str, head: int) -> str:
    """The query heads that read a head of keys or values, as text; "" where there is no such head, or of others."""
    if component not in ("k", "v") or head >= model.units(component) or "q" not in model.anatomy.mediators:
        return ""
    each = model.units("q") // model.units(component)
    return ", ".join(str(reader) for reader in range(head * each, (head + 1) * each))
