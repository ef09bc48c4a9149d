"""A trace as a few numbers and as tensors, and the recipes of the documentation on stubs of those programs."""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import causal_tracing as ct
from causal_tracing.errors import InvalidOption
from causal_tracing.report import scalars as module
from made import measurements, synthetic
from pages import example, with_units

DOCS = Path(__file__).parents[2] / "docs" / "results.md"


def test_one_pair_has_its_total_effect_and_strongest_sites():
    trace = ct.Trace(measurements([[1, 2], [1.5, 0]], [[3, 1], [3, 3]]))
    assert trace.scalars() == {
        "pairs": 1, "clean": 3, "corrupt": 1, "total_effect": 2, "resid_post/restoration": 1,
        "resid_post/restored_fraction": 0.5, "resid_post/layer": 0,
    }  # fmt: skip
    assert all(type(value) is float for value in trace.scalars().values())


def test_heads_and_neurons_are_there_and_undefined_numbers_are_not():
    found = ct.Trace(with_units()).scalars()
    assert {"z/restoration", "k/layer", "neurons/restoration"} <= {*found}
    none = ct.Trace(measurements([[np.nan]], [[np.nan]], clean=np.nan))
    assert none.scalars() == {"pairs": 1, "corrupt": 1}
    with pytest.raises(InvalidOption, match="There is no metric 'x'"):
        none.scalars(metric="x")


def test_many_pairs_have_means_with_intervals():
    trace = synthetic(0)
    found, means = trace.scalars(), trace.evidence()
    peak = means.peak("resid_post")
    assert peak is not None
    assert found["pairs"] == 12
    assert found["total_effect_low"] < found["total_effect"] == means.total.estimate.item() < found["total_effect_high"]
    assert found["resid_post/restoration"] == peak.restoration.item()
    assert found["resid_post/restoration_low"] == peak.restoration_low.item()
    assert found["resid_post/layer"] == peak.layer.item()


def test_names_are_such_as_every_program_takes_and_there_are_never_too_many(monkeypatch):
    found = ct.Trace(with_units()).scalars()
    assert all(re.fullmatch(r"[A-Za-z0-9_/]+", name) for name in found)
    assert len(found) <= module.MOST == 50
    monkeypatch.setattr(module, "MOST", 8)
    assert [*ct.Trace(with_units()).scalars()] == [*found][:7]  # whole components, or none of their numbers


def test_tensors_are_a_components_effects_by_layer_and_position():
    trace = ct.Trace(with_units())
    found = trace.tensors()
    assert [*found] == ["resid_post", "attn_out", "mlp_out"]
    assert found["attn_out"].shape == (3, 3)
    assert found["attn_out"][1, 2].item() == trace.effects.restoration.sel(
        metric=trace.measurements.metric, component="attn_out", layer=1, position=2
    )
    assert torch.isnan(found["resid_post"][0, 2])
    assert trace.tensors("disruption", of="heads")["z"].shape == (3, 4, 3)
    with pytest.raises(InvalidOption, match="no effect 'restored'"):
        trace.tensors("restored")


class Stub(ModuleType):
    """A module that remembers what its functions are called with, however they are reached."""

    def __init__(self, name: str, calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]]) -> None:
        super().__init__(name)
        self.calls = calls

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Stub(f"{self.__name__}.{name}", self.calls)

    def __call__(self, *given: Any, **named: Any) -> "Stub":
        self.calls.append((self.__name__.rpartition(".")[2], given, named))
        return self

    def __enter__(self) -> "Stub":
        return self

    def __exit__(self, *_: object) -> None: ...


def recipes() -> dict[str, str]:
    """The blocks of Python beneath "Logging a run", by the module that they import first."""
    text = DOCS.read_text(encoding="utf-8").partition("## Logging a run")[2].partition("\n## ")[0]
    found = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return {re.findall(r"(?:import|from) ([\w.]+)", block)[0]: block for block in found}


@pytest.mark.parametrize("name", ["wandb", "mlflow", "torch.utils.tensorboard"])
def test_the_recipes_log_the_numbers(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    monkeypatch.setitem(sys.modules, name, Stub(name, calls))
    monkeypatch.chdir(tmp_path)
    trace = ct.Trace(example())
    trace.save("run")
    block = recipes()[name]
    assert len(block.splitlines()) <= 5
    exec(block, {"trace": trace})
    logged: dict[str, float] = {}
    for _, given, _ in calls:
        if given and isinstance(given[0], dict):
            logged |= given[0]
        elif len(given) == 2 and isinstance(given[0], str) and isinstance(given[1], float):
            logged[given[0]] = given[1]
    assert logged == trace.scalars()
