"""Traces as tables and files: every number is the one that the trace has, and text is text wherever it is opened."""

import csv
import json
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from typer.testing import CliRunner

import causal_tracing as ct
from causal_tracing.cli.app import app
from causal_tracing.errors import InvalidOption, MachineError
from causal_tracing.models.model import Model
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.storage.join import joined
from joint import tiny
from made import longer, measurements, pair, taken_apart
from pages import with_units

LEADING = [
    "pair",
    "cluster",
    "component",
    "layer",
    "position",
    "role",
    "clean_token",
    "corrupt_token",
    "effect",
    "status",
]
METRICS = ["logit_diff", "log_prob", "logit", "prob", "prob_diff", "neg_kl", "neg_rank"]
ATTACKS = ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", " =1", '"=1', "\n=1", "\tx", "\rx", " '\"@x", "\u00a0=1", "＝1"]
HARMLESS = ["plain", "a=1", "'quoted'", " 3-1", "1,5;2", 'say "x"', "line\r\nbreak", ""]


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


@pytest.fixture(scope="module")
def trace(model: Model) -> ct.Trace:
    """Prompts of two lengths, one pair without a foil, two of one cluster, one label; heads and some neurons."""
    pairs = [pair(0, cluster="fact"), pair(1, cluster="fact"), longer(2), pair(3, foil=None, id="odd")]
    neurons = {1: [3, 60], 2: [5]}
    return ct.trace(
        model,
        pairs,
        metric="logit_diff",
        heads=["z", "k"],
        neurons=neurons,
        neuron_positions=["last", 2],
        metrics="all",
    )


def texted(texts: list[str]) -> ct.Trace:
    """A pair for each text, which is its id, its first clean token and its cluster."""
    made = measurements([[2.0, -1.5], [1 / 3, np.nan]], [[1.0, -7.0], [3.0, 1e-300]])
    parts = []
    for text in texts:
        data = made.numbers().assign_coords(pair=np.array([text], object)).copy(deep=True)
        data.clean_token.values[0, 0] = text
        parts.append(taken_apart(data, {}))
    pairs = [{"id": text, "cluster": f"{text}c"} for text in texts]
    return ct.Trace(joined(parts, {**made.provenance, "pairs": pairs}))


def inert(text: str) -> str:
    """How an attack is to stand in a file."""
    return "'" + text


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("of", ["blocks", "heads", "neurons"])
def test_every_row_is_its_cell(trace: ct.Trace, of: str):
    table, found = trace.to_dataframe(of), {"blocks": trace.effects}.get(of) or getattr(trace, of)
    unit = {"heads": ["head"], "neurons": ["neuron"]}.get(of, [])
    leading = [*LEADING[:4], *unit, *LEADING[4:]]
    assert table.columns.tolist() == [*leading, *METRICS]
    dims = ["pair", "component", "layer", *unit, "position"]
    assert len(table) == 3 * np.prod([found.sizes[dim] for dim in dims])
    assert not table.duplicated([*dims, "effect"]).any()
    clusters = {"pair-0": "fact", "pair-1": "fact", "pair-2": "pair-2", "odd": "odd"}
    for row in table.sample(200, random_state=1).to_dict("records"):
        cell = found.sel({dim: row[dim] for dim in dims})
        for metric in METRICS:
            np.testing.assert_array_equal(row[metric], cell[row["effect"]].sel(metric=metric).item())
        of_pair, position = found.sel(pair=row["pair"]), row["position"]
        if position == "last":
            tokens = ("last", "", "")
        else:
            names = ("clean_role", "clean_token", "corrupt_token")
            tokens = tuple(of_pair[name].values[int(position)] for name in names)
        assert (row["role"], row["clean_token"], row["corrupt_token"]) == tokens
        assert row["cluster"] == clusters[row["pair"]]
        shown = "log_prob" if row["pair"] == "odd" else "logit_diff"
        assert row["status"] == cell.status.sel(metric=shown).item()
    assert {*table.status} >= {"ok", "unpaired"}
    assert "undefined" not in {*table.status}


