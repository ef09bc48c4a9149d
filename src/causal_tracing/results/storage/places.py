"""Where results can be written: asked before the work, so that what cannot be kept is not computed. Loads nothing.

What is checked is what a path shows beforehand; the disk may still refuse later.
"""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from causal_tracing.errors import InvalidResults, MachineError

TEXT, MANIFEST = "trace.json", "manifest.json"  # by which a saved trace and a run folder are known
# What a folder of a saved trace holds: of `save`, and of what the command line puts beside it.
OF_A_TRACE = (TEXT, "arrays.npz", "pairs.jsonl", "config.toml", "tensors.safetensors", "report.html")
LOCK = "lock"
JOBS = "jobs.jsonl"  # what a server was asked, for who comes back to collect it
ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EACCES)  # these are seen at the folders above


def check_file(path: Path) -> None:
    """Raises MachineError where no file can be written at the path."""
    parent = path.absolute().parent
    if os.path.isdir(path):
        raise MachineError(f"{path} is a folder, and a file is to be written there. Give the file's name too.")
    if os.path.exists(path) and not os.path.isfile(path):  # a file of its name would take its place
        raise MachineError(f"{path} is a device or a pipe, and not a file. Choose another place.")
    if not os.path.lexists(parent):
        raise MachineError(f"{path} cannot be written: there is no folder {parent}. Make it, or choose another place.")
    check_room(path)


def check_target(folder: str | Path, *, overwrite: bool = False) -> Path:
    """The folder as a path, if a trace can be saved there. Raises InvalidResults, MachineError."""
    target = Path(folder)
    saved = os.path.isfile(target / TEXT)  # False of what can be no path, where pathlib raises
    if os.path.lexists(target) and not (overwrite and saved):
        hint = "Overwrite it (overwrite=True, --overwrite), or choose" if saved else "It is not a saved trace: choose"
        raise InvalidResults(f"{target} exists already. {hint} another name.")
    foreign = sorted(name for name in os.listdir(target) if name not in OF_A_TRACE and name[0] != ".") if saved else []
    if foreign:  # the folder is replaced as a whole
        raise InvalidResults(
            f"{target} holds {foreign[0]} beside the saved trace, and would go with it. Move that elsewhere, or "
            "choose another name."
        )
    check_room(target)
    return target


def check_run_folder(folder: Path) -> Path:
    """The folder, which may be there or not. Raises InvalidResults where something else is in it, MachineError."""
    check_room(folder)
    try:
        there = folder.iterdir() if folder.exists() else ()
        foreign = sorted(path.name for path in there if path.name != LOCK and path.name[0] != ".")
    except OSError as error:
        raise MachineError(f"{folder} cannot be written: {error}.") from error
    if foreign and not (folder / MANIFEST).is_file():
        raise InvalidResults(f"{folder} holds {foreign[0]} and is no run folder. Choose another name.")
    return folder


def check_shelf(folder: Path) -> None:
    """Raises MachineError where no folders can be made inside this one, which need not be there yet."""
    check_room(folder)
    if os.path.lexists(folder) and not folder.is_dir():
        raise MachineError(f"{folder} is no folder, and traces are to be saved in it. Choose another place.")


def check_room(path: Path) -> None:
    """Raises MachineError where nothing can be made at the path: a file in the way, a folder that may not be written.

    What is there already, a file where a folder is to be, is left to the caller.
    """
    try:
        os.lstat(path)
    except ValueError as error:  # a NUL
        raise MachineError(f"{path!r} cannot be written: {error}. Choose another place.") from None
    except OSError as error:
        if error.errno not in ABSENT:  # too long for a name
            raise MachineError(f"{path} cannot be written: {error.strerror}. Choose another place.") from None
    above = next(each for each in path.absolute().parents if os.path.lexists(each))
    where = path if os.path.isdir(path) else above
    if not os.path.isdir(where):
        raise MachineError(f"{path} cannot be written: {above} is no folder. Choose another place.")
    try:  # permissions alone do not say it: not to an administrator, nor of a read-only disk
        with tempfile.TemporaryDirectory(prefix=".causal-tracing-", dir=where):
            pass
    except OSError as error:
        raise MachineError(
            f"{path} cannot be written: nothing can be made in {where} ({error.strerror}). Choose another place."
        ) from None


@contextmanager
def parents_of(target: Path) -> Iterator[None]:
    """The folders above a target, made if need be; where the work fails, those that were made are taken away again."""
    made = [each for each in target.absolute().parents if not each.exists()]
    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with suppress(OSError):
            for folder in made:
                folder.rmdir()
        raise
