"""What this package keeps between runs: folders that are whole or not there, each made once.

1. Look into the cache. A folder whose manifest is there, and whose files have the sizes it names, is whole.
2. Lock the cache, so that processes that start together make one folder, and sweep out what killed ones left.
3. Make it beside its place, write the manifest last, and move the finished folder there in one step.
"""

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock, Timeout

from causal_tracing.errors import MachineError

CACHE_VARIABLE = "CAUSAL_TRACING_CACHE"
MANIFEST = "complete.json"
MAKING = "making-"  # the prefix of folders that are not finished
PATIENCE = 1800  # seconds to wait for another process that makes the same folder
MEGABYTE = 1_000_000
# (scratch, folder): fills the folder, says what goes into the manifest
Make = Callable[[Path, Path], Mapping[str, Any]]


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
        # By sizes: checksums would read the whole model at each start.
        return all((folder / name).stat().st_size == known["size"] for name, known in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A folder of the cache: its name there, what it is called, and how many bytes it takes while it is made."""

    name: str
    what: str
    space: int

    def kept(self, make: Make, *, progress: bool = True) -> Path:
        """The folder, made when it is not there yet. Raises MachineError; nothing half made is ever used."""
        home = cache_home()
        folder = home / self.name
        if is_whole(folder):
            return folder
        with self._disk(home):
            home.mkdir(parents=True, exist_ok=True)
            with self._alone(home, progress):
                if not is_whole(folder):  # another process may have made it while this one waited
                    _sweep(home, folder)
                    self._make(home, folder, make)
        return folder

    def _make(self, home: Path, folder: Path, make: Make) -> None:
        if shutil.disk_usage(home).free < self.space:
            raise MachineError(self.no_space(home))
        with TemporaryDirectory(prefix=MAKING, dir=home, ignore_cleanup_errors=True) as scratch:
            made = Path(scratch) / "model"
            made.mkdir()
            _write_manifest(made, make(Path(scratch), made))
            # One step of the file system: whoever looks sees all of it or nothing.
            os.replace(made, folder)

    @contextmanager
    def _alone(self, home: Path, progress: bool) -> Iterator[None]:
        """Holds the cache's lock; the system releases it when a process dies."""
        lock = FileLock(home / "lock")
        try:
            try:
                # Without a word at first: mostly it is free.
                lock.acquire(timeout=0.5)
            except Timeout:
                say(progress, f"another process is making {self.what}; waiting for it ...")
                lock.acquire(timeout=PATIENCE)
        except Timeout as error:
            raise MachineError(
                f"Another process has held {home / 'lock'} for {PATIENCE // 60} minutes. End it, or set "
                f"{CACHE_VARIABLE} to another folder."
            ) from error
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _disk(self, home: Path) -> Iterator[None]:
        """Turns what the disk refuses into an error that says so."""
        try:
            yield
        except MachineError:
            raise
        except Exception as error:  # safetensors reports a full disk as an error of its own
            full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
            if full:
                raise MachineError(self.no_space(home)) from error
            if isinstance(error, OSError) and error.errno is not None:
                raise MachineError(
                    f"{self.what[0].upper()}{self.what[1:]} cannot be kept in {home}: {error}. Set {CACHE_VARIABLE} to "
                    "a folder that can be written to."
                ) from error
            raise

    def no_space(self, home: Path) -> str:
        """What is said where the disk is full."""
        free = shutil.disk_usage(home).free // MEGABYTE
        return (
            f"The disk is full: making {self.what} takes {self.space // MEGABYTE} MB in {home}, and {free} MB are "
            f"free. Make room, or set {CACHE_VARIABLE} to a folder on another disk."
        )


def _sweep(home: Path, folder: Path) -> None:
    """Removes what is not whole. Only who holds the lock makes anything, so whatever is unfinished was left behind."""
    for leftover in [*home.glob(f"{MAKING}*"), folder]:
        if leftover.exists():
            shutil.rmtree(leftover)


def _write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    files = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            files[path.name] = {
                "size": path.stat().st_size,
                "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            }
            os.fsync(file.fileno())  # a power cut must not leave a manifest that names what was never written
    manifest = {**facts, "files": files}
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def say(progress: bool, text: str) -> None:
    """A line on stderr, if any are wanted."""
    if progress:
        print(f"causal-tracing: {text}", file=sys.stderr, flush=True)
