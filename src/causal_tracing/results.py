"""Measurements: what was measured, as labelled arrays, with where it came from. Needs no torch.

The dataset holds raw numbers of the metrics; `effects.py` makes effects of them.

    unit                   (metric)            the unit of each metric's numbers
    clean, corrupt         (metric, pair)      the unedited runs
    spread                 (metric, pair)      standard deviation over repeats of the unedited runs
    restored, disrupted    (metric, pair, component, layer, position)  the patched runs (only the directions asked for)
    structural_zero, cut, unpaired  (pair, component, layer, position)
    clean_token, corrupt_token, clean_role, corrupt_role  (pair, token)    "" beyond a prompt's end
    clean_length, corrupt_length  (pair)      how many tokens there are
    clean_prompt, corrupt_prompt, answer, foil  (pair)
    clean_top, corrupt_top, clean_top_prob, corrupt_top_prob  (pair, rank) the model's first choices
"""

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.errors import InvalidResults, MachineError

SCHEMA = 1
TEXT, ARRAYS, PAIRS = "trace.json", "arrays.npz", "pairs.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measurements:
    """The measured numbers of one trace, and its provenance (plain values that JSON can hold)."""

    data: xr.Dataset
    provenance: Mapping[str, Any]

    @property
    def metric(self) -> str:
        """The metric that is shown unless another is asked for: the first."""
        return str(self.data.metric.values[0])

    @property
    def directions(self) -> tuple[str, ...]:
        """Which of restoration and disruption were measured."""
        names = {"restored": "restoration", "disrupted": "disruption"}
        return tuple(direction for name, direction in names.items() if name in self.data)


def save(measurements: Measurements, folder: str | Path, *, overwrite: bool = False, text: str = TEXT) -> Path:
    """Writes the measurements as a folder: JSON for what is text, npz for numbers, no pickle.

    The folder appears whole or not at all. Raises InvalidResults if it is there already (unless `overwrite`, which
    replaces a result of the same kind and nothing else), MachineError if the disk refuses. `text` names the file that
    says what kind of result it is.
    """
    target = check_target(folder, overwrite=overwrite, text=text)
    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.absolute().parent) as scratch:
            _write(measurements, Path(scratch) / "new", text)
            if target.exists():
                os.replace(target, Path(scratch) / "old")
            os.replace(Path(scratch) / "new", target)
    except OSError as error:
        raise MachineError(f"{target} could not be written: {error}. Nothing was left half-written.") from error
    return target


def check_target(folder: str | Path, *, overwrite: bool = False, text: str = TEXT) -> Path:
    """The folder as a path, if a result can be saved there. Raises InvalidResults."""
    target = Path(folder)
    if target.exists() and not (overwrite and (target / text).is_file()):
        replaceable = (target / text).is_file()
        hint = "Overwrite it (overwrite=True, --overwrite)" if replaceable else f"It is not {_kind(text)}"
        raise InvalidResults(f"{target} exists already. {hint}, or choose another name.")
    return target


def open_measurements(folder: str | Path, *, text: str = TEXT) -> Measurements:
    """What `save` wrote. Raises InvalidResults for a folder that is missing, damaged, or of a newer version."""
    folder = Path(folder)
    if not (folder / text).is_file():
        what = f"has no {text}: it is not {_kind(text)}" if folder.is_dir() else "is not there"
        command = {TEXT: "trace"}.get(text, "attribute")
        raise InvalidResults(f"{folder} {what}. Name a folder that was written by save() or `{command} --out`.")
    try:
        document = json.loads((folder / text).read_text(encoding="utf-8"))
        digest, content = document["sha256"], document["content"]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidResults(f"{folder / text} is damaged: {error!r}. Make the trace again.") from None
    if document.get("schema", 0) > SCHEMA:
        raise InvalidResults(
            f"{folder} was written by a newer version (schema {document['schema']}; this one reads {SCHEMA}). "
            "Upgrade causal-tracing to open it."
        )
    _check(folder / text, digest, _canonical(content))
    try:
        arrays = (folder / ARRAYS).read_bytes()
    except OSError as error:
        raise InvalidResults(f"{folder / ARRAYS} cannot be read: {error}. Make the trace again.") from None
    _check(folder / ARRAYS, content["arrays"], arrays)
    with np.load(io.BytesIO(arrays), allow_pickle=False) as numbers:
        data = _dataset(content["variables"], numbers)
    return Measurements(data=data, provenance=content["provenance"])


def _kind(text: str) -> str:
    return f"a saved {text.removesuffix('.json')}"


def _write(measurements: Measurements, folder: Path, text: str) -> None:
    folder.mkdir()
    numbers, described = io.BytesIO(), {}
    data, arrays = measurements.data, {}
    for name, variable in data.variables.items():
        described[str(name)] = entry = {"dims": list(variable.dims), "coordinate": name in data.coords}
        if variable.dtype.kind in "OUT":  # text stays in JSON: fixed-width arrays would lose trailing NULs
            entry["text"] = variable.values.tolist()
        else:
            arrays[str(name)] = variable.values
    np.savez_compressed(numbers, **arrays)
    content = {
        "provenance": measurements.provenance,
        "variables": described,
        "arrays": hashlib.sha256(numbers.getvalue()).hexdigest(),
    }
    document = {"schema": SCHEMA, "sha256": hashlib.sha256(_canonical(content)).hexdigest(), "content": content}
    pairs = "".join(json.dumps(pair) + "\n" for pair in measurements.provenance.get("pairs", ()))
    files = {ARRAYS: numbers.getvalue(), text: json.dumps(document, indent=1).encode(), PAIRS: pairs.encode()}
    for name, payload in files.items():
        with open(folder / name, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())


def _dataset(described: Mapping[str, Any], numbers: Mapping[str, np.ndarray]) -> xr.Dataset:
    variables, coordinates = {}, {}
    for name, entry in described.items():
        values = np.array(entry["text"], dtype=object) if "text" in entry else numbers[name]
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
