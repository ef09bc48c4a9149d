"""Models whose weights accelerate keeps elsewhere: the same numbers, to the bit, as with the weights in their places.

On one device the same operations run on the same numbers, so that no difference is allowed.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from transformers import AutoModelForCausalLM, PreTrainedModel

import causal_tracing as ct
from causal_tracing.engine.checks.check import accept
from causal_tracing.errors import InvalidResults
from causal_tracing.experiments.manifest import fingerprint
from causal_tracing.models.model import Model
from families import build
from loaded import BY_NAME
from made import WORDS, pair
from offloaded import EMBEDDINGS, WAYS, embeddings_and_a_layer, head, in_memory, on_disk, whole_layers
from tiny import tiny_model

PAIRS = [pair(n) for n in range(2)]
NOISY = pair(0, corrupt=None, corrupt_subject=None)
# Gpt2's head is its embeddings.
CASES = [("llama", way) for way in WAYS] + [("gpt2", way) for way in (on_disk, embeddings_and_a_layer, head)]
KINDS: dict[str, dict[str, Any]] = {
    "packed": {"engine": "packed"},
    "replay": {"engine": "replay"},
    "heads": {"engine": "packed", "components": ["attn_out"], "heads": ["q", "k", "v", "pattern", "z"]},
    "neurons": {"engine": "replay", "components": ["mlp_out"], "neurons": {1: [0, 5]}},
    "noise": {"noise": ct.Noise(scale=3.0), "components": ["mlp_out"]},
}


def traced(model: Model, kind: str) -> ct.Trace:
    return ct.trace(model, NOISY if kind == "noise" else PAIRS[0], progress=False, **KINDS[kind])


@cache
def here(name: str) -> Model:
    return ct.load(build(BY_NAME[name]), WORDS)


@cache
def expected(name: str, kind: str) -> ct.Trace:
    return traced(here(name), kind)


def is_equal(one: ct.Trace, other: ct.Trace) -> bool:
    """Whether all that was measured is the same, and is something."""
    maps = other.measurements.maps
    for kind, arrays in maps.items():
        for name in {"restored", "disrupted"} & set(arrays):
            found, wanted = (trace.measurements.maps[kind][name].values for trace in (one, other))
            assert_array_equal(found, wanted)
            assert np.isfinite(wanted).any()
    return list(one.measurements.maps) == list(maps)


@pytest.mark.parametrize(("name", "way"), CASES, ids=[f"{name}-{way.__name__}" for name, way in CASES])
def test_offloaded_models_are_loaded_and_traced_as_others(name: str, way: Callable[..., Any], tmp_path: Path):
    model = ct.load(way(build(BY_NAME[name]), tmp_path), WORDS)
    assert any(parameter.is_meta for parameter in model.network.parameters())
    assert model.anatomy == here(name).anatomy
    assert (model.device, model.dtype) == (torch.device("cpu"), "float32")
    assert fingerprint(model) == fingerprint(here(name))
    for kind in ("packed", "replay"):
        assert is_equal(traced(model, kind), expected(name, kind))


@pytest.mark.parametrize("kind", ["heads", "neurons", "noise"])
def test_heads_neurons_and_noise_of_offloaded_models(kind: str, tmp_path: Path):
    model = ct.load(embeddings_and_a_layer(build(BY_NAME["llama"]), tmp_path), WORDS)
    assert is_equal(traced(model, kind), expected("llama", kind))


def test_parameters_of_attention_itself_are_fetched_too(tmp_path: Path):
    """gpt_oss has sinks in the module that the packed engine leaves half-way, in the last layer."""
    model = ct.load(on_disk(build(BY_NAME["gpt_oss"]), tmp_path), WORDS)
    assert is_equal(traced(model, "packed"), expected("gpt_oss", "packed"))


@pytest.mark.parametrize("way", [in_memory, whole_layers, embeddings_and_a_layer], ids=lambda way: way.__name__)
def test_gradients_of_offloaded_models(way: Callable[..., Any], tmp_path: Path):
    options: dict[str, Any] = {"progress": False}
    wanted = ct.attribute(here("llama"), PAIRS[0], **options).estimates
    found = ct.attribute(ct.load(way(build(BY_NAME["llama"]), tmp_path), WORDS), PAIRS[0], **options).estimates
    for component, estimate in wanted.items():
        assert_array_equal(found[component], estimate)
        assert np.isfinite(estimate).any()


def saved(folder: Path, **options: Any) -> PreTrainedModel:
    """A tiny llama with tied embeddings out of a folder."""
    tiny_model(tie_word_embeddings=True).save_pretrained(folder / "saved")
    return AutoModelForCausalLM.from_pretrained(folder / "saved", **options)


def layout(network: Any, on_disk: tuple[str, ...]) -> dict[str, str]:
    beside = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
    names = [*(f"model.layers.{n}" for n in range(len(network.model.layers))), *beside]
    return {name: "disk" if name.endswith(on_disk) else "cpu" for name in names}


# What is tied stands together: transformers cannot load another map, or the model has no head in its own forward.
@pytest.mark.parametrize(
    ("chosen", "dtype"),
    [((*EMBEDDINGS, "lm_head"), "bfloat16"), ((".1", ".2"), "float32"), (("",), "float32")],
    ids=str,
)
def test_a_device_map_with_tied_embeddings(tmp_path: Path, chosen: tuple[str, ...], dtype: str):
    """The weights stay in the checkpoint's own files, in its own type."""
    kind = getattr(torch, dtype)
    wanted = ct.load(saved(tmp_path, dtype=kind), WORDS)
    network = saved(tmp_path, dtype=kind, device_map=layout(wanted.network, chosen), offload_folder=tmp_path / "off")
    model = ct.load(network, WORDS)
    assert any(parameter.is_meta for parameter in network.parameters())
    assert fingerprint(model) == fingerprint(wanted)
    assert is_equal(traced(model, "packed"), traced(wanted, "packed"))


def test_a_run_goes_on_with_the_same_weights_kept_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And what was begun with them in their places goes on without a word: they are the same."""
    monkeypatch.setattr("causal_tracing.experiments.manifest.pairs_at_once", lambda _: 1)
    model = ct.load(on_disk(build(BY_NAME["llama"]), tmp_path / "weights"), WORDS)
    options: dict[str, Any] = {"components": ["mlp_out"], "progress": False}

    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ct.run(model, PAIRS, tmp_path / "run", components=["mlp_out"], progress=stop)
    assert is_equal(
        ct.run(model, PAIRS, tmp_path / "run", **options), ct.run(here("llama"), PAIRS, tmp_path / "other", **options)
    )
    ct.run(here("llama"), PAIRS, tmp_path / "run", **options)


def test_other_weights_kept_elsewhere_are_another_model(tmp_path: Path):
    options: dict[str, Any] = {"components": ["mlp_out"], "progress": False}
    first = accept(in_memory(build(BY_NAME["llama"]), tmp_path), WORDS, name="llama")
    ct.run(first, PAIRS, tmp_path / "run", **options)
    changed = build(BY_NAME["llama"])
    with torch.no_grad():
        changed.get_parameter("model.layers.1.mlp.up_proj.weight")[0, 0] += 1
    other = accept(in_memory(changed, tmp_path), WORDS, name="llama")
    with pytest.raises(InvalidResults, match=r"model\.fingerprint was"):
        ct.run(other, PAIRS, tmp_path / "run", **options)
