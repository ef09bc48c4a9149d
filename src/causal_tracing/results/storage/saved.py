"""Measurements as a folder: JSON for what is text, npz for numbers, no pickle."""

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.errors import InvalidResults, MachineError
from causal_tracing.results.columns import columns_of, labelled
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.site_kinds import BLOCKS, KINDS
from causal_tracing.results.storage.places import TEXT, check_target, parents_of

SCHEMA = 2  # 1, of version 0.1.0, had what is now "pairs" in the table "blocks"
ARRAYS, PAIRS, ABOUT_PAIRS, LENS = "arrays.npz", "pairs.jsonl", "pairs", "lens"


def save(measurements: Measurements, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Writes the measurements as a folder: JSON for what is text, npz for numbers, no pickle.

    The folder appears whole or not at all. Raises InvalidResults if it is there already (unless `overwrite`, which
    replaces a saved trace and nothing else), MachineError if the disk refuses.
    """
    target = check_target(folder, overwrite=overwrite)
    place = Path(os.path.realpath(target))  # a link stays one
    parent = place.parent
    try:
        with parents_of(place), tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=parent) as scratch:
            _write(measurements, Path(scratch) / "new")
            _put(Path(scratch) / "new", place, aside=Path(scratch) / "old")
    except OSError as error:
        raise MachineError(f"{target} could not be written: {error}. Nothing was left half-written.") from error
    return target


def _put(new: Path, place: Path, *, aside: Path) -> None:
    """Moves a folder to its place. What was there stands `aside` until then, and goes back where that fails."""
    # A folder cannot be replaced in one step.
    if place.exists():
        os.replace(place, aside)
    try:
        os.replace(new, place)
    except BaseException:
        if aside.exists():
            os.replace(aside, place)
        raise


def open_measurements(folder: str | Path) -> Measurements:
    """What `save` wrote. Raises InvalidResults for a folder that is missing, damaged, or of a newer version."""
    folder = Path(folder)
    if not os.path.isfile(folder / TEXT):  # False of what can be no path, where pathlib raises
        there = "is a file, and a saved trace is a folder" if os.path.isfile(folder) else "is not there"
        what = "has no trace.json: it is not a saved trace" if os.path.isdir(folder) else there
        raise InvalidResults(f"{folder} {what}. Name a folder that was written by save() or `trace --out`.")
    try:
        text = json.loads((folder / TEXT).read_text(encoding="utf-8-sig"))  # some editors put a mark first
        schema, digest, content = int(text.get("schema", 0)), text["sha256"], text["content"]
    except OSError as error:
        raise InvalidResults(f"{folder / TEXT} cannot be read: {error}.") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidResults(f"{folder / TEXT} is damaged: {error!r}. Make the trace again.") from None
    if schema > SCHEMA:
        raise InvalidResults(
            f"{folder} was written by a newer version (schema {schema}; this one reads {SCHEMA}). "
            "Upgrade causal-tracing to open it."
        )
    _check(folder / TEXT, digest, canonical(content))
    try:
        arrays = (folder / ARRAYS).read_bytes()
    except OSError as error:
        raise InvalidResults(f"{folder / ARRAYS} cannot be read: {error}. Make the trace again.") from None
    _check(folder / ARRAYS, content["arrays"], arrays)
    # A pickle would run what stands in it, and traces are handed on.
    with np.load(io.BytesIO(arrays), allow_pickle=False) as numbers:
        return from_parts(content["tables"], numbers, content["provenance"])


def to_parts(measurements: Measurements) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Every table as plain values that JSON can hold, and its numbers by table and name."""
    arrays: dict[str, np.ndarray] = {}
    lens = {} if measurements.lens is None else {LENS: measurements.lens}
    tables = {ABOUT_PAIRS: measurements.pairs, **lens, **measurements.maps}
    return {name: _described(name, data, arrays) for name, data in tables.items()}, arrays


def from_parts(
    described: Mapping[str, Any], arrays: Mapping[str, np.ndarray], provenance: Mapping[str, Any]
) -> Measurements:
    """What `to_parts` took apart, with the record of the whole trace."""
    maps = {name: _dataset(name, each, arrays) for name, each in described.items()}
    maps = {name: _with_columns(name, each, provenance) for name, each in maps.items()}
    pairs = maps.pop(ABOUT_PAIRS) if ABOUT_PAIRS in maps else _taken_apart(maps)
    return Measurements(pairs=pairs, lens=maps.pop(LENS, None), maps=maps, provenance=provenance)


def _with_columns(name: str, data: xr.Dataset, provenance: Mapping[str, Any]) -> xr.Dataset:
    """The map with tokens as numbers also where version 0.1.0 wrote all as texts, because roles stood among them.

    What was asked for says which of them are roles; without that, each is what it is.
    """
    if name not in KINDS or KINDS[name].column != "position" or data.position.dtype.kind != "O":
        return data
    asked = provenance.get("options", {}).get(KINDS[name].columns)
    if asked is None or isinstance(asked, str):
        return data
    texts = [column if column in asked else int(column) for column in columns_of(data)]
    return data.assign_coords(position=labelled(texts))


def _taken_apart(maps: dict[str, xr.Dataset]) -> xr.Dataset:
    """What is known of the pairs, in the first schema: there it lies among the blocks' numbers."""
    whole, axes = maps[BLOCKS.name], {*BLOCKS.axes}
    of_cells = [name for name, variable in whole.data_vars.items() if {*variable.dims} & axes]
    maps[BLOCKS.name] = whole[of_cells].drop_vars("unit")
    return whole.drop_vars(of_cells).drop_dims([*BLOCKS.axes])


def _write(measurements: Measurements, folder: Path) -> None:
    folder.mkdir()
    numbers = io.BytesIO()
    described, arrays = to_parts(measurements)
    np.savez_compressed(numbers, allow_pickle=False, **arrays)
    content = {
        "provenance": measurements.provenance,
        "tables": described,
        "arrays": hashlib.sha256(numbers.getvalue()).hexdigest(),
    }
    text = {"schema": SCHEMA, "sha256": hashlib.sha256(canonical(content)).hexdigest(), "content": content}
    # What the command of the provenance names as its file: the folder holds all that it needs.
    pairs = in_lines(measurements.provenance.get("pairs", ()))
    files = {ARRAYS: numbers.getvalue(), TEXT: json.dumps(text, indent=1).encode(), PAIRS: pairs.encode()}
    for name, payload in files.items():
        with open(folder / name, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())


def _described(table: str, data: xr.Dataset, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """A table's variables as JSON; their numbers go to `arrays`, by table and name."""
    described = {}
    for name, variable in data.variables.items():
        described[str(name)] = entry = {"dims": list(variable.dims), "coordinate": name in data.coords}
        if variable.dtype.kind in "OUT":  # text stays in JSON: fixed-width arrays would lose trailing NULs
            entry["text"] = variable.values.tolist()
        else:
            arrays[f"{table}.{name}"] = variable.values
    return described


def _dataset(table: str, described: Mapping[str, Any], numbers: Mapping[str, np.ndarray]) -> xr.Dataset:
    variables, coordinates = {}, {}
    for name, entry in described.items():
        values = np.array(entry["text"], dtype=object) if "text" in entry else numbers[f"{table}.{name}"]
        (coordinates if entry["coordinate"] else variables)[name] = (entry["dims"], values)
    return xr.Dataset(variables, coordinates)


def in_lines(pairs: Iterable[Mapping[str, Any]]) -> str:
    """Pairs as the file that can be traced again: a line of JSON each."""
    return "".join(json.dumps(pair) + "\n" for pair in pairs)


def canonical(content: Any) -> bytes:
    """Plain values as bytes, in one order: what a checksum is made of."""
    return json.dumps(content, sort_keys=True).encode()


def _check(path: Path, expected: str, payload: bytes) -> None:
    found = hashlib.sha256(payload).hexdigest()
    if found != expected:
        raise InvalidResults(
            f"{path} is damaged: its content has the checksum {found[:12]}…, and {str(expected)[:12]}… was written. "
            "Make the trace again."
        )
