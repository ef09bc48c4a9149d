"""Runs `examine` on many types: each in a process of its own, two at a time, and keeps what was found.

A type's result is a file in `.families/` (ignored by git). It counts until the package's source, these files, torch or
transformers change; so a sweep that was stopped goes on where it was, and --fresh starts anew. What the oracle worked
out is kept beside it, and outlives changes of the package.
"""

import hashlib
import json
import multiprocessing
import os
import pickle
import resource
import signal
import time
from collections.abc import Iterable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import transformers

import causal_tracing
from model_types.examine import Memory, Result, examine

ROOT = Path(__file__).parents[2]
KEPT = ROOT / ".families"
SECONDS = 120  # of computing, a type; what takes longer is ended, and said so
PATIENCE = 15  # times that, by the clock: other programs may have the cores


ORACLE = ("recipes", "overrides", "prompts", "spots", "anatomy", "attention", "mixture", "oracle")


def version(*files: Path) -> str:
    """What results depend on, in one word: torch, transformers and these files."""
    digest = hashlib.sha256(f"{torch.__version__} {transformers.__version__}".encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def of_results() -> str:
    """Of the package, and of all that stands here."""
    folders = (Path(causal_tracing.__file__).parent, Path(__file__).parent)
    return version(*(file for folder in folders for file in sorted(folder.rglob("*.py"))))


def of_oracle() -> str:
    return version(*(Path(__file__).with_name(f"{name}.py") for name in ORACLE))


def file_of(name: str) -> Path:
    return KEPT / f"{name}.json"


def kept(name: str, current: str | None = None) -> Result | None:
    """A type's result, if there is one (of this version)."""
    if not file_of(name).exists():
        return None
    result = json.loads(file_of(name).read_text())
    return result if current in (None, result.get("version")) else None


def keep(name: str, result: Result, current: str) -> None:
    write_whole(file_of(name), (json.dumps(result | {"version": current}, indent=1) + "\n").encode())


def one(name: str, current: str, seconds: int) -> None:
    """What a process of its own does."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    torch.set_num_threads(1)
    memory = remembered(name)
    keep(name, examine(name, memory), current)
    remember(name, memory)


def remembered(name: str) -> Memory:
    """What the oracle knows of a type already."""
    file = file_of(name).with_suffix(".oracle")
    if not file.exists():
        return Memory()
    written, memory = pickle.loads(file.read_bytes())
    return memory if written == of_oracle() else Memory()


def remember(name: str, memory: Memory) -> None:
    write_whole(file_of(name).with_suffix(".oracle"), pickle.dumps((of_oracle(), memory)))


def write_whole(file: Path, content: bytes) -> None:
    """Never half a file, also when it is stopped."""
    KEPT.mkdir(exist_ok=True)
    unfinished = file.with_name(f"{file.name}.part")
    unfinished.write_bytes(content)
    unfinished.replace(file)


def sweep(names: Sequence[str], *, fresh: bool = False, workers: int = 2, seconds: int = SECONDS) -> list[Result]:
    """The results of these types, and a line for each as it comes."""
    current = of_results()
    waiting = [name for name in names if fresh or kept(name, current) is None]
    print(f"{len(names)} types, {len(names) - len(waiting)} known already", flush=True)
    running: dict[str, tuple[BaseProcess, float]] = {}
    # A fork has torch and transformers loaded already; only this thread runs here, so nothing is held by another.
    context = multiprocessing.get_context("fork")
    while waiting or running:
        while waiting and len(running) < workers:
            name = waiting.pop(0)
            process = context.Process(target=one, args=(name, current, seconds), daemon=True)
            process.start()
            running[name] = (process, time.monotonic())
        for name in finished(running, PATIENCE * seconds):
            process, start = running.pop(name)
            if kept(name, current) is None:
                keep(name, ended(name, process, time.monotonic() - start), current)
            print(line(kept(name) or {}), flush=True)
        time.sleep(0.02)
    return [result for name in names if (result := kept(name, current))]


def finished(running: dict[str, tuple[BaseProcess, float]], seconds: float) -> Iterable[str]:
    """The names of those that are done, or have been stopped for taking too long."""
    for name, (process, start) in list(running.items()):
        if process.is_alive() and time.monotonic() - start > seconds and process.pid:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        if not process.is_alive():
            process.join()
            yield name


def ended(name: str, process: BaseProcess, took: float) -> Result:
    """The result of a type whose process left none."""
    slow = process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
    why = "took too long, and was ended" if slow else f"its process ended with {process.exitcode}"
    return {"type": name, "verdict": "TRACEBACK", "why": why, "seconds": round(took, 1)}


def line(result: Result) -> str:
    """One type, as it is told while the sweep runs."""
    oracle: dict[str, Any] = result.get("oracle", {})
    engine = "/".join(dict.fromkeys(result.get("engine", {}).values()))
    return (
        f"{result.get('verdict', '?'):13} {result.get('type', '?'):28} {engine:7} "
        f"oracle: {oracle.get('layers', 0)} layers, {'; '.join(oracle.get('split', [])) or oracle.get('why', '')}"
        f"   {result.get('seconds', 0):.0f} s\n{'':14}{result.get('why', '')}".rstrip()
    )
