"""A trace as files that other programs read: one long table (CSV, Parquet), or the labelled arrays (netCDF)."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from causal_tracing.errors import InvalidOption, MachineError
from causal_tracing.results.columns import columns_of, is_token
from causal_tracing.results.effects import AVERAGED, effects
from causal_tracing.results.lens import LENS, lens_of, lens_table
from causal_tracing.results.means import clusters_of
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.select import BESIDE
from causal_tracing.results.site_kinds import kind_of
from causal_tracing.results.storage.atomic import write_whole

SCHEMA = 1
NEEDED = {".csv": (), ".parquet": ("pyarrow",), ".nc": ("h5netcdf", "h5py")}
# What spreadsheets take for a formula, behind what they strip; full-width signs are formulas to some of them.
FORMULA = re.compile(r"""[\s\ufeff\u200b"']*[=+\-@＝＋－＠]|[\t\r\n]""")
UNWRITABLE = re.compile("[\0\ud800-\udfff]")


def to_dataframe(measurements: Measurements, of: str | None = None) -> pd.DataFrame:
    """A row for each pair, cell and effect, with a column for each metric, in its unit (`attrs["units"]`).

    The effects are those that were measured, and the interaction; fractions and bypass follow from them and the total
    effect. NaN where undefined; `status` says why, by the first metric that the pair has. Columns of text are
    categories. Tokens are "" where a position is a role. Of "lens" it is what the logit lens read, a row for each pair,
    run, layer and token (`results/lens.py`). Raises InvalidOption where there are no heads or neurons, or no lens.
    """
    if of == LENS:
        return lens_table(measurements)
    found = effects(measurements, of)
    kind = kind_of(found)
    dims = ["pair", *kind.axes]
    asked = dict.fromkeys((*AVERAGED, *BESIDE))  # direct paths are both
    names = [name for name in asked if name in found and kind.column in found[name].dims]
    shape = (*(found.sizes[dim] for dim in dims), len(names))
    grid = _Grid(shape)
    clusters = _clusters(measurements, found)
    columns: dict[str, Any] = {
        "pair": grid.texts(found.pair.values, 0),
        "cluster": grid.texts(clusters, 0),
        "component": grid.texts(found.component.values, 1),
    }
    for axis, dim in enumerate(dims[2:], start=2):
        labels = found[dim].values
        columns[dim] = (grid.texts if labels.dtype.kind == "O" else grid.numbers)(labels, axis)
    if kind.column == "position":
        columns |= {name: grid.texts(texts, 0, len(dims) - 1) for name, texts in _tokens(found).items()}
    columns["effect"] = grid.texts(np.array(names, object), len(dims))
    columns["status"] = grid.texts(_status(found, dims), *range(len(dims)))
    units = {str(metric): str(unit) for metric, unit in zip(found.metric.values, found.unit.values, strict=True)}
    units.pop("entropy", None)  # shown raw, and never an effect
    for metric in units:
        chosen = found[names].sel(metric=metric)
        columns[metric] = np.stack([chosen[name].transpose(*dims).values for name in names], axis=-1).reshape(-1)
    table = pd.DataFrame(columns)
    table.attrs["units"] = units
    return table


def export(measurements: Measurements, path: str | Path, of: str | None = None) -> Path:
    """Writes a file, by its ending: .csv or .parquet (the long table of `to_dataframe`), .nc (netCDF: every effect).

    The file appears whole or not at all. In CSV, text that a spreadsheet would take for a formula (it starts with one
    of = + - @ behind any white space or quotes, or with a tab or a line break) gets an apostrophe in front; numbers
    stay as they are. NUL and lone surrogates, which these files cannot hold, are written as \\x00 and such as \\udce9.
    netCDF has the provenance as JSON in the attribute `provenance`. Raises InvalidOption, MachineError.
    """
    target = Path(path)
    ending = target.suffix.lower()
    if ending not in NEEDED:
        what = f"has the ending {target.suffix!r}" if target.suffix else "has no ending"
        raise InvalidOption(f"{target} {what}, which names no format. Valid: {', '.join(NEEDED)}.")
    # Asked before the table is made, which may take long.
    for package in NEEDED[ending]:
        _require(package, ending)
    fill = {".csv": _csv, ".parquet": _parquet, ".nc": _netcdf}[ending]
    write_whole(target, partial(fill, measurements, of))
    return target


