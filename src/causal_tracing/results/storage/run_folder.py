"""A run folder: what is asked for, written first, and one row a pair as it is measured. Needs no torch.

    manifest.json    the specification, its sha256, and everything that fixes the numbers; whole or not there
    results.sqlite   a row a pair (its arrays, its texts, their sha256), and a row a chunk of pairs
    pairs.jsonl      the pairs, as a file that can be traced again
    lock             held while a process works in the folder
    jobs.jsonl       what a server was asked, where one has the model

Rows of a chunk are committed together, through a rollback journal (write-ahead logs do not work on the network file
systems where job arrays run), so that a kill at any moment loses the chunk in hand and nothing else.
"""

import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from causal_tracing.errors import InvalidResults, MachineError
from causal_tracing.results.storage.atomic import sync_folder, write_text
from causal_tracing.results.storage.places import JOBS, LOCK, MANIFEST
from causal_tracing.results.storage.saved import PAIRS, canonical, in_lines

SCHEMA = 1
RESULTS = "results.sqlite"
OK, FAILED, DROPPED = "ok", "failed", "dropped"
TABLES = """
CREATE TABLE pairs (pair TEXT, spec TEXT, chunk INTEGER, status TEXT, reason TEXT, texts TEXT, arrays BLOB,
                    sha256 TEXT, PRIMARY KEY (pair, spec)) WITHOUT ROWID;
CREATE TABLE chunks (chunk INTEGER, spec TEXT, record TEXT, PRIMARY KEY (chunk, spec)) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    """One pair: its arrays and the texts that describe them, or why there are none."""

    pair: str
    status: str
    reason: str = ""
    texts: Mapping[str, Any] | None = None
    arrays: Mapping[str, np.ndarray] | None = None


def is_run_folder(folder: str | Path) -> bool:
    """Whether a run was begun there."""
    return os.path.isfile(Path(folder) / MANIFEST)  # False of what can be no path, where pathlib raises


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes it, and the pairs as a file of their own, each whole or not at all. Raises MachineError."""
    content = dict(manifest)
    document = json.dumps({"schema": SCHEMA, "sha256": digest(content), "content": content}, indent=1)
    for name, text in ((MANIFEST, document), (PAIRS, in_lines(content["pairs"]))):
        write_text(folder / name, text, otherwise="Free what is missing and run the same command again.")


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """What was asked for. Raises InvalidResults where it is missing, damaged, or of a newer version."""
    path = Path(folder) / MANIFEST
    try:
        text = json.loads(path.read_text(encoding="utf-8-sig"))  # some editors put a mark first
        schema, expected, content = text["schema"], text["sha256"], text["content"]
    except FileNotFoundError:
        raise InvalidResults(f"{folder} has no {MANIFEST}: it is no run folder.") from None
    except OSError as error:
        raise InvalidResults(f"{path} cannot be read: {error}.") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidResults(f"{path} is damaged: {error!r}. The run cannot be continued; begin another.") from None
    if not isinstance(schema, int) or schema > SCHEMA:
        raise InvalidResults(
            f"{path} was written by a newer version (schema {schema}; this one reads {SCHEMA}). Upgrade causal-tracing."
        )
    if digest(content) != expected:
        raise InvalidResults(f"{path} is damaged: its content is not what was written. Begin another run.")
    return content


def threads_of(manifest: Mapping[str, Any]) -> int:
    """On how many threads a run is computed; 0.1.0 had them beside the specification."""
    return manifest["spec"].get("threads") or manifest["threads"]


def digest(content: Any) -> str:
    """The sha256 of plain values, in one order."""
    return hashlib.sha256(canonical(content)).hexdigest()


def differences(found: Any, asked: Any, name: str = "") -> Iterator[str]:
    """What differs between two sets of plain values, by name."""
    if isinstance(found, Mapping) and isinstance(asked, Mapping):
        for key in sorted({*found, *asked}):
            yield from differences(found.get(key), asked.get(key), f"{name}.{key}" if name else str(key))
    elif found != asked:
        yield f"{name} was {_short(found)} and is now {_short(asked)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder for one process alone. Raises MachineError where another is at work in it."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise MachineError(
            f"Another process is at work in {folder}. Wait for it, or give --out another name."
        ) from None
    except OSError as error:
        raise MachineError(f"{folder / LOCK} cannot be locked: {error}.") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def begun(folder: Path) -> Iterator[None]:
    """The folder, made if need be and for one process alone; a run that fails before its first result leaves nothing.

    What was there before stays. Raises MachineError where another process is at work in it, or it cannot be made.
    """
    made = [each for each in (folder, *folder.absolute().parents) if not each.exists()]
    _make(folder)
    before = {*folder.iterdir()}
    try:
        with locked(folder):
            try:
                yield
            except Exception:
                _clear(folder, before)
                raise
    except Exception:
        # The lock goes last, once it is released: on some systems a file that is held cannot be deleted.
        if _inside(folder) == {*before, folder / LOCK}:
            _remove([] if folder / LOCK in before else [folder / LOCK], made)
        raise


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"{folder} cannot be written: {error}.") from error


