"""Measurements: what was measured, as labelled arrays, with where it came from. Needs no torch.

The dataset holds raw numbers of the metrics; `effects.py` makes effects of them.

    unit                   (metric)            the unit of each metric's numbers
    clean, corrupt         (metric, pair)      the unedited runs
    spread                 (metric, pair)      standard deviation over repeats of the unedited runs
    restored, disrupted    (metric, pair, component, layer, position)  the patched runs (only the directions asked for)
    restored_sum, disrupted_sum  what each layer of a window adds alone, added up (where windows are wider than 1)
    restored_severed_attn_out, restored_severed_mlp_out  restored, with the attention or MLPs behind it frozen
    corrupt_deviation, restored_deviation, disrupted_deviation  standard deviation over draws, of the corrupt runs
                           and the effects (where noise or donors are drawn)
    window_first, window_last  (component, layer)   the layers patched together; −1 where there is no whole window
    structural_zero, cut, unpaired  (pair, component, layer, position)
    clean_token, corrupt_token, clean_role, corrupt_role  (pair, token)    "" beyond a prompt's end
    corrupt_position       (pair, token)       which corrupt token a clean one is paired with; −1 for none
    clean_length, corrupt_length, answer_length  (pair)  how many tokens there are
    clean_prompt, corrupt_prompt, answer, foil  (pair)
    clean_top, corrupt_top, clean_top_prob, corrupt_top_prob  (pair, rank) the model's first choices

Heads and neurons, where they were measured, are datasets of their own, with the patched runs and their flags over
(metric, pair, component, layer, head or neuron, position); `readers` (component, head) says which query heads read a
key or value head.
"""

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.errors import InvalidOption, InvalidResults, MachineError, nearest

SCHEMA = 1
TABLES = ("blocks", "heads", "neurons")
CELL = ("component", "layer", "position")
TEXT, ARRAYS, PAIRS = "trace.json", "arrays.npz", "pairs.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measurements:
    """The measured numbers of one trace, and its provenance (plain values that JSON can hold)."""

    data: xr.Dataset
    provenance: Mapping[str, Any]
    heads: xr.Dataset | None = None
    neurons: xr.Dataset | None = None

    def table(self, of: str = "blocks") -> xr.Dataset:
        """The patched runs of "blocks", "heads" or "neurons", with the unedited runs and tokens beside them.

        Raises InvalidOption where they were not measured.
        """
        if of not in TABLES:
            raise InvalidOption(f"There is nothing called {of!r} in a trace. {nearest(str(of), TABLES)}")
        if of == "blocks":
            return self.data
        found = self.heads if of == "heads" else self.neurons
        if found is None:
            raise InvalidOption(f"This trace has no {of}. Measure them with trace(..., {of}=True).")
        shared = [name for name, variable in self.data.variables.items() if not {*variable.dims} & {*CELL}]
        return found.merge(self.data[shared].drop_dims([*CELL], errors="ignore"))

    def of_pair(self, pair: str) -> "Measurements":
        """One pair alone: arrays keep their axis of pairs."""
        tables = {name: getattr(self, name) for name in ("data", "heads", "neurons")}
        return replace(self, **{name: each if each is None else each.sel(pair=[pair]) for name, each in tables.items()})

    @property
    def tables(self) -> tuple[str, ...]:
        """Which of them were measured."""
        return tuple(name for name in TABLES if name == "blocks" or getattr(self, name) is not None)

    @property
    def metric(self) -> str:
        """The metric that is shown unless another is asked for: the first."""
        return str(self.data.metric.values[0])

    @property
    def write(self) -> Mapping[str, Any]:
        """What patched sites got (`written.Write.to_dict`); the other run's activation, whole, unless it says so."""
        return self.provenance.get("options", {}).get("write", {"kind": "donor", "alpha": 1})

    @property
    def directions(self) -> tuple[str, ...]:
        """Which of restoration and disruption were measured."""
        names = {"restored": "restoration", "disrupted": "disruption"}
        return tuple(direction for name, direction in names.items() if name in self.data)