def test_what_is_undefined_stays_so_and_nothing_else_is(trace: ct.Trace):
    table = trace.to_dataframe()
    assert table.logit_diff[table.pair == "odd"].isna().all()
    measured = table[(table.pair == "odd") & (table.status == "ok")]
    assert measured.log_prob.notna().all()
    assert table.log_prob[table.status == "unpaired"].isna().all()
    assert table.attrs["units"]["log_prob"] == "nats"
    assert "entropy" not in table.attrs["units"]


def test_sums_and_severed_effects_are_rows_too(model: Model):
    trace = ct.trace(model, [pair(0), pair(1)], window=3, sever=["mlp_out"])
    table = trace.to_dataframe()
    names = ["restoration", "disruption", "interaction", "restoration_sum", "disruption_sum", "severed_mlp_out"]
    assert table.effect.cat.categories.tolist() == names
    for name in names:
        rows = table[table.effect == name]
        expected = trace.effects[name].sel(metric="prob").transpose("pair", "component", "layer", "position")
        np.testing.assert_array_equal(rows["prob"], expected.values.ravel())
    assert "no_window" in {*table.status}


def test_roles_are_columns_without_tokens(model: Model):
    table = ct.trace(model, [pair(0), longer(1)], positions=["subject_last", "last"]).to_dataframe()
    assert {*table.position} == {*table.role} == {"subject_last", "last"}
    assert (table.position.astype(str) == table.role.astype(str)).all()
    assert {*table.clean_token} == {*table.corrupt_token} == {""}


def test_a_cluster_that_is_called_as_a_pair_is_not_that_pair():
    made = texted(["a", "b"])
    record = {**made.provenance, "pairs": [{"id": "a", "cluster": "b"}, {"id": "b"}]}
    table = ct.Trace(
        Measurements(pairs=made.measurements.pairs, maps=made.measurements.maps, provenance=record)
    ).to_dataframe()
    assert {*table.cluster} == {"cluster b", "pair b"}


def test_many_pairs_take_seconds():
    random = np.random.default_rng(0)
    one = measurements(random.normal(size=(36, 25)), random.normal(size=(36, 25)))
    data = one.numbers().isel(pair=[0] * 200).assign_coords(pair=[f"p{n}" for n in range(200)])
    trace = ct.Trace(taken_apart(data, one.provenance))
    started = time.perf_counter()
    assert len(trace.to_dataframe()) == 200 * 900 * 3
    assert time.perf_counter() - started < 20


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_text_in_a_csv_is_a_formula(attack: str, tmp_path: Path):
    path = texted([attack, "plain"]).export(tmp_path / "trace.csv")
    rows = [row for row in rows_of(path) if row["pair"] != "plain"]
    assert {row["pair"] for row in rows} == {inert(attack)}
    assert {row["cluster"] for row in rows} == {inert(attack + "c")}
    assert {row["clean_token"] for row in rows} == {inert(attack), " t1"}


def test_harmless_text_and_numbers_stay_as_they_are(tmp_path: Path):
    trace = texted(HARMLESS)
    rows = rows_of(trace.export(tmp_path / "trace.csv"))
    table = trace.to_dataframe()
    for name in ("pair", "cluster", "clean_token", "corrupt_token", "status"):
        assert [row[name] for row in rows] == table[name].tolist()
    for metric in METRICS:
        assert [row[metric] for row in rows if row[metric]] == [repr(x) for x in table[metric] if x == x]
        assert [row[metric] == "" for row in rows] == table[metric].isna().tolist()
    assert any(row["logit_diff"].startswith("-") for row in rows)
    again = pd.read_csv(tmp_path / "trace.csv")
    np.testing.assert_allclose(again[METRICS], table[METRICS], rtol=1e-15)