def _inside(folder: Path) -> set[Path]:
    """What lies in a folder; nothing where somebody has taken it away."""
    with suppress(OSError):
        return {*folder.iterdir()}
    return set()


def _clear(folder: Path, before: Collection[Path]) -> None:
    """Takes away what a run has put into a folder, unless there is a result, or a server at work on one."""
    if _has_rows(folder / RESULTS) or (folder / JOBS).exists():
        return
    for path in _inside(folder):
        if path not in before and path.name != LOCK and path.is_file():
            path.unlink()


def _remove(files: Iterable[Path], folders: Iterable[Path]) -> None:
    """Takes away files, and folders that are empty then."""
    with suppress(OSError):
        for file in files:
            file.unlink()
        for folder in folders:
            folder.rmdir()


def _has_rows(path: Path) -> bool:
    """Whether there is a result; a file that cannot be read may hold some."""
    try:
        with _read_only(path) as connection:
            return connection.execute("SELECT 1 FROM chunks LIMIT 1").fetchone() is not None
    except (sqlite3.Error, OSError):
        return path.exists()


class Store:
    """The rows of a run folder. Every method raises InvalidResults (damage) or MachineError (the disk)."""

    def __init__(self, folder: Path, spec: str) -> None:
        self.path = folder / RESULTS
        self.spec = spec

    @contextmanager
    def _open(self, connected: AbstractContextManager[sqlite3.Connection]) -> Iterator[sqlite3.Connection]:
        try:
            with connected as connection:
                self._check(connection)
                yield connection
        except (sqlite3.OperationalError, OSError) as error:
            if not self.path.parent.is_dir():
                raise MachineError(
                    f"{self.path.parent} is not there any more: it was moved or deleted while it was worked in. Put it "
                    "back and run the same command again, or begin another run."
                ) from error
            raise MachineError(
                f"{self.path} could not be read or written: {error}. What was committed before is intact; free what "
                "is missing and run the same command again."
            ) from error
        except sqlite3.DatabaseError as error:
            raise InvalidResults(f"{self.path} is damaged: {error}. Restore it, or begin another run.") from error

    def _check(self, connection: sqlite3.Connection) -> None:
        """A file that is there was whole once: an empty one has lost its rows."""
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            raise InvalidResults(f"{self.path} is damaged: it is empty. Restore it, or begin another run.")
        if version > SCHEMA:
            raise InvalidResults(
                f"{self.path} was written by a newer version (schema {version}; this one reads {SCHEMA}). Upgrade "
                "causal-tracing."
            )

    def add(self, chunk: int, rows: Sequence[Row], record: Mapping[str, Any]) -> None:
        """Commits a chunk's rows and its record together."""
        packed = self._in_columns(chunk, rows)
        with self._open(_to_write(self.path)) as connection:
            # At once for writing: a transaction that begins by reading may be refused in its middle.
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT INTO pairs VALUES (?, ?, ?, ?, ?, ?, ?, ?)", packed)
            text = json.dumps(dict(record))
            connection.execute("INSERT INTO chunks VALUES (?, ?, ?)", (chunk, self.spec, text))
            connection.execute("COMMIT")

    def replace(self, chunk: int, rows: Sequence[Row], record: Mapping[str, Any]) -> None:
        """Commits rows in the place of those that these pairs have; the record joins what the chunk's says."""
        packed = self._in_columns(chunk, rows)
        kept = self.chunks()[chunk]
        text = json.dumps(kept | {"again": [*kept.get("again", []), dict(record)]} if record else kept)
        with self._open(_to_write(self.path)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT OR REPLACE INTO pairs VALUES (?, ?, ?, ?, ?, ?, ?, ?)", packed)
            connection.execute("UPDATE chunks SET record = ? WHERE chunk = ? AND spec = ?", (text, chunk, self.spec))
            connection.execute("COMMIT")

    def _in_columns(self, chunk: int, rows: Sequence[Row]) -> list[tuple[Any, ...]]:
        """Rows of a chunk as the table of pairs has them."""
        return [(row.pair, self.spec, chunk, row.status, row.reason, *_packed(row)) for row in rows]

    def failed(self) -> dict[int, set[str]]:
        """The pairs that failed, by their chunk."""
        found: dict[int, set[str]] = {}
        query = f"SELECT chunk, pair FROM pairs WHERE spec = ? AND status = '{FAILED}'"
        for chunk, pair in self._selected(query):
            found.setdefault(chunk, set()).add(pair)
        return found

    def chunks(self) -> dict[int, dict[str, Any]]:
        """The chunks that are done, with what was recorded of each."""
        found = self._selected("SELECT chunk, record FROM chunks WHERE spec = ?")
        try:
            return {chunk: json.loads(record) for chunk, record in found}
        except ValueError as error:
            raise InvalidResults(f"{self.path} is damaged: a chunk's record is no JSON ({error}).") from None

    def rows(self) -> dict[str, Row]:
        """Every row by its pair, each held against its sha256."""
        query = "SELECT pair, status, reason, texts, arrays, sha256 FROM pairs WHERE spec = ? ORDER BY chunk, pair"
        found = self._selected(query)
        return {row[0]: self._unpacked(*row) for row in found}

    def _selected(self, query: str) -> list[Any]:
        """What a query of this run finds, nothing where nothing was written yet. The folder stays as it is."""
        if not self.path.exists():
            return []
        with self._open(_read_only(self.path)) as connection:
            return connection.execute(query, (self.spec,)).fetchall()

    def take(self, other: "Store") -> None:
        """All rows of another store, to the byte. Raises InvalidResults where a pair has other numbers there."""
        pairs = other._selected("SELECT * FROM pairs WHERE spec = ?")
        chunks = other._selected("SELECT * FROM chunks WHERE spec = ?")
        with self._open(_to_write(self.path)) as connection:
            held = dict(connection.execute("SELECT pair, sha256 FROM pairs WHERE spec = ?", (self.spec,)).fetchall())
            for row in pairs:
                if held.get(row[0], row[-1]) != row[-1]:
                    raise InvalidResults(f"{other.path} holds other numbers for pair {row[0]!r} than another shard.")
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT OR IGNORE INTO pairs VALUES (?, ?, ?, ?, ?, ?, ?, ?)", pairs)
            connection.executemany("INSERT OR IGNORE INTO chunks VALUES (?, ?, ?)", chunks)
            connection.execute("COMMIT")

    def _unpacked(self, pair: str, status: str, reason: str, texts: str, arrays: bytes, expected: str) -> Row:
        from safetensors.numpy import load

        if _sha256(pair, status, reason, texts, arrays) != expected:
            raise InvalidResults(
                f"{self.path} is damaged: the row of pair {pair!r} is not what was written. Restore the file, or begin "
                "another run."
            )
        if status != OK:
            return Row(pair=pair, status=status, reason=reason)
        return Row(pair=pair, status=status, reason=reason, texts=json.loads(texts), arrays=load(arrays))


def _connected(path: Path) -> sqlite3.Connection:
    # Transactions are begun and ended above by name; Python's own would commit where it sees fit.
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.execute("PRAGMA synchronous=FULL")
    return connection


@contextmanager
def _to_write(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to the file, made if need be."""
    if not path.exists():
        _create(path)
    with closing(_connected(path)) as connection:
        yield connection


@contextmanager
def _read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that leaves the folder as it is. What a kill left half-written is taken back in a copy."""
    with ExitStack() as stack:
        found = stack.enter_context(closing(_opened(path)))
        try:
            found.execute("PRAGMA schema_version").fetchone()  # the first look finds what is half-written
        except sqlite3.OperationalError as error:
            # A journal that a kill left must be rolled back, and a folder that is opened for reading stays as it is.
            # The lowest byte says what kind of error it is; those above it say which of the kind.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_READONLY:
                raise
            copy = Path(stack.enter_context(tempfile.TemporaryDirectory())) / path.name
            for name in (path.name, f"{path.name}-journal"):
                shutil.copy(path.with_name(name), copy.with_name(name))
            found = stack.enter_context(closing(_connected(copy)))
        yield found


def _opened(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)


def _create(path: Path) -> None:
    """A file of empty tables, whole or not there."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
        new = Path(scratch) / path.name
        new.touch()  # by the umask: SQLite would have a mode of its own
        with closing(_connected(new)) as connection:
            connection.executescript(f"{TABLES} PRAGMA user_version={SCHEMA};")
        os.replace(new, path)
        sync_folder(path.parent)


def _packed(row: Row) -> tuple[str, bytes, str]:
    """Texts, arrays and their sha256. The same values give the same bytes."""
    from safetensors.numpy import save

    texts = json.dumps(row.texts, sort_keys=True)
    arrays = (
        b""
        if row.arrays is None
        else save({name: np.ascontiguousarray(row.arrays[name]) for name in sorted(row.arrays)})
    )
    return texts, arrays, _sha256(row.pair, row.status, row.reason, texts, arrays)


def _sha256(*parts: str | bytes) -> str:
    found = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode()
        # With its length, so that letters cannot wander from one column into the next.
        found.update(len(data).to_bytes(8, "big") + data)
    return found.hexdigest()
