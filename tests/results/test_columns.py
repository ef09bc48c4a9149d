"""What a column is comes with the data: a number is a token, a text a role or span, however the text is written."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import causal_tracing as ct
from causal_tracing.report import terminal
from causal_tracing.report.document import document
from causal_tracing.report.figures.look import where
from causal_tracing.report.labels import place
from causal_tracing.report.page.text import role_row, token_row
from causal_tracing.results.columns import columns_of, is_token, labelled, tokens_among
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.ranked import has_sum
from causal_tracing.results.select import select, site_row, strongest
from causal_tracing.results.storage.saved import from_parts, open_measurements, save, to_parts
from made import measurements


def with_columns(*columns: Any) -> Measurements:
    """Three layers by these columns, of prompts of three tokens."""
    values = np.arange(9.0).reshape(3, 3)
    made = measurements(1 + values, 3 - values)
    blocks = made.maps["blocks"].isel(position=range(len(columns))).assign_coords(position=labelled(columns))
    return Measurements(pairs=made.pairs, maps={"blocks": blocks}, provenance=made.provenance)


def test_labels_keep_what_each_column_is():
    assert labelled([2, 0]).dtype.kind == "i"
    assert labelled([2, "last", 1]).tolist() == [2, "last", 1]
    assert [is_token(each) for each in (2, np.int64(2), "2")] == [True, True, False]
    assert tokens_among(with_columns(2, "last", 0).maps["blocks"]) == [2, 0]


def test_a_span_that_is_written_as_a_number_is_no_token():
    """Version 0.1.0 let spans be called so: what it saved is shown as what it is."""
    found = select(with_columns("1", "2"))
    row = site_row(found, "resid_post", 1, "1")
    assert (row.position, row.clean_token, row.role) == ("1", "", "1")
    assert place(row) == "the 1 token"
    assert where(found, "1") == "1"
    assert terminal._label(found, "1") == "1"
    assert token_row(found, "1") == role_row("1") == {"label": "1", "spoken": "the 1 token", "differs": False}
    assert not has_sum(found)
    table = ct.Trace(with_columns("1", "2")).to_dataframe()
    assert {*table.role} == {"1", "2"}
    assert {*table.clean_token} == {""}


def test_a_token_among_roles_is_a_token():
    trace = ct.Trace(with_columns(2, "last"))
    found = select(trace.measurements)
    row = site_row(found, "resid_post", 1, 2)
    assert (row.position, row.clean_token) == (2, " t2")
    assert where(found, 2) == "2 t2"
    assert terminal._label(found, 2) == "t2"
    assert token_row(found, 2)["token"] == 2
    assert "token" not in token_row(found, "last")
    assert {row.position for row in strongest(found, 9)} == {2, "last"}
    table = trace.to_dataframe()
    assert {*table.clean_token[table.position == 2]} == {" t2"}
    assert {*table.position} == {2, "last"}
    assert trace.curve(2).sizes["layer"] == 3
    assert json.loads(json.dumps(document(trace.measurements)))["positions"] == [2, "last"]
    assert "position 2" in trace.to_html()
    assert trace.plot().axes


@pytest.mark.parametrize("ending", ["csv", "parquet", "nc"])
def test_files_of_other_programs_hold_both(ending, tmp_path):
    file = ct.Trace(with_columns(2, "last")).export(tmp_path / f"trace.{ending}")
    if ending == "nc":
        with xr.open_dataset(file, engine="h5netcdf") as found:
            assert found.position.values.tolist() == ["2", "last"]
        return
    table = pd.read_csv(file) if ending == "csv" else pd.read_parquet(file)
    assert {*table.position} == {"2", "last"}


def test_columns_are_saved_as_what_they_are(tmp_path):
    save(with_columns(2, "last"), tmp_path / "saved")
    assert columns_of(open_measurements(tmp_path / "saved").maps["blocks"]) == [2, "last"]


@pytest.mark.parametrize(("asked", "columns"), [([2, "last"], [2, "last"]), (["2", "last"], ["2", "last"])])
def test_texts_of_the_first_version_are_what_was_asked_for(asked, columns):
    made = with_columns("2", "last")
    again = from_parts(*to_parts(made), {"options": {"positions": asked}})
    assert columns_of(again.maps["blocks"]) == columns