def save(measurements: Measurements, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Writes the measurements as a folder: JSON for what is text, npz for numbers, no pickle.

    The folder appears whole or not at all. Raises InvalidResults if it is there already (unless `overwrite`, which
    replaces a saved trace and nothing else), MachineError if the disk refuses.
    """
    target = check_target(folder, overwrite=overwrite)
    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.absolute().parent) as scratch:
            _write(measurements, Path(scratch) / "new")
            if target.exists():
                os.replace(target, Path(scratch) / "old")
            os.replace(Path(scratch) / "new", target)
    except OSError as error:
        raise MachineError(f"{target} could not be written: {error}. Nothing was left half-written.") from error
    return target


def check_target(folder: str | Path, *, overwrite: bool = False) -> Path:
    """The folder as a path, if a trace can be saved there. Raises InvalidResults."""
    target = Path(folder)
    if target.exists() and not (overwrite and (target / TEXT).is_file()):
        hint = "Overwrite it (overwrite=True, --overwrite)" if (target / TEXT).is_file() else "It is not a saved trace"
        raise InvalidResults(f"{target} exists already. {hint}, or choose another name.")
    return target


def open_measurements(folder: str | Path) -> Measurements:
    """What `save` wrote. Raises InvalidResults for a folder that is missing, damaged, or of a newer version."""
    folder = Path(folder)
    if not (folder / TEXT).is_file():
        what = "has no trace.json: it is not a saved trace" if folder.is_dir() else "is not there"
        raise InvalidResults(f"{folder} {what}. Name a folder that was written by save() or `trace --out`.")
    try:
        text = json.loads((folder / TEXT).read_text(encoding="utf-8"))
        digest, content = text["sha256"], text["content"]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidResults(f"{folder / TEXT} is damaged: {error!r}. Make the trace again.") from None
    if text.get("schema", 0) > SCHEMA:
        raise InvalidResults(
            f"{folder} was written by a newer version (schema {text['schema']}; this one reads {SCHEMA}). "
            "Upgrade causal-tracing to open it."
        )
    _check(folder / TEXT, digest, _canonical(content))
    try:
        arrays = (folder / ARRAYS).read_bytes()
    except OSError as error:
        raise InvalidResults(f"{folder / ARRAYS} cannot be read: {error}. Make the trace again.") from None
    _check(folder / ARRAYS, content["arrays"], arrays)
    with np.load(io.BytesIO(arrays), allow_pickle=False) as numbers:
        return from_parts(content["tables"], numbers, content["provenance"])


def to_parts(measurements: Measurements) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Every table as plain values that JSON can hold, and its numbers by table and name."""
    arrays: dict[str, np.ndarray] = {}
    tables = {"blocks": measurements.data, "heads": measurements.heads, "neurons": measurements.neurons}
    described = {name: _described(name, data, arrays) for name, data in tables.items() if data is not None}
    return described, arrays


def from_parts(
    described: Mapping[str, Any], arrays: Mapping[str, np.ndarray], provenance: Mapping[str, Any]
) -> Measurements:
    """What `to_parts` took apart."""
    tables = {name: _dataset(name, each, arrays) for name, each in described.items()}
    data = tables.pop("blocks")
    return Measurements(data=data, provenance=provenance, **tables)


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
    text = {"schema": SCHEMA, "sha256": hashlib.sha256(_canonical(content)).hexdigest(), "content": content}
    pairs = "".join(json.dumps(pair) + "\n" for pair in measurements.provenance.get("pairs", ()))
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


def _canonical(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True).encode()


def _check(path: Path, expected: str, payload: bytes) -> None:
    found = hashlib.sha256(payload).hexdigest()
    if found != expected:
        raise InvalidResults(
            f"{path} is damaged: its content has the checksum {found[:12]}…, and {str(expected)[:12]}… was written. "
            "Make the trace again."
        )
