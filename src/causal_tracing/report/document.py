"""A trace as one JSON document: what `--json` prints. Undefined numbers are null."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.errors import InvalidOption
from causal_tracing.prompts.answers import texts_of
from causal_tracing.report.words.method import device_sentences
from causal_tracing.results.circuits import circuits
from causal_tracing.results.comparison import Differences
from causal_tracing.results.effects import AVERAGED, FRACTIONS, WINDOW, effects
from causal_tracing.results.lens import LENS, lens_of, mean_lens
from causal_tracing.results.means import MeanMap, NoMean, mean_map
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.select import BESIDE, BEYOND, measured_directions
from causal_tracing.results.site_kinds import kind_of, plural
from causal_tracing.results.statistics.bootstrap import Interval

SCHEMA = 1
DEVIATION = "total_effect_deviation"  # over draws of noise


def document(measurements: Measurements, *, all_metrics: bool = False) -> dict[str, Any]:
    """The chosen metric's numbers as nested lists (pair, the kind's axes), with all metrics' beside them on request.

    The first kind of site stands at the top, each other one under its name.
    """
    record, data, (first, *others) = measurements.provenance, measurements.pairs, measurements.kinds
    found = effects(measurements, first)
    chosen = found.sel(metric=measurements.metric)
    texts = {
        "schema": SCHEMA,
        **{name: record[name] for name in ("model", "engine", "dtype")},
        "metric": measurements.metric,
        "unit": chosen.unit.item(),
        "pairs": [_pair(data.isel(pair=n), chosen.isel(pair=n)) for n in range(data.sizes["pair"])],
        **_map_of(measurements, first, chosen),
        **{name: record[name] for name in ("spot_checks", "seconds", "worlds", "worlds_skipped")},
        **{name: _map_of(measurements, name) for name in others},
        **({} if measurements.lens is None else {LENS: _lens(measurements)}),
    }
    if all_metrics:
        # Entropy is shown raw: neither more nor less of it is cleaner.
        names = [str(name) for name in found.metric.values if name != "entropy"]
        texts["all_metrics"] = {name: _effects(found.sel(metric=name)) for name in names}
    warnings = list(device_sentences(record))
    return jsonable(texts | ({"warnings": warnings} if warnings else {}) | {"provenance": dict(record)})


def comparison_document(found: Differences) -> dict[str, Any]:
    """Everything of a comparison."""
    both = {
        which: {"model": side.model, "metric": side.metric, "unit": side.unit, "total": interval(side.total)}
        for which, side in found.sides.items()
    }
    return jsonable({
        "schema": SCHEMA,
        "of": found.kind,
        **both,
        "differing": {name: list(values) for name, values in found.differing.items()},
        "pairs": list(found.ids),
        "clusters": found.clusters,
        "undefined": list(found.undefined),
        "only_first": {kind: list(names) for kind, names in found.only_first.items()},
        "only_second": {kind: list(names) for kind, names in found.only_second.items()},
        "warnings": list(found.warnings),
        "total": interval(found.total),
        "reason": found.reason,
        **maps(found.cells),
        "smallest_p": found.smallest_p,
        "seed": found.seed,
    })  # fmt: skip


def interval(found: Interval) -> dict[str, Any]:
    """One number with its interval."""
    return {name: getattr(found, name).item() for name in ("estimate", "low", "high")}


def maps(cells: xr.Dataset) -> dict[str, Any]:
    """Means over pairs by effect and component, as [layer][position]; statuses are null where a cell is ok.

    Of heads and neurons as [layer][head or neuron][position].
    """
    tested = ("low", "high", "p", "p_adjusted", "q", "first", "second")
    return {
        **_labels(cells),
        "status": _status(cells),
        "cells": {name: _map(cells, name, tested) for name in AVERAGED if name in cells},
        "fractions": {name: _map(cells, name, ("low", "high", "reason")) for name in FRACTIONS if name in cells},
    }


def _map(cells: xr.Dataset, name: str, parts: Iterable[str]) -> dict[str, Any]:
    """One effect's mean and what belongs to it, by component."""
    variables = {"mean": name} | {part: f"{name}_{part}" for part in parts if f"{name}_{part}" in cells}
    return {
        str(component): {part: cells[variable].sel(component=component).values for part, variable in variables.items()}
        for component in cells.component.values
    }


def _evidence(measurements: Measurements, of: str) -> dict[str, Any]:
    """What all pairs say together by the chosen metric, or why there is no mean of them."""
    try:
        found = mean_map(measurements, of=of)
    except NoMean as error:
        return {"reason": str(error)}
    return {
        "metric": found.metric,
        "unit": found.unit,
        "pairs": found.pairs,
        "clusters": found.clusters,
        "undefined": len(found.undefined),
        "total": interval(found.total),
        **maps(found.cells),
        "peaks": {component: _peak(found, component) for component in found.peaks},
        "smallest_p": found.smallest_p,
    }


def _peak(found: MeanMap, component: str) -> dict[str, Any]:
    """Where a component's map is strongest, and what that is worth; null where nothing is known."""
    cell, (half, stable) = found.peak(component), found.peaks[component]
    dims = [str(name) for name in found.cells.status.dims if name != "component"]
    return {
        **{name: None if cell is None else cell[name].item() for name in dims},
        "held_out": half.held_out,
        "within_one_layer": stable.within_one_layer,
        "reason": half.reason,
    }


