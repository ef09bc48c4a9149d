"""Models of the hub: its commits, revisions, shards and code; and each way in which it can fail."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoConfig,
)

from causal_tracing.errors import (
    CausalTracingError,
    MachineError,
    ModelError,
    ModelNotFound,
    UnsupportedModel,
    UnsupportedTokenizer,
)
from hub import COMMIT, Hub, Repository, open_in_a_new_process, serve, what_came
from opening import with_code
from tiny import logits, tiny_folder, tiny_gguf, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    tiny_folder(folder / "fine")
    AutoConfig.for_model("t5").save_pretrained(folder / "t5")
    with_code(folder / "code", folder / "mark")
    tiny_gguf(folder / "gguf.gguf")
    tiny_model().save_pretrained(folder / "shards", max_shard_size="40KB")
    tiny_tokenizer().save_pretrained(folder / "shards")
    tiny_model().save_pretrained(folder / "untokenized")
    for kind, name in (("empty", "config.json"), ("ggufs", "tiny.gguf")):
        (folder / kind).mkdir()
        source = folder / "fine" / "config.json" if kind == "empty" else folder / "gguf.gguf"
        (folder / kind / name).write_bytes(source.read_bytes())
        if kind == "empty":
            tiny_tokenizer().save_pretrained(folder / kind)
    for kind in ("lora", "lora-beside"):
        (folder / kind).mkdir()
        (folder / kind / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "a/b"}')
    shutil.copytree(folder / "empty", folder / "lora-beside", dirs_exist_ok=True)
    with serve() as hub:
        for kind in ("fine", "t5", "code", "shards", "untokenized", "empty", "ggufs", "lora", "lora-beside"):
            hub.repositories[f"tiny/{kind}"] = Repository(folder=folder / kind)
        # Without "main": whoever forgets the revision at any step gets nothing.
        hub.repositories["tiny/tagged"] = Repository(folder=folder / "fine", revisions=("v1",))
        for fault in ("gone", "private", "gated", "down", "stalls", "stalls inside", "breaks off", "breaks off once"):
            name = f"tiny/{fault.replace(' ', '-')}"
            hub.repositories[name] = Repository(folder=folder / "fine", fault=fault)
        yield hub


JOBS: list[tuple[str, dict[str, Any]]] = [
    ("tiny/fine", {}),
    ("tiny/tagged", {"revision": "v1", "dtype": "float64"}),
    ("tiny/shards", {}),
    ("tiny/ggufs", {"gguf_file": "tiny.gguf"}),
    ("tiny/breaks-off-once", {}),
    ("tiny/code", {}),
]
FAULTS: list[tuple[str, dict[str, Any]]] = [
    *((f"tiny/{name}", {}) for name in ("t5", "untokenized", "empty", "ggufs", "gone", "private", "gated", "down")),
    *((f"tiny/{name}", {}) for name in ("stalls", "stalls-inside", "breaks-off", "lora", "lora-beside")),
    ("tiny/fine", {"revision": "v2"}),
    ("no..such", {}),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home") / "hf"


Begun = dict[str, "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def begun(hub: Hub, home: Path) -> Begun:
    """At the same time: most of it is importing, and waiting for what does not come."""
    faults = open_in_a_new_process(hub, home.with_name("faults"), FAULTS, at_once=True)
    return {"opened": open_in_a_new_process(hub, home, JOBS), "faults": faults}


@pytest.fixture(scope="module")
def opened(begun: Begun) -> dict[str, Any]:
    answers, errors = what_came(begun["opened"])
    return {f"{name}{options or ''}": answer for (name, options), answer in zip(JOBS, answers, strict=True)} | {
        "stderr": errors
    }


@pytest.fixture(scope="module")
def faults(begun: Begun) -> dict[str, Any]:
    answers, _ = what_came(begun["faults"])
    return {f"{name}{options or ''}": answer for (name, options), answer in zip(FAULTS, answers, strict=True)}


def test_the_hub_gives_the_model_and_its_commit(opened: dict[str, Any]):
    answer = opened["tiny/fine"]
    assert answer["source"] == {"kind": "hub", "id": "tiny/fine", "commit": COMMIT}
    assert (answer["dtypes"], answer["grads"], answer["training"]) == (["torch.float32"], False, False)
    assert answer["logits"] == logits(tiny_model())[0, -1].tolist()
    assert answer["tokens"] == tiny_tokenizer()("the city of").input_ids
    assert "causal-tracing: downloading tiny/fine/model.safetensors" in opened["stderr"]


def test_a_revision_and_a_dtype(opened: dict[str, Any]):
    answer = opened["tiny/tagged{'revision': 'v1', 'dtype': 'float64'}"]
    assert answer["source"] == {"kind": "hub", "id": "tiny/tagged", "commit": COMMIT, "revision": "v1"}
    assert answer["dtypes"] == ["torch.float64"]


def test_shards_and_gguf_files_of_the_hub(opened: dict[str, Any]):
    assert opened["tiny/shards"]["logits"] == logits(tiny_model())[0, -1].tolist()
    answer = opened["tiny/ggufs{'gguf_file': 'tiny.gguf'}"]
    assert answer["source"] == {"kind": "hub", "id": "tiny/ggufs", "commit": COMMIT, "file": "tiny.gguf"}


def test_a_download_that_breaks_off_is_resumed(opened: dict[str, Any], hub: Hub):
    assert opened["tiny/breaks-off-once"]["logits"] == logits(tiny_model())[0, -1].tolist()
    path = f"/tiny/breaks-off-once/resolve/{COMMIT}/model.safetensors"
    assert [asked[:2] for asked in hub.asked].count(("GET", path)) == 2


def test_code_of_the_hub_does_not_run_unasked(opened: dict[str, Any], hub: Hub):
    assert opened["tiny/code"]["error"] == "ModelError"
    assert "trust_remote_code=True" in opened["tiny/code"]["message"]
    assert not (hub.repositories["tiny/code"].folder.parent / "mark").exists()
    assert not any(path.endswith("own.py") for _, path, _ in hub.asked)


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("tiny/t5", UnsupportedModel, "model type 't5'"),
        ("tiny/untokenized", UnsupportedTokenizer, "has no tokenizer"),
        ("tiny/empty", ModelError, "has none of the weights files"),
        ("tiny/ggufs", ModelNotFound, "has no config.json. If it holds GGUF files"),
        ("tiny/lora", UnsupportedModel, "tiny/lora is an adapter of peft (LORA), not a model"),
        ("tiny/lora-beside", UnsupportedModel, "tiny/lora-beside is an adapter of peft (LORA), not a model"),
        ("tiny/gone", ModelNotFound, "There is no repository tiny/gone"),
        ("tiny/private", ModelNotFound, "`hf auth login`, or set HF_TOKEN"),
        ("tiny/gated", ModelNotFound, "is gated: ask for access"),
        ("tiny/fine{'revision': 'v2'}", ModelNotFound, "has no branch, tag or commit 'v2'"),
        ("no..such", ModelNotFound, "There is no repository no..such"),
        ("tiny/down", MachineError, "could not deliver tiny/down"),
        ("tiny/stalls", MachineError, "could not deliver tiny/stalls (ReadTimeout"),
        ("tiny/stalls-inside", MachineError, "could not deliver tiny/stalls-inside (ReadTimeout"),
        ("tiny/breaks-off", MachineError, "a download resumes where it broke off"),
    ],
)
def test_faults_of_the_hub(faults: dict[str, Any], name: str, kind: type[CausalTracingError], said: str):
    assert faults[name]["error"] == kind.__name__
    assert said in faults[name]["message"]
    assert faults[name]["seconds"] < 30  # with time-outs of one second; a stalled hub is not asked again and again


def test_a_model_that_cannot_be_traced_is_refused_before_its_weights_are_downloaded(faults: dict[str, Any], hub: Hub):
    assert faults["tiny/t5"]["error"] == "UnsupportedModel"
    assert {path.rpartition("/")[2] for _, path, _ in hub.asked if path.startswith("/tiny/t5/")} == {"config.json"}


def test_half_a_file_is_never_in_the_cache(faults: dict[str, Any], home: Path):
    assert faults["tiny/breaks-off"]["error"] == "MachineError"
    cache = home.with_name("faults") / "hub"
    assert list(cache.rglob("config.json"))  # this is where files would be
    assert not list(cache.rglob("model.safetensors"))


def test_without_a_network_what_was_downloaded_still_opens(opened: dict[str, Any], home: Path):
    nobody = Hub(endpoint="http://127.0.0.1:9")
    jobs: list[tuple[str, dict[str, Any]]] = [("tiny/fine", {}), ("tiny/shards", {}), ("tiny/other", {})]
    unplugged = open_in_a_new_process(nobody, home, jobs)
    offline = open_in_a_new_process(nobody, home, [jobs[0], jobs[2]], HF_HUB_OFFLINE="1")
    (fine, shards, other), _ = what_came(unplugged)
    assert fine["source"] == opened["tiny/fine"]["source"]
    assert fine["logits"] == shards["logits"] == opened["tiny/fine"]["logits"]
    assert other["error"] == "MachineError"
    assert "Check the network" in other["message"]
    assert other["seconds"] < 20
    (fine, other), _ = what_came(offline)
    assert fine["logits"] == opened["tiny/fine"]["logits"]
    assert other["error"] == "MachineError"
