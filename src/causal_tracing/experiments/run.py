"""Many pairs, in a folder: a run that can be stopped, killed and gone on with, and ends with the same arrays.

1. The manifest: what is asked for, on which model, and all that fixes the numbers (`results/storage/run_folder.py`). A
   folder that was begun with anything else is refused.
2. Chunks: consecutive pairs of the file, by a size that the options fix. Of each it is asked which pairs are kept;
   these are a job of their own (`trace.measured`), whose rows are committed together.
3. A pair that cannot be measured is a row with its reason, and the rest goes on.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from causal_tracing.experiments.chunks import Chunks, Order, on_threads, planned
from causal_tracing.experiments.filter import traceable_pairs
from causal_tracing.experiments.keywords import Keywords
from causal_tracing.experiments.manifest import begin_or_resume, part_of
from causal_tracing.experiments.open_trace import open_trace
from causal_tracing.experiments.progress import telling
from causal_tracing.experiments.repeat import keep_config
from causal_tracing.experiments.trace_result import Trace
from causal_tracing.models.model import Model, require_model
from causal_tracing.patching.options import Progress, RunOptions
from causal_tracing.prompts.pairs import Pair, as_pairs, named
from causal_tracing.results.storage.places import check_run_folder
from causal_tracing.results.storage.run_folder import Store, begun, threads_of


@Keywords(RunOptions)
def run(model: Model, pairs: Pair | Sequence[Pair], folder: str | Path, options: RunOptions) -> Trace:
    """Traces many pairs into a folder, goes on where an earlier call stopped, and gives the trace of all that is done.

    A pair that cannot be traced is marked with its reason, and the rest goes on. Raises what `trace` raises,
    InvalidResults for a folder that was begun with something else, MachineError where another process works in it.

    model: from `load`.
    pairs: many, such as those of `read_pairs`.
    folder: made if need be; open_trace(folder) reads what is done so far.

    Example:
        ct.run(model, ct.read_pairs("facts"), "facts", keep="first_choice", components=["mlp_out"])
    """
    require_model(model)
    folder = check_run_folder(Path(folder))  # before the work, not after it
    asked = named(as_pairs(pairs))
    kept, job = planned(model, traceable_pairs(model, asked, options), options)
    with begun(folder), telling(options.progress) as progress:
        manifest = begin_or_resume(folder, job, asked, options, torch.get_num_threads())
        keep_config(folder, job.model, asked, manifest["spec"]["options"], write=options.write, run=part_of(options))
        order = Order(traceable=kept, options=options, threads=threads_of(manifest), budget=manifest["budget"])
        with on_threads(order.threads):
            _fill(Store(folder, manifest["spec_sha256"]), Chunks(model, order, job), asked, manifest, progress)
    return open_trace(folder)


def _fill(
    store: Store, chunks: Chunks, pairs: Sequence[Pair], manifest: Mapping[str, Any], progress: Progress | None
) -> None:
    """Measures every chunk that is not there yet. A shard asks about no pair of another's."""
    size, (first, shards) = manifest["spec"]["chunk"], manifest["shard"]
    parts = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    mine, done = range(first, len(parts), shards), store.chunks()
    for at, chunk in enumerate(mine):
        if chunk not in done:
            store.add(chunk, *chunks.rows(parts[chunk], _within(progress, at, len(mine))))
        if progress:
            progress(1000 * (at + 1), 1000 * len(mine))


def _within(progress: Progress | None, at: int, of: int) -> Progress | None:
    """A chunk's progress, told as the run's."""
    if progress is None:
        return None
    return lambda done, total: progress(round(1000 * (at + done / max(1, total))), 1000 * of)
