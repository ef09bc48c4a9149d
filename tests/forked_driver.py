"""A run with workers in a process of its own: forks of processes that have imported what they need."""

from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

import causal_tracing as ct
from causal_tracing.experiments.workers import processes

FORKS = get_context("forkserver")
FORKS.set_forkserver_preload([__name__, "causal_tracing.experiments.run", "transformers.models.llama.modeling_llama"])


def drive(folder: Path, run: Path, pairs: Sequence[ct.Pair], options: Mapping[str, Any]) -> None:
    """The run of two workers, one thread each, that have a server of their own."""
    processes.SPAWN = FORKS
    torch.set_num_threads(2)
    ct.run(ct.load(folder, progress=False), pairs, run, workers=2, **options)