def _map_of(measurements: Measurements, kind: str, chosen: xr.Dataset | None = None) -> dict[str, Any]:
    """One kind's numbers by the chosen metric, the labels of its axes, and what all pairs say together."""
    chosen = effects(measurements, kind).sel(metric=measurements.metric) if chosen is None else chosen
    texts = {**_labels(chosen), "effects": _effects(chosen), "status": _status(chosen)}
    texts |= _windows(chosen)
    if kind_of(chosen).ends:
        texts |= _circuits(measurements)
    if "removed_nodes" in chosen.coords:
        texts["removed_nodes"] = chosen.removed_nodes.values.tolist()
    if "readers" in chosen.coords:
        names = chosen.component.values.tolist()
        texts["readers"] = {name: chosen.readers.sel(component=name).values.tolist() for name in names}
    if chosen.sizes["pair"] > 1:
        texts["evidence"] = _evidence(measurements, kind)
    return texts


def _circuits(measurements: Measurements) -> dict[str, Any]:
    """What all pairs say together of circuits, by the chosen metric, or why nothing can be said."""
    try:
        found = circuits(measurements)
    except InvalidOption as error:
        return {"faithful": {"reason": str(error)}}
    tables = ("curve", "completeness", "minimality")
    texts: dict[str, Any] = {
        name: getattr(found, name) for name in ("of", "how", "write", "items", "pairs", "clusters", "tested")
    }
    texts |= {name: getattr(found, name).to_dict("records") for name in tables}
    for name in ("cmd", "cpr"):
        area = getattr(found, name)
        texts[name] = {part: getattr(area, part) for part in ("estimate", "low", "high", "reason", "of_mib")}
        texts[name]["shares"] = list(area.shares)
    return {"faithful": texts}


def _lens(measurements: Measurements) -> dict[str, Any]:
    """The logit lens as [pair][run][layer][token], and its means over pairs as [run][layer][position]."""
    found = lens_of(measurements)
    names = [name for name in found.data_vars if "layer" in found[name].dims and name != "top_id"]
    texts: dict[str, Any] = {"runs": found.run.values.tolist(), "layers": found.layer.values.tolist()}
    numbers = found[names].transpose("pair", "run", "layer", "token")
    texts |= {str(name): each.values for name, each in numbers.data_vars.items()}
    if found.sizes["pair"] > 1:
        try:
            means = mean_lens(measurements)
        except NoMean as error:
            return texts | {"evidence": {"reason": str(error)}}
        of_means = {str(name): each.values for name, each in means.data_vars.items()}
        texts["evidence"] = {"positions": means.position.values.tolist(), **of_means}
    return texts


def _labels(found: xr.Dataset) -> dict[str, Any]:
    kind = kind_of(found)
    # Heads, neurons and experts are numbered from 0: their place in a list says which one it is.
    axes = kind.axes if not kind.layered else ("component", "layer", "position")
    return {plural(axis): found[axis].values.tolist() for axis in axes}


def _pair(data: xr.Dataset, found: xr.Dataset) -> dict[str, Any]:
    tokens = {
        f"{name}_tokens": [str(token) for token in data[f"{name}_token"].values[: data[f"{name}_length"].item()]]
        for name in ("clean", "corrupt")
    }
    return {
        "id": str(data.pair.item()),
        **tokens,
        "answer": texts_of(data.answer.item()),
        "foil": texts_of(data.foil.item()) or None,
        **{name: found[name].item() for name in ("clean", "corrupt", "total_effect")},
        **({"reason": reason} if (reason := str(found.reason.item())) else {}),
        **({DEVIATION: found.total_effect_deviation.item()} if DEVIATION in found else {}),
    }


def _effects(found: xr.Dataset) -> dict[str, dict[str, Any]]:
    """Each direction's numbers, and those that windows, noise and severing add, by component."""
    # Windows are the same in both directions, and stand once, under a key of their own.
    beside = [name for name in (*BESIDE, *BEYOND) if name in found and name not in WINDOW]
    components = found.component.values.tolist()
    return {
        effect: {name: found[effect].sel(component=name).values for name in components}
        for effect in (*measured_directions(found), *beside)
    }


def _windows(found: xr.Dataset) -> dict[str, Any]:
    """The first and last layer that each component's cells patch, by layer; null where there is no whole window."""
    if WINDOW[0] not in found:
        return {}
    ends = {
        str(name): np.stack([found[end].sel(component=name).values for end in WINDOW], axis=-1).tolist()
        for name in found.component.values
    }
    return {"windows": {name: [None if pair[0] < 0 else pair for pair in pairs] for name, pairs in ends.items()}}


def _status(found: xr.Dataset) -> dict[str, Any]:
    """Each component's statuses in the shape of its effects; null where a cell is ok."""
    told = _unless(found.status.values == "ok", found.status.values)
    by_component = np.moveaxis(told, found.status.dims.index("component"), 0)
    return dict(zip(found.component.values.tolist(), by_component, strict=True))


def _unless(nothing: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The values as objects, None where there is nothing."""
    found = values.astype(object)
    found[nothing] = None
    return found


def jsonable(value: Any) -> Any:
    """A number as JSON has it, or arrays, lists and mappings of them of any depth: what is not finite is None."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind != "f" or (there := np.isfinite(value)).all():
            return value.tolist()
        return _unless(~there, value).tolist()
    if isinstance(value, Mapping):
        return {name: jsonable(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value
