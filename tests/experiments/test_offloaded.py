"""Models whose weights accelerate keeps elsewhere: the same numbers, to the bit, as with the weights in their places.

On one device the same operations run on the same numbers, so that no difference is allowed.
"""

import gc
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from transformers import AutoModelForCausalLM, PreTrainedModel
from typer.testing import CliRunner

import causal_tracing as ct
from causal_tracing.cli.app import app
from causal_tracing.engine import memory
from causal_tracing.engine.checks.check import accept
from causal_tracing.engine.packed import base_runs
from causal_tracing.errors import InvalidOption, InvalidResults, UnsupportedModel
from causal_tracing.experiments.manifest import fingerprint
from causal_tracing.experiments.workers import processes
from causal_tracing.models.model import Model
from families import build
from forked_driver import FORKS
from joint import WORDS
from loaded import BY_NAME
from made import pair
from offloaded import EMBEDDINGS, WAYS, embeddings_and_a_layer, head, in_memory, on_disk, whole_layers
from tiny import tiny_folder, tiny_model

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


# By name: load(..., device_map=)


PARTS = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head", *(f"model.layers.{n}" for n in range(4)))
TINY = ct.Pair(clean="the city of Rome is 5", corrupt="the city of Paris is 5", answer=" Mary", foil=" John")


def placed(*on_disk: str) -> dict[str, str]:
    return {part: "disk" if part in on_disk else "cpu" for part in PARTS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_folder(folder)
    return folder


@pytest.mark.parametrize(
    "where",
    [placed("model.layers.1", "model.layers.2"), placed("model.embed_tokens", "lm_head"), {"": "disk"}, "auto"],
    ids=["layers", "embeddings and head", "all", "auto"],
)
def test_a_device_map_by_name_changes_no_bit(folder: Path, plain: tuple[ct.Trace, ct.Trace], where: Any):
    model = ct.load(folder, progress=False, device_map=where)
    assert any(parameter.is_meta for parameter in model.network.parameters()) == (where != "auto")
    trace, estimates = asked_by_name(model)
    assert trace.provenance["engine"] == "packed"
    assert is_equal(plain[0], trace)
    for name in ("estimated", "restored"):
        one, other = (each.measurements.maps["blocks"][name].values for each in (plain[1], estimates))
        assert_array_equal(one, other)


def asked_by_name(model: Model) -> tuple[ct.Trace, ct.Trace]:
    asked: dict[str, Any] = {"components": ["resid_post", "attn_out"], "heads": True, "neurons": {2: [1, 7]}}
    estimates = ct.attribute(model, TINY, components=["mlp_out"], progress=False)
    return ct.trace(model, TINY, progress=False, **asked), estimates


@pytest.fixture(scope="module")
def plain(folder: Path) -> tuple[ct.Trace, ct.Trace]:
    """With all weights in their places."""
    return asked_by_name(ct.load(folder, progress=False))


def test_what_lies_on_disk_goes_with_the_model(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = ct.load(folder, progress=False, device_map={"": "disk"})
    assert len([*tmp_path.glob("causal-tracing-*")]) == 1
    del model
    gc.collect()
    assert [*tmp_path.glob("causal-tracing-*")] == []


def test_a_run_with_workers_has_the_same_map(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "SPAWN", FORKS)
    where = placed("model.layers.1")
    model, pairs = ct.load(folder, progress=False, device_map=where), [TINY]
    assert model.recipe is not None
    assert model.recipe.device_map == where
    ct.run(model, pairs, tmp_path / "here", progress=False)
    ct.run(model, pairs, tmp_path / "workers", workers=1, progress=False)
    one, other = (ct.open_trace(tmp_path / name) for name in ("here", "workers"))
    assert is_equal(one, other)


def test_the_command_line_takes_a_device_map_and_writes_it_down(folder: Path, tmp_path: Path):
    fields = {name: getattr(TINY, name) for name in ("clean", "corrupt", "answer", "foil")}
    command = ["trace", "--model", str(folder), "--device-map", "auto", "--components", "resid_post"]
    command += [f"--{name}={text}" for name, text in fields.items()]
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "--device-map auto" in ct.open_trace(tmp_path / "out").provenance["command"]
    assert 'device_map = "auto"' in (tmp_path / "out" / "config.toml").read_text()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"device_map": "atuo"}, "There is no device_map 'atuo'. Did you mean 'auto'"),
        ({"device_map": "auto", "device": "cpu"}, "give one of them"),
        ({"max_memory": {0: "1GiB"}}, "give device_map= too"),
        ({"device_map": "auto", "max_memory": "1GiB"}, "max_memory= is sizes by device"),
        ({"device_map": {"": "coda:0"}}, "device='coda:0' is none"),
        ({"device_map": {"": 3}}, "device_map=.* cannot be used on this machine"),
    ],
)
def test_what_is_no_map_of_devices_is_refused(folder: Path, asked: dict[str, Any], said: str):
    if asked.get("device_map") == {"": 3} and torch.cuda.is_available():
        pytest.skip("this machine has GPUs")
    with pytest.raises(InvalidOption, match=said):
        ct.load(folder, progress=False, **asked)


def test_a_model_from_memory_stays_where_it_is():
    with pytest.raises(InvalidOption, match="device_map='auto' does not apply to a model that is already in memory"):
        ct.load(build(BY_NAME["llama"]), WORDS, device_map="auto")


def test_one_weight_on_two_devices_is_refused_by_its_two_names(tmp_path: Path):
    tiny_folder(tmp_path, tie_word_embeddings=True)
    said = (
        "one weight for model.embed_tokens and lm_head, and its device_map puts them on cpu and disk. Put both on one"
    )
    with pytest.raises(UnsupportedModel, match=said):
        ct.load(tmp_path, progress=False, device_map=placed("lm_head"))
    where: Any = placed("lm_head")
    network = AutoModelForCausalLM.from_pretrained(tmp_path, device_map=where, offload_folder=tmp_path / "off")
    with pytest.raises(UnsupportedModel, match=said):
        ct.load(network, WORDS)


def test_the_budget_is_that_of_the_fullest_device(monkeypatch: pytest.MonkeyPatch):
    shares = {torch.device("cpu"): 900, torch.device("cuda", 0): 700, torch.device("cuda", 1): 800}
    monkeypatch.setattr(memory, "_share", shares.__getitem__)
    monkeypatch.setattr(Model, "devices", frozenset(shares))
    assert memory.default_budget(here("llama")) == 700


def test_what_layers_are_called_with_follows_their_device():
    """All are given the same rotations, which lie on the first device; without a second one, "meta" stands for it."""
    listener = base_runs._Listener(3, eager=False)
    turns = (torch.ones(1, 3, 4), torch.ones(1, 3, 4))
    given = {"hidden_states": torch.ones(1, 3, 8), "position_embeddings": turns, "use_cache": False}
    listener._note(2, torch.nn.Identity(), (), given, (torch.ones(1, 3, 8, device="meta"),))
    assert [each.device.type for each in listener.calls[2].kwargs["position_embeddings"]] == ["meta", "meta"]
    assert listener.calls[2].kwargs["use_cache"] is False
