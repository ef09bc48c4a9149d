"""What a run's chunks were computed on: kept with each, and said where there are several kinds."""

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import causal_tracing as ct
from causal_tracing.experiments.chunks import added
from causal_tracing.models import devices
from causal_tracing.models.devices import kinds_of_device, short_products
from causal_tracing.models.model import Model
from causal_tracing.report.document import document
from causal_tracing.report.words.method import device_sentences
from causal_tracing.report.words.one_pair import overview
from causal_tracing.results.storage.run_folder import RESULTS
from causal_tracing.testing import FakeBackend, fake_model
from made import model, pair

__all__ = ["model"]

OLD, NEW = ({"name": name, "short_products": False} for name in ("an old GPU", "a new GPU"))
SHORT = {"name": "a new GPU", "short_products": True}
ASKED: dict[str, Any] = {"components": ["resid_post"], "spot_checks": 0, "progress": False}


@pytest.fixture
def run(model: Model, tmp_path: Path) -> Path:
    """A run of two chunks."""
    ct.run(model, [pair(n, id=f"p{n}") for n in range(10)], tmp_path / "run", **ASKED)
    return tmp_path / "run"


def records(run: Path) -> list[dict[str, Any]]:
    with sqlite3.connect(run / RESULTS) as connection:
        return [json.loads(text) for (text,) in connection.execute("SELECT record FROM chunks ORDER BY chunk")]


def measured_on(run: Path, devices: Sequence[list[dict[str, Any]] | None]) -> None:
    """As if the chunks had been measured there; None as 0.1.0 kept it."""
    with sqlite3.connect(run / RESULTS) as connection:
        for chunk, (record, there) in enumerate(zip(records(run), devices, strict=True)):
            text = {name: value for name, value in record.items() if name != "devices"}
            text |= {} if there is None else {"devices": there}
            connection.execute("UPDATE chunks SET record = ? WHERE chunk = ?", (json.dumps(text), chunk))


def test_each_chunk_keeps_what_it_was_computed_on(model: Model, run: Path):
    (here,) = kinds_of_device(model)
    assert here["name"]
    assert [record["devices"] for record in records(run)] == [[here], [here]]
    found = ct.open_trace(run)
    assert found.provenance["devices"] == [here]
    assert "device" not in found.summary()
    assert "warnings" not in document(found.measurements)


def test_several_kinds_are_said(run: Path):
    measured_on(run, [[OLD], [NEW]])
    found = ct.open_trace(run)
    said = (
        "These numbers were computed on several kinds of device: a new GPU; an old GPU. They agree to about 1e-04 of "
        "the largest logit only."
    )
    assert found.provenance["devices"] == [NEW, OLD]
    assert found.summary().count(said) == found.summary().count(f"\nWarning: {said}") == 1
    assert overview(found.measurements, averaged="No mean.").count(said) == 1
    assert f"Warning: {said}" in found.summary(pair="p1")
    assert document(found.measurements)["warnings"] == [said]


def test_of_an_old_folder_nothing_is_known_or_said(run: Path):
    measured_on(run, [None, [NEW]])  # begun by 0.1.0, and gone on with
    found = ct.open_trace(run)
    assert found.provenance["devices"] == [NEW]
    assert "kinds of device" not in found.summary()


def test_pairs_of_a_chunk_that_were_measured_alone_may_be_from_several():
    part = {"started": "now", "seconds": 1.0, "worlds": 2, "worlds_skipped": 0}
    part |= {"spot_checks": {"cells": 0, "largest_difference": None}}
    assert added([part | {"devices": [NEW]}, part | {"devices": [OLD]}, part])["devices"] == [NEW, OLD]


def test_products_with_fewer_bits_are_said():
    (said,) = device_sentences({"devices": [SHORT], "rounding": 1e-4})
    assert said.startswith("Products of float32 numbers were made with fewer bits (TF32 or bfloat16) on a new GPU: ")
    several, short = device_sentences({"devices": [OLD, SHORT], "rounding": 1e-4})
    assert several.endswith("an old GPU; a new GPU. They agree up to rounding only.")  # and not to float32's
    assert short == said


def test_a_kind_is_all_that_a_model_computes_on(model: Model, monkeypatch: pytest.MonkeyPatch):
    both = frozenset({torch.device("cpu"), torch.device("cuda", 1)})
    monkeypatch.setattr(Model, "devices", both)
    monkeypatch.setattr(devices, "_name", lambda device: f"a {device.type}")
    monkeypatch.setattr(devices, "short_products", lambda device: device.type == "cuda")
    assert kinds_of_device(model) == [{"name": "a cpu + a cuda", "short_products": True}]


def test_where_a_backend_of_its_own_computes_is_not_known():
    backend = FakeBackend(lambda run: [float(len(run.edits)), 0.0])
    assert kinds_of_device(fake_model(["yes", "no"], backend)) == []


def test_a_products_bits_are_seen(monkeypatch: pytest.MonkeyPatch):
    assert not short_products(torch.device("cpu"))
    full = torch.full

    def as_bfloat16(*args: Any, **options: Any) -> torch.Tensor:
        return full(*args, **options).bfloat16().float()

    monkeypatch.setattr(torch, "full", as_bfloat16)
    assert short_products(torch.device("cpu"))
