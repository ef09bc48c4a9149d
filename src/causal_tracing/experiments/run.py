"""Many pairs, in a folder: a run that can be stopped, killed and gone on with, and ends with the same arrays.

1. The manifest: what is asked for, on which model, and all that fixes the numbers (`results/storage/run_folder.py`). A
   folder that was begun with anything else is refused.
2. Chunks: consecutive pairs of the file, by a size that the options fix. Of each it is asked which pairs are kept;
   these are a job of their own (`trace.measured`), whose rows are committed together.
3. A pair that cannot be measured is a row with its reason, and the rest goes on.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from causal_tracing.engine.backend import Collecting
from causal_tracing.experiments.chunks import Chunks, Order, on_threads, planned
from causal_tracing.experiments.filter import traceable_pairs
from causal_tracing.experiments.keywords import Keywords
from causal_tracing.experiments.manifest import begin_or_resume, part_of
from causal_tracing.experiments.open_trace import open_trace
from causal_tracing.experiments.progress import telling
from causal_tracing.experiments.repeat import keep_config
from causal_tracing.experiments.trace_result import Trace
from causal_tracing.experiments.workers.crew import Crew, crew_of
from causal_tracing.experiments.workers.dispatch import Measured, Task
from causal_tracing.experiments.workers.work import Work, expected, require_recipe, require_sendable
from causal_tracing.models.model import Model, require_model
from causal_tracing.patching.options.trace import Progress, RunOptions
from causal_tracing.prompts.pairs import Pair, as_pairs, named
from causal_tracing.results.storage.places import JOBS, check_run_folder
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
    recipe = None if options.workers is None else require_recipe(model)
    if recipe is not None:
        require_sendable(options)
    crew = crew_of(options.workers)
    # Planned before the folder is made: what is wrong with the options leaves no trace on the disk.
    kept, job = planned(model, traceable_pairs(model, asked, options), options)
    with begun(folder), telling(options.progress, pairs=len(asked)) as progress:
        manifest = begin_or_resume(folder, job, asked, options, crew.threads)
        keep_config(folder, job.model, asked, manifest["spec"]["options"], write=options.write, run=part_of(options))
        fixed = {"budget": manifest["budget"], "call": manifest.get("call_tokens")}
        order = Order(traceable=kept, options=options, threads=threads_of(manifest), **fixed)
        if isinstance(model.backend, Collecting):
            model.backend.keep_jobs(folder / JOBS)
        work = recipe and Work(recipe=recipe, order=order.silent())
        with on_threads(order.threads):
            chunks = Chunks(model, order, job)
            _fill(_Run(folder, manifest, asked, retry=options.retry_failed), crew, chunks, work, progress)
    return open_trace(folder)


class _Run:
    """A run folder and its chunks: which are done, and which of a shard's are left."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any], pairs: Sequence[Pair], *, retry: bool) -> None:
        self.spec = manifest["spec"]
        self.store = Store(folder, manifest["spec_sha256"])
        self.done = {*self.store.chunks()}
        size, (first, shards) = manifest["spec"]["chunk"], manifest["shard"]
        parts = [tuple(pairs[start : start + size]) for start in range(0, len(pairs), size)]
        self.mine = {chunk: parts[chunk] for chunk in range(first, len(parts), shards)}
        self.failed = self.store.failed() if retry else {}

    def tasks(self) -> list[Task]:
        """What is left to measure: whole chunks, and those that failed of others."""
        left = [Task(chunk=chunk, pairs=pairs) for chunk, pairs in self.mine.items() if chunk not in self.done]
        for chunk, pairs in self.mine.items():
            again = tuple(pair for pair in pairs if pair.id in self.failed.get(chunk, ()))
            left += [Task(chunk=chunk, pairs=again)] if again else []
        return left

    def add(self, found: Measured) -> None:
        """Commits a chunk, or what it has of pairs that had failed."""
        if found.chunk in self.done:
            self.store.replace(found.chunk, found.rows, found.record)
        else:
            self.store.add(found.chunk, found.rows, found.record)


def _fill(run: _Run, crew: Crew, chunks: Chunks, work: Work | None, progress: Progress | None) -> None:
    """Measures what is left, and commits each chunk as it is done. A shard asks about no pair of another's."""
    tasks = run.tasks()
    done = len(run.mine) - len(tasks)

    def tell(shares: Mapping[int, float]) -> None:
        if progress:
            progress(round(1000 * (done + sum(shares.values()))), 1000 * len(run.mine))

    facts = expected(chunks.model, run.spec, chunks.order.threads) if work else {}
    with closing(crew.measured(tasks, chunks, work, facts, tell if progress else None)) as measured:
        for found in measured:
            run.add(found)
            done += 1
            tell({})
