"""Results and pairs made on the spot: numbers of one component, many pairs of them, pairs of words for a tiny model."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import xarray as xr

import causal_tracing as ct
from causal_tracing.models.model import Model
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.storage.join import joined
from causal_tracing.results.units import METRICS, UNITS
from joint import tiny

ANSWERS: dict[str, Any] = {"answer": " w7", "foil": " w8"}


LAYERS, POSITIONS, COUNT = 2, 3, 12
CELL = ("component", "layer", "position")


def taken_apart(data: xr.Dataset, provenance: Mapping[str, Any], **maps: xr.Dataset | None) -> Measurements:
    """Blocks and pairs out of one dataset; other kinds' maps as they are."""
    of_cells = [name for name, each in data.data_vars.items() if {*each.dims} & {*CELL}]
    pairs = data.drop_vars(of_cells).drop_dims([*CELL], errors="ignore")
    blocks = data[of_cells].drop_vars("unit", errors="ignore")
    others = {name: each for name, each in maps.items() if each is not None}
    return Measurements(pairs=pairs, maps={"blocks": blocks, **others}, provenance=provenance)


def measurements(
    restored: Any, disrupted: Any, *, clean: float = 3.0, corrupt: float = 1.0, spread: float = 1e-6, **flags: Any
) -> Measurements:
    """One pair, one component, the given [layer, position] numbers of every metric."""
    restored, disrupted = np.array(restored, float), np.array(disrupted, float)
    layers, positions = restored.shape
    whole = (len(METRICS), 1, 1, layers, positions)
    data: dict[str, Any] = {
        "restored": (("metric", "pair", *CELL), np.broadcast_to(restored, whole).copy()),
        "disrupted": (("metric", "pair", *CELL), np.broadcast_to(disrupted, whole).copy()),
    }
    for name, value in (("clean", clean), ("corrupt", corrupt), ("spread", spread)):
        data[name] = (("metric", "pair"), np.full((len(METRICS), 1), value))
    for name in ("structural_zero", "cut", "unpaired"):
        flag = np.array(flags.get(name, np.zeros_like(restored)), bool)
        data[name] = (("pair", *CELL), flag[None, None])
    tokens = np.array([[f" t{n}" for n in range(positions)]], object)
    roles = np.array([["subject_first", *["subject_last"] * (positions - 2), "last"][:positions]], object)
    for name in ("clean", "corrupt"):
        data[f"{name}_token"], data[f"{name}_role"] = (("pair", "token"), tokens.copy()), (("pair", "token"), roles)
        data[f"{name}_prompt"] = (("pair",), np.array([f"the {name} prompt"], object))
        data[f"{name}_length"] = (("pair",), np.array([positions]))
        data[f"{name}_top"] = (("pair", "rank"), np.array([[" yes"]], object))
        data[f"{name}_top_prob"] = (("pair", "rank"), np.array([[0.9]]))
    for name, value in (("answer", " yes"), ("foil", flags.get("foil", " no"))):
        data[name] = (("pair",), np.array([value], object))
    data["answer_length"] = (("pair",), np.array([1]))
    coordinates = {
        "metric": list(METRICS),
        "unit": (("metric",), [UNITS[name] for name in METRICS]),
        "pair": ["p"],
        "component": ["resid_post"],
        "layer": list(range(layers)),
        "position": list(range(positions)),
    }
    provenance = {
        "model": "toy", "layers": layers, "dtype": "float32", "engine": "replay",
        "worlds": 10, "worlds_skipped": 4, "seconds": 1.0,
        "spot_checks": {"cells": 0, "largest_difference": None},
    }  # fmt: skip
    return taken_apart(xr.Dataset(data, coordinates), provenance)


def synthetic(
    seed: int,
    *,
    count: int = COUNT,
    layers: int = LAYERS,
    clusters: dict[int, str] | None = None,
    missing: Any = None,
    total: float = 4.0,
    first: int = 0,
    shift: float = 0.0,
    record: dict[str, Any] | None = None,
    **flags: Any,
) -> ct.Trace:
    """Pairs p0, p1, … with random numbers of one component; `missing` are (pair, layer, position)."""
    random, parts, made = np.random.default_rng(seed), [], None
    for n in range(first, first + count):
        restored, disrupted = random.normal(2 + shift, 1, (layers, POSITIONS)), random.normal(2, 1, (layers, POSITIONS))
        for who, layer, position in missing or ():
            if who == n:
                restored[layer, position] = disrupted[layer, position] = np.nan
        corrupt = random.normal(0, 0.5)
        made = measurements(restored, disrupted, clean=corrupt + random.normal(total, 0.5), corrupt=corrupt, **flags)
        parts.append(taken_apart(made.numbers().assign_coords(pair=[f"p{n}"]), {}))
    assert made is not None
    pairs = [
        {"id": f"p{n}"} | ({"cluster": clusters[n]} if clusters and n in clusters else {}) for n in range(first + count)
    ]
    return ct.Trace(joined(parts, {**made.provenance, "pairs": pairs, **(record or {})}))


def pair(n: int, **fields: Any) -> ct.Pair:
    """The subject is one token, at position 1; what follows is the same in all."""
    made: dict[str, Any] = {"clean": f" w11 w{20 + n} w13 w14", "corrupt": f" w11 w{50 + n} w13 w14"}
    subjects: dict[str, Any] = {"subject": f"w{20 + n}", "corrupt_subject": f"w{50 + n}"}
    return ct.Pair(**(made | ANSWERS | subjects | fields))


def longer(n: int) -> ct.Pair:
    """Two tokens before the subject of two, and two behind it."""
    clean, corrupt = f" w11 w9 w{20 + n} w{60 + n} w13 w15 w14", f" w11 w9 w{50 + n} w{60 + n} w13 w15 w14"
    subjects: dict[str, Any] = {"subject": f"w{20 + n} w{60 + n}", "corrupt_subject": f"w{50 + n} w{60 + n}"}
    return ct.Pair(clean=clean, corrupt=corrupt, **ANSWERS, **subjects)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()
