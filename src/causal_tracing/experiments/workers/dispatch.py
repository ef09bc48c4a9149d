"""Chunks to workers, and their rows back, whatever the workers are.

1. A worker's first word is what it found: anything that differs from the run's manifest is refused before a chunk is
   handed out.
2. A chunk whose worker dies is handed out again. After `TRIES` deaths its pairs are handed out one by one; a pair that
   kills so many workers too is marked as failed, and the rest goes on.
3. Ctrl-C: no new chunks, what is being measured is waited for. A second one ends it at once.
"""

import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from causal_tracing.errors import EngineNote, MachineError, warn
from causal_tracing.experiments.chunks import Record, added
from causal_tracing.prompts.pairs import Pair
from causal_tracing.results.storage.run_folder import FAILED, Row, differences

TRIES = 3  # deaths that a chunk, then each of its pairs alone, may cause; and workers that never say a first word


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Pairs to measure together: a chunk, or one pair of it."""

    chunk: int
    pairs: tuple[Pair, ...]

    @property
    def key(self) -> tuple[int, tuple[str | None, ...]]:
        """What tells it from others."""
        return self.chunk, tuple(pair.id for pair in self.pairs)


# What workers say, each under its number.


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A worker's first word: what its model and machine are, as the manifest has it."""

    worker: int
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """How much of its task a worker has done, as a share."""

    worker: int
    share: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Finished:
    """A task's rows, and what was recorded of them; `notes` are warnings that were given meanwhile."""

    worker: int
    rows: Sequence[Row]
    record: Record
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Raised:
    """An error that is no pair's fault: it ends the run, as it would without workers."""

    worker: int
    error: Exception


@dataclass(frozen=True, slots=True, kw_only=True)
class Died:
    """A worker is gone, and `how`."""

    worker: int
    how: str


Event = Ready | Moved | Finished | Raised | Died


