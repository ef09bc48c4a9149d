"""Processes of their own that need not import anything: forks of one that has imported what they need."""

import os
import runpy
import signal
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
    torch.set_num_threads(1)
    if forked:
        processes.SPAWN = get_context("fork")  # pyright: ignore[reportAttributeAccessIssue]
    ct.run(ct.load(folder, progress=False), pairs, run, workers=2, **options)


def command(folder: Path, *arguments: str, ctrl_c: Any = signal.default_int_handler) -> None:
    """The command line's, in a folder and a session of its own: what it says stands in its files stdout and stderr.

    Whoever begins it may have it ignore Ctrl-C, as a shell does in the background.
    """
    signal.signal(signal.SIGINT, ctrl_c)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # blocked in all forks of a server begun with a worker
    os.setsid()
    os.chdir(folder)
    _written_to(*(str(folder / name) for name in ("stdout", "stderr")))
    sys.argv = ["causal-tracing", *arguments]
    torch.set_num_threads(1)
    runpy.run_module("causal_tracing", run_name="__main__")


def executed(code: str, *arguments: str, timeout: float = 600) -> "subprocess.CompletedProcess[str]":
    """What `python -c code arguments` gives; the tests' checks of annotations are not in it."""
    with TemporaryDirectory() as folder:
        streams = [str(Path(folder, name)) for name in ("stdout", "stderr")]
        fork = FORKS.Process(target=_execute, args=(code, arguments, *streams))
        fork.start()
        fork.join(timeout)
        fork.kill()
        fork.join()
        out, err = (Path(stream).read_text() for stream in streams)
        return subprocess.CompletedProcess(arguments, fork.exitcode or 0, out, err)


def _execute(code: str, arguments: Sequence[str], *streams: str) -> None:
    _written_to(*streams)
    sys.argv = ["-c", *arguments]
    torch.set_num_threads(1)
    exec(compile(code, "executed", "exec"), {"__name__": "__main__"})


def _written_to(*streams: str) -> None:
    for number, stream in enumerate(streams, 1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT), number)
