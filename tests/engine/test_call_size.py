"""How many tokens a call takes: a constant on a CPU, and elsewhere what is fast there, once for a run."""

from pathlib import Path
from typing import Any

import pytest
import torch

import causal_tracing as ct
from causal_tracing.engine import call_size
from causal_tracing.engine.call_size import ON_CPU, SIZES, call_tokens, enough, largest_product
from causal_tracing.engine.packed import engine
from causal_tracing.models.model import Model
from causal_tracing.results.storage.run_folder import RESULTS, read_manifest
from loaded import fresh


def test_the_smallest_size_that_is_nearly_as_fast_as_any():
    seconds = {2048: 2.0, 4096: 2.1, 8192: 3.2, 16384: 6.2, 32768: 12.3, 65536: 24.6}
    assert enough(SIZES, seconds.__getitem__) == 8192


def test_what_does_not_fit_is_not_looked_at():
    asked = []

    def seconds(size: int) -> float:
        asked.append(size)
        if size > 4096:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return 1.0

    assert enough(SIZES, seconds) == 4096
    assert asked == [2048, 4096, 8192]
    assert enough([8192], seconds) == 8192  # it is capped by the budget
    with pytest.raises(ZeroDivisionError):
        enough(SIZES, lambda _: 1 / 0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_largest_product_of_a_layer(family: str):
    model = fresh(family)
    product = largest_product(model)
    matrices = [weight for weight in model.layers[0].parameters() if weight.ndim == 2]
    assert product.weight.numel() == max(weight.numel() for weight in matrices)
    assert call_size._seconds(model, product, 64) > 0  # pyright: ignore[reportPrivateUsage]


def test_a_cpu_is_not_measured_and_another_device_once(monkeypatch: pytest.MonkeyPatch):
    model, timed = fresh("llama"), []
    assert call_tokens(model) == ON_CPU

    def seconds(_: Model, __: Any, tokens: int) -> float:
        timed.append(tokens)
        return tokens ** (0.5 if tokens <= 16384 else 1.0)

    monkeypatch.setattr(call_size, "_seconds", seconds)
    monkeypatch.setattr(Model, "device", property(lambda _: torch.device("cuda:0")))
    assert call_tokens(model) == 16384
    assert call_tokens(model) == 16384
    assert timed == list(SIZES)


def test_a_run_that_is_gone_on_with_keeps_the_size_that_it_was_begun_with(tmp_path: Path, monkeypatch):
    model, used, real = fresh("llama"), set(), engine.sizes

    def sizes(model: Model, budget: int, call: int | None = None) -> Any:
        used.add(call)
        return real(model, budget, call)

    monkeypatch.setattr(engine, "sizes", sizes)
    pair = ct.Pair(clean="w17 w42 w11 w60", corrupt="w23 w42 w11 w60", answer=" w7", foil=" w8")
    for measured in (7, 9):
        monkeypatch.setattr("causal_tracing.engine.network.call_tokens", lambda _, size=measured: size)
        ct.run(model, pair, tmp_path / "run", components=["resid_post"], progress=False)
        assert read_manifest(tmp_path / "run")["call_tokens"] == 7
        assert used - {None} == {7}  # None: the comparison of the engines
        (tmp_path / "run" / RESULTS).unlink()