@runtime_checkable
class Pool(Protocol):
    """Workers that can be started, given a task each, listened to, and replaced: all that dispatching needs."""

    def start(self, worker: int) -> None:
        """Begins a worker of this number, in the place of one that died under it."""
        ...

    def give(self, worker: int, task: Task) -> None:
        """Hands a task to a worker that waits. One that has died meanwhile says so among the events."""
        ...

    def events(self, timeout: float) -> Sequence[Event]:
        """What was said since, after waiting for at most so many seconds until there is something."""
        ...

    def end(self) -> None:
        """Ends all workers, at once."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measured:
    """A chunk that is done."""

    chunk: int
    rows: Sequence[Row]
    record: Record


Tell = Callable[[Mapping[int, float]], None]  # the shares of the chunks that are being measured


def dispatched(
    pool: Pool, count: int, tasks: Sequence[Task], facts: Mapping[str, Any], tell: Tell | None = None
) -> Generator[Measured]:
    """The chunks as they are done, in any order, by at most `count` workers whose facts must be these.

    Raises MachineError where workers do not begin, or find something else; what a worker raises; KeyboardInterrupt
    after Ctrl-C, when what was being measured is done.
    """
    work = _Work(pool=pool, waiting=deque(tasks), facts=facts)
    try:
        with _until_interrupted() as interrupted:
            for worker in range(min(count, len(tasks))):
                pool.start(worker)
            # After Ctrl-C what is in the air is still waited for: its work would be lost.
            while work.flying or (work.waiting and not interrupted.is_set()):
                if not interrupted.is_set():
                    work.hand_out()
                for event in pool.events(1.0):
                    yield from work.heard(event)
                if tell:
                    tell(work.shares)
            if interrupted.is_set():
                raise KeyboardInterrupt
    finally:
        pool.end()


@dataclass(slots=True, kw_only=True, eq=False)
class _Work:
    """Who does what, and what waits."""

    pool: Pool
    waiting: deque[Task]
    facts: Mapping[str, Any]
    idle: set[int] = field(default_factory=set)
    flying: dict[int, Task] = field(default_factory=dict)  # by worker
    moved: dict[int, float] = field(default_factory=dict)
    deaths: Counter[Any] = field(default_factory=Counter)  # by task
    stillborn: int = 0  # workers in a row that died before their first word
    parts: dict[int, "_Parts"] = field(default_factory=dict)  # of chunks that are measured pair by pair

    @property
    def shares(self) -> Mapping[int, float]:
        """How much of each chunk in work is done."""
        return {task.chunk: self.moved.get(worker, 0.0) for worker, task in self.flying.items()}

    def hand_out(self) -> None:
        while self.idle and self.waiting:
            worker, task = self.idle.pop(), self.waiting.popleft()
            self.flying[worker], self.moved[worker] = task, 0.0
            self.pool.give(worker, task)

    def heard(self, event: Event) -> Iterator[Measured]:
        match event:
            case Ready(worker=worker, facts=facts):
                _require_the_same(self.facts, facts)
                self.stillborn = 0
                self.idle.add(worker)
            case Moved(worker=worker, share=share):
                self.moved[worker] = share
            case Finished(worker=worker, rows=rows, record=record, notes=notes):
                for note in notes:
                    warn(note, EngineNote)
                self.idle.add(worker)
                yield from self._gathered(self.flying.pop(worker), rows, record)
            case Raised(error=error):
                raise error
            case Died(worker=worker, how=how):
                yield from self._lost(worker, how)

    def _lost(self, worker: int, how: str) -> Iterator[Measured]:
        task = self.flying.pop(worker, None)
        if task is not None:
            yield from self._again(task, how)
        # Neither at work nor waiting: it died before its first word, which more workers would do too.
        elif worker not in self.idle:
            self.stillborn += 1
            if self.stillborn >= TRIES:
                raise MachineError(
                    f"{self.stillborn} workers in a row ended before they could begin ({how}). What they print is on "
                    "stderr; a run without workers may show more."
                )
        self.idle.discard(worker)
        if self.waiting:
            self.pool.start(worker)

    def _again(self, task: Task, how: str) -> Iterator[Measured]:
        """The task once more; after too many deaths its pairs one by one, and a pair alone as failed."""
        self.deaths[task.key] += 1
        if self.deaths[task.key] < TRIES:
            self.waiting.appendleft(task)
        elif len(task.pairs) == 1:
            (pair,) = task.pairs
            reason = f"the worker that measured it died {TRIES} times ({how})"
            yield from self._gathered(task, [Row(pair=pair.id or "", status=FAILED, reason=reason)], {})
        else:
            self.parts[task.chunk] = _Parts(count=len(task.pairs))
            self.waiting.extendleft(Task(chunk=task.chunk, pairs=(pair,)) for pair in reversed(task.pairs))

    def _gathered(self, task: Task, rows: Sequence[Row], record: Record) -> Iterator[Measured]:
        """The chunk, when all of its pairs are there: half of one is never handed on."""
        parts = self.parts.get(task.chunk)
        if parts is not None:
            parts.rows += rows
            parts.records += [record] if record else []
            if len(parts.rows) < parts.count:
                return
            rows, record = parts.rows, added(parts.records)
        yield Measured(chunk=task.chunk, rows=rows, record=record)


@dataclass(slots=True, kw_only=True)
class _Parts:
    """A chunk that is measured pair by pair: so many rows it will have, and those that are there."""

    count: int
    rows: list[Row] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)


def _require_the_same(expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    differ = "; ".join(differences(expected, found))
    if differ:
        raise MachineError(
            f"A worker does not have what this run was begun with: {differ} there. Workers load the model anew: what "
            "was changed after it was loaded (weights, hooks, attention) is not known to them, and packages must be "
            "the same everywhere."
        )


@contextmanager
def _until_interrupted() -> Iterator[threading.Event]:
    """Is set by Ctrl-C; a second one raises KeyboardInterrupt. Signals reach the main thread alone."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def handler(*_: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