class _Grid:
    """Columns of the long table: values that vary along some axes of the cells, repeated along the others."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def numbers(self, values: np.ndarray, *axes: int) -> np.ndarray:
        """Values over these axes (in rising order), for each row."""
        kept = [self.shape[axis] if axis in axes else 1 for axis in range(len(self.shape))]
        return np.broadcast_to(values.reshape(kept), self.shape).reshape(-1)

    def texts(self, values: np.ndarray, *axes: int) -> pd.Categorical:
        """The same for text, which is kept once."""
        codes, found = pd.factorize(values.astype(object).reshape(-1))
        return pd.Categorical.from_codes(self.numbers(codes, *axes), pd.Index(found, dtype=object))


def _clusters(measurements: Measurements, found: xr.Dataset) -> np.ndarray:
    """Each pair's cluster, or its own id; with the word before it where a cluster is called as another pair is."""
    exact = clusters_of(measurements, found.pair.values)
    plain = [name for _, name in exact]
    return np.array(plain if len({*plain}) == len({*exact}) else [" ".join(each) for each in exact], dtype=object)


def _tokens(found: xr.Dataset) -> dict[str, np.ndarray]:
    """Role and tokens over (pair, position); of a position that is a role, itself, and no tokens."""
    positions = columns_of(found)
    sources = {"role": "clean_role", "clean_token": "clean_token", "corrupt_token": "corrupt_token"}
    texts = {name: found[source].transpose("pair", "token").values for name, source in sources.items()}
    columns = {name: np.full((found.sizes["pair"], len(positions)), "", dtype=object) for name in sources}
    for n, position in enumerate(positions):
        for name, column in columns.items():
            if is_token(position):
                column[:, n] = texts[name][:, position]
            elif name == "role":
                column[:, n] = str(position)
    return columns


def _status(found: xr.Dataset, dims: Sequence[str]) -> np.ndarray:
    """Each cell's status by the first metric that its pair has."""
    first, *others = found.status.transpose("metric", *dims).values
    # A pair without a foil has none of the metrics that need one; the others know its cells.
    for other in others:
        first = np.where(first == "undefined", other, first)
    return first


def _require(package: str, ending: str) -> None:
    """Raises MachineError where a package that writes these files is not installed."""
    try:
        import_module(package)
    except ImportError:
        raise MachineError(
            f'Writing {ending} needs {package}, which is not installed. Run: pip install "causal-tracing[export]"'
        ) from None


def _csv(measurements: Measurements, of: str | None, path: Path) -> None:
    table = _changed(to_dataframe(measurements, of), lambda text: _inert(_writable(text)))
    table.to_csv(path, index=False, encoding="utf-8", lineterminator="\r\n")  # so that text with either is quoted


def _parquet(measurements: Measurements, of: str | None, path: Path) -> None:
    with path.open("wb") as file:  # pyarrow opens no file whose name is not UTF-8
        _changed(to_dataframe(measurements, of), _writable).to_parquet(file, engine="pyarrow", index=False)


def _netcdf(measurements: Measurements, of: str | None, path: Path) -> None:
    found = lens_of(measurements) if of == LENS else effects(measurements, of)
    # Coordinates too: labels of tokens are where such letters come from.
    texts = {name: each for name, each in found.variables.items() if each.dtype.kind in "OUT"}
    changed = {name: (each.dims, _array([_writable(str(text)) for text in each.values.flat], each.shape))
               for name, each in texts.items()}  # fmt: skip
    record = json.dumps(dict(measurements.provenance))
    described = {"schema": SCHEMA, "table": of if of == LENS else measurements.kind(of), "provenance": record}
    found.assign(changed).assign_attrs(described).to_netcdf(path, engine="h5netcdf", format="NETCDF4")


def _changed(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """The table with every text changed, as columns of text (tokens among roles too): two texts may become one."""
    changed: Mapping[str, Any] = {
        name: np.array([change(str(text)) for text in table[name].cat.categories], dtype=object)[table[name].cat.codes]
        for name in table.columns
        if isinstance(table[name].dtype, pd.CategoricalDtype)
    }
    return table.assign(**changed)


def _array(texts: list[str], shape: tuple[int, ...]) -> np.ndarray:
    return np.array(texts, dtype=object).reshape(shape)


def _inert(text: str) -> str:
    """A text that no spreadsheet runs."""
    return f"'{text}" if FORMULA.match(text) else text


def _writable(text: str) -> str:
    """A text that UTF-8 and HDF5 can hold."""
    return UNWRITABLE.sub(lambda found: ascii(found.group())[1:-1], text)