STRANGE = ["nul \0 here", "lone \udce9 surrogate", "東京 \u202e", "\0=1"]
WRITTEN = ["nul \\x00 here", "lone \\udce9 surrogate", "東京 \u202e", "\\x00=1"]


@pytest.mark.parametrize("ending", ["csv", "parquet", "nc"])
def test_strange_text_breaks_no_format(ending: str, tmp_path: Path):
    trace = texted(["a", "b", "c", "d"])
    trace.measurements.pairs.clean_token.values[:, 0] = STRANGE
    path = trace.export(tmp_path / f"trace.{ending}")
    if ending == "nc":
        with xr.open_dataset(path, engine="h5netcdf") as found:
            assert found.clean_token.values[:, 0].tolist() == WRITTEN
        return
    table = pd.read_csv(path) if ending == "csv" else pd.read_parquet(path)
    assert table.clean_token[table.position == 0].drop_duplicates().tolist() == WRITTEN
    assert trace.to_dataframe().clean_token.cat.categories.tolist() == [STRANGE[0], " t1", *STRANGE[1:]]


def test_parquet_is_the_table(trace: ct.Trace, tmp_path: Path):
    for of in ("blocks", "heads", "neurons"):
        expected = trace.to_dataframe(of)
        found = pd.read_parquet(trace.export(tmp_path / f"{of}.parquet", of))
        assert found.columns.tolist() == expected.columns.tolist()
        for name in expected.columns:
            if name in METRICS:
                np.testing.assert_array_equal(found[name], expected[name])
            else:
                values, numeric = expected[name].tolist(), pd.api.types.is_numeric_dtype(expected[name])
                assert found[name].tolist() == (values if numeric else [*map(str, values)])


@pytest.mark.parametrize("of", ["blocks", "heads", "neurons"])
def test_netcdf_is_the_effects(trace: ct.Trace, tmp_path: Path, of: str):
    expected = {"blocks": trace.effects}.get(of) or getattr(trace, of)
    with xr.open_dataset(trace.export(tmp_path / "trace.nc", of), engine="h5netcdf") as found:
        assert {*found.data_vars} == {*expected.data_vars}
        assert {*found.coords} == {*expected.coords}
        for name, variable in expected.variables.items():
            assert found[name].dims == variable.dims
            if variable.dtype.kind in "fbiu":
                np.testing.assert_array_equal(found[name].values, variable.values, err_msg=str(name))
            else:
                assert found[name].values.tolist() == np.vectorize(str)(variable.values).tolist(), name
        assert json.loads(found.attrs["provenance"]) == json.loads(json.dumps(dict(trace.provenance)))
        assert (found.attrs["schema"], found.attrs["table"]) == (1, of)


def test_a_long_provenance_fits(tmp_path: Path):
    made = texted(["a", "b"])
    record = {**made.provenance, "pairs": [{"id": f"{n}", "clean": "x" * 1000} for n in range(300)]}
    path = ct.Trace(replace(made.measurements, provenance=record)).export(tmp_path / "trace.nc")
    with xr.open_dataset(path, engine="h5netcdf") as found:
        assert json.loads(found.attrs["provenance"])["pairs"] == record["pairs"]


WRITERS = {
    "csv": (pd.DataFrame, "to_csv"), "parquet": (pd.DataFrame, "to_parquet"), "nc": (xr.Dataset, "to_netcdf"),
}  # fmt: skip


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["disk", "stop"])
def test_no_file_is_left_half_written(ending: str, error: BaseException, tmp_path: Path, monkeypatch):
    def broken(self: Any, path: Any, **_: Any) -> None:
        with nullcontext(path) if hasattr(path, "write") else Path(path).open("wb") as file:
            file.write(b"half of ")
        raise error

    target = tmp_path / f"trace.{ending}"
    target.write_text("what was there")
    monkeypatch.setattr(*WRITERS[ending], broken)
    with pytest.raises(MachineError if isinstance(error, OSError) else KeyboardInterrupt) as raised:
        texted(["a"]).export(target)
    if isinstance(error, OSError):
        assert f"trace.{ending} could not be written" in str(raised.value)
        assert "No space left" in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == [f"trace.{ending}"]
    assert target.read_text() == "what was there"


