"""Files that appear whole or not at all."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from causal_tracing.errors import MachineError


def write_whole(path: Path, fill: Callable[[Path], None], *, otherwise: str = "Choose another place.") -> None:
    """Has `fill` write a new file beside the path, then puts it there; what was there stays until then.

    A new file may be read and written by whom the umask says; one that was there, by whom it could be before. Where
    the path is a link, it is the file that this leads to. `otherwise` says what to do where the disk refuses. Raises
    MachineError; any other error passes, and leaves nothing.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not (target.is_file() or target.is_dir()):  # a file of its name would take its place
        raise MachineError(f"{path} is a device or a pipe, and not a file. {otherwise}")
    try:
        # Beside it, since a file can be moved in one step within its own file system alone.
        scratch = target.parent / f".{target.name}-{secrets.token_hex(8)}"
        scratch.touch(mode=target.stat().st_mode & 0o777 if target.exists() else 0o666, exist_ok=False)
        try:
            fill(scratch)
            _sync(scratch)
            if target.exists():
                scratch.chmod(target.stat().st_mode & 0o777)  # the umask is for new files
            os.replace(scratch, target)
            sync_folder(target.parent)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise MachineError(f"{path} could not be written: {error}. {otherwise}") from error


def write_text(path: Path, text: str, *, otherwise: str = "Choose another place.") -> None:
    """Writes a text as UTF-8, whole or not at all. Raises MachineError."""

    def fill(scratch: Path) -> None:
        scratch.write_bytes(text.encode())

    write_whole(path, fill, otherwise=otherwise)


def sync_folder(folder: Path) -> None:
    """Makes a new name in a folder last through a power cut, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _sync(path: Path) -> None:
    """Has the disk hold what was written, before it gets its name."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
