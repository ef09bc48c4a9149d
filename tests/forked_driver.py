"""Processes of their own that need not import anything: forks of one that has imported what they need."""

import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import causal_tracing as ct
from causal_tracing.experiments.workers import processes

FORKS = get_context("forkserver")
FORKS.set_forkserver_preload([__name__, "causal_tracing.experiments.run", "transformers.models.llama.modeling_llama"])


def drive(folder: Path, run: Path, pairs: Sequence[ct.Pair], options: Mapping[str, Any], *, forked: bool) -> None:
    """The run of two workers: begun as they are for users, or forks of this process, whose torch has no threads."""
    _with_workers(forked=forked)
    ct.run(ct.load(folder, progress=False), pairs, run, workers=2, **options)


def command(folder: Path, *arguments: str, ctrl_c: Any = signal.default_int_handler, forked: bool = False) -> None:
    """The command line's, in a folder and a session of its own: what it says stands in its files stdout and stderr.

    Whoever begins it may have it ignore Ctrl-C, as a shell does in the background. Its workers are `forked` or begun as
    they are for users.
    """
    signal.signal(signal.SIGINT, ctrl_c)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # blocked in all forks of a server begun with a worker
    os.setsid()
    os.chdir(folder)
    _written_to(*(str(folder / name) for name in ("stdout", "stderr")))
    sys.argv = ["causal-tracing", *arguments]
    _with_workers(forked=forked)
    runpy.run_module("causal_tracing", run_name="__main__")


def _with_workers(*, forked: bool) -> None:
    """One thread, and workers that are begun so: torch's threads do not survive a fork."""
    torch.set_num_threads(1)
    if forked:
        processes.SPAWN = get_context("fork")  # pyright: ignore[reportAttributeAccessIssue]


def executed(code: str | Path, *arguments: str, timeout: float = 600) -> "subprocess.CompletedProcess[str]":
    """What `python -c code arguments` gives, or a script with these; the tests' checks of annotations are not in it."""
    with TemporaryDirectory() as folder:
        streams = [str(Path(folder, name)) for name in ("stdout", "stderr")]
        fork = FORKS.Process(target=_execute, args=(code, arguments, *streams))
        fork.start()
        fork.join(timeout)
        fork.kill()
        fork.join()
        out, err = (Path(stream).read_text() for stream in streams)
        return subprocess.CompletedProcess(arguments, fork.exitcode or 0, out, err)


def _execute(code: str | Path, arguments: Sequence[str], *streams: str) -> None:
    _written_to(*streams)
    sys.argv = ["-c" if isinstance(code, str) else str(code), *arguments]
    torch.set_num_threads(1)
    if isinstance(code, str):
        exec(compile(code, "executed", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_path(str(code), run_name="__main__")


def listen(script: Path, folder: Path, listening: socket.socket) -> None:
    """A server's script, with the number of a socket that listens; there nobody can import this package."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "causal_tracing"]:
        sys.modules[name] = None  # pyright: ignore[reportArgumentType]
    sys.argv = [str(script), str(folder), str(listening.fileno())]
    torch.set_num_threads(1)
    runpy.run_path(str(script), run_name="__main__")


def _written_to(*streams: str) -> None:
    for number, stream in enumerate(streams, 1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT), number)