def test_a_file_is_replaced_and_may_be_read_by_others(tmp_path: Path):
    target = tmp_path / "trace.csv"
    target.write_text("what was there")
    assert texted(["a"]).export(target) == target
    assert target.read_text().startswith("pair,cluster,component")
    assert target.stat().st_mode & 0o777 == 0o644
    with pytest.raises(MachineError, match=r"none/trace\.csv could not be written.*Choose another place"):
        texted(["a"]).export(tmp_path / "none" / "trace.csv")


@pytest.mark.parametrize(("package", "ending"), [("pyarrow", "parquet"), ("h5netcdf", "nc"), ("h5py", "nc")])
def test_what_is_not_installed_is_named(package: str, ending: str, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        MachineError, match=rf'{package}, which is not installed.*pip install "causal-tracing\[export\]"'
    ):
        texted(["a"]).export(tmp_path / f"trace.{ending}")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["trace.xlsx", "trace", "csv"])
def test_an_ending_that_names_no_format_is_an_error(name: str, tmp_path: Path):
    with pytest.raises(InvalidOption, match=r"names no format. Valid: .csv, .parquet, .nc\."):
        texted(["a"]).export(tmp_path / name)
    assert not [*tmp_path.iterdir()]


def test_what_was_not_measured_cannot_be_exported(tmp_path: Path):
    with pytest.raises(InvalidOption, match="has no heads"):
        texted(["a"]).to_dataframe("heads")
    with pytest.raises(InvalidOption, match="has no neurons"):
        texted(["a"]).export(tmp_path / "trace.csv", of="neurons")
    with pytest.raises(InvalidOption, match="nothing called 'head' in a trace. Did you mean 'heads'"):
        texted(["a"]).to_dataframe("head")
    assert not [*tmp_path.iterdir()]


@pytest.fixture(scope="module")
def folders(model: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved trace and a run folder of the same pairs."""
    folder, pairs = tmp_path_factory.mktemp("exports"), [pair(n) for n in range(3)]
    ct.trace(model, pairs).save(folder / "saved")
    ct.run(model, pairs, folder / "run")
    return {"saved": folder / "saved", "run": folder / "run"}


@pytest.mark.parametrize("kind", ["saved", "run"])
def test_the_command_exports_and_reports_both_kinds_of_folder(folders: dict[str, Path], kind: str, tmp_path: Path):
    target = tmp_path / "trace.parquet"
    done = CliRunner().invoke(app, ["export", str(folders[kind]), str(target)])
    assert (done.exit_code, done.stdout) == (0, f"{target}\n")
    np.testing.assert_allclose(
        pd.read_parquet(target).logit_diff, ct.open_trace(folders["saved"]).to_dataframe().logit_diff, atol=2e-5
    )
    done = CliRunner().invoke(app, ["report", str(folders[kind]), "--out", str(tmp_path / "page.html")])
    assert done.exit_code == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert all(f'data-pair="pair-{n}"' in page for n in range(3))


def test_the_command_exports_heads(tmp_path: Path):
    ct.Trace(with_units()).save(tmp_path / "saved")
    done = CliRunner().invoke(app, ["export", str(tmp_path / "saved"), str(tmp_path / "heads.csv"), "--of", "heads"])
    assert done.exit_code == 0
    assert rows_of(tmp_path / "heads.csv")[0]["head"] == "0"
    done = CliRunner().invoke(app, ["export", str(tmp_path / "saved"), str(tmp_path / "heads.txt")])
    assert isinstance(done.exception, InvalidOption)
