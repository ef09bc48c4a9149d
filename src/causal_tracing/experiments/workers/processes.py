"""Workers as processes of this machine: begun afresh, a pipe each, and none that outlives the one that began it."""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import ModuleType
from typing import Any, TypeVar

from causal_tracing.errors import CausalTracingError, MachineError
from causal_tracing.experiments.workers.dispatch import Died, Event, Finished, Moved, Raised, Ready, Task
from causal_tracing.experiments.workers.work import Work, Worker
from causal_tracing.prompts.pairs import Pair

# No fork: torch's threads do not survive it, and a GPU's context neither.
SPAWN = multiprocessing.get_context("spawn")
Given = TypeVar("Given")
PATIENCE = 3.0  # seconds in which processes may end by themselves
STEPS = 20  # a chunk's progress is told in so many


class Processes:
    """A pool of processes for some work."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.running: dict[int, tuple[SpawnProcess, Connection]] = {}

    def start(self, worker: int) -> None:
        """Begins a process; it says its first word when its model is loaded."""
        here, there = SPAWN.Pipe()
        process = SPAWN.Process(target=_serve, args=(there, replace(self.work, number=worker)), daemon=True)
        with _without_main(), _without_interrupt():
            process.start()
        there.close()  # so that the pipe ends with the process
        self.running[worker] = process, here

    def give(self, worker: int, task: Task) -> None:
        """Sends a task; a process that is gone is found by its end of the pipe."""
        with suppress(OSError):
            self.running[worker][1].send(task.pairs)

    def events(self, timeout: float) -> Sequence[Event]:
        """What came through the pipes; the end of one is its process's death."""
        by_pipe = {pipe: worker for worker, (_, pipe) in self.running.items()}
        ready: Any = wait([*by_pipe], timeout)
        return [self._heard(by_pipe[pipe], pipe) for pipe in ready]

    def _heard(self, worker: int, pipe: Connection) -> Event:
        try:
            said = pipe.recv()
        except (EOFError, OSError, pickle.UnpicklingError):  # a kill may cut a word short
            return self._died(worker)
        return replace(said, worker=worker)

    def _died(self, worker: int) -> Died:
        process, pipe = self.running.pop(worker)
        pipe.close()
        # It may only have broken its pipe: a process that nobody hears any more must not go on computing.
        process.kill()
        process.join()
        return Died(worker=worker, how=_ended_by(process.exitcode))

    def end(self) -> None:
        """Ends all processes: those that wait see the end of their pipe, the others are killed soon."""
        for _, pipe in self.running.values():
            pipe.close()
        patience = time.monotonic() + PATIENCE
        for process, _ in self.running.values():
            process.join(max(0.0, patience - time.monotonic()))
            process.kill()
            process.join()
        self.running = {}


def _ended_by(code: int | None) -> str:
    if code is not None and code < 0:
        with suppress(ValueError):
            return f"ended by {signal.Signals(-code).name}"
    return f"exit code {code}"


@contextmanager
def _without_main() -> Iterator[None]:
    """A process that is begun meanwhile does not run the caller's script anew, as it would to find what lies in it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _without_interrupt() -> Iterator[None]:
    """A process that is begun meanwhile is deaf to Ctrl-C from its first instruction: importing takes it seconds."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # where it is begun with the process, it unblocks what is blocked here
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)  # what came meanwhile comes to this process now


def _serve(pipe: Connection, work: Work) -> None:
    """What the process does until its pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's: it lets chunks in work come to their end
    threading.Thread(target=_end_with_parent, daemon=True).start()
    begun = _said(work.number, lambda: Worker(work))
    with suppress(OSError, EOFError):  # the driver is gone
        if isinstance(begun, Raised):
            pipe.send(begun)
            return
        pipe.send(Ready(worker=work.number, facts=begun.facts))
        while True:
            pairs = pipe.recv()
            pipe.send(_said(work.number, partial(_measured, pipe, work.number, begun, pairs)))


def _said(number: int, work: Callable[[], Given]) -> Given | Raised:
    """What the work gives, or the error that it raised, to be sent."""
    try:
        return work()
    except Exception as error:
        return Raised(worker=number, error=_shippable(error))


def _measured(pipe: Connection, number: int, worker: Worker, pairs: Sequence[Pair]) -> Finished:
    told = 0

    def progress(done: int, total: int) -> None:
        nonlocal told
        step = STEPS * done // max(1, total)
        if step > told:
            told = step
            pipe.send(Moved(worker=number, share=done / max(1, total)))

    rows, record, notes = worker.measured(pairs, progress)
    return Finished(worker=number, rows=rows, record=record, notes=notes)


def _end_with_parent() -> None:
    """Ends this process with the one that began it, whatever it is doing: nobody waits for its rows any more."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _shippable(error: Exception) -> Exception:
    """The error as it is where it can be sent, else what it says."""
    if isinstance(error, CausalTracingError):
        with suppress(Exception):
            # Tried here: an error that cannot be read at the other end would be taken for a death.
            if type(pickle.loads(pickle.dumps(error))) is type(error):
                return error
    return MachineError(f"A worker ended with {type(error).__name__}: {error}")
