"""Many pairs, in a folder: a run that can be stopped, killed and gone on with, and ends with the same arrays.

1. The manifest: what is asked for, on which model, and all that fixes the numbers (`results/storage/run_folder.py`). A
   folder that was begun with anything else is refused.
2. Chunks: consecutive pairs of the file, by a size that the options fix. Of each it is asked which pairs are kept;
   these are a job of their own (`trace.measured`), whose rows are committed together.
3. A pair that cannot be measured is a row with its reason, and the rest goes on.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from causal_tracing.errors import InputError, InvalidPair, InvalidResults, OutOfMemory
from causal_tracing.experiments.filter import Kept, preferred_pairs, traceable_pairs
from causal_tracing.experiments.keywords import Keywords
from causal_tracing.experiments.open_trace import open_trace
from causal_tracing.experiments.progress import telling
from causal_tracing.experiments.provenance import provenance_of
from causal_tracing.experiments.repeat import command, keep_config, pair_to_dict
from causal_tracing.experiments.trace import measured
from causal_tracing.experiments.trace_result import Trace
from causal_tracing.models.model import Model, require_model
from causal_tracing.models.offload import weights
from causal_tracing.patching.job import PER_PAIR, Job, plan_job
from causal_tracing.patching.measure import pairs_at_once
from causal_tracing.patching.options import Progress, RunOptions
from causal_tracing.prompts.pairs import Pair, as_pairs, named
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.spot_checks import together
from causal_tracing.results.storage.places import check_run_folder
from causal_tracing.results.storage.run_folder import (
    DROPPED,
    FAILED,
    OK,
    Row,
    Store,
    begun,
    differences,
    digest,
    is_run_folder,
    read_manifest,
    write_manifest,
)
from causal_tracing.results.storage.saved import to_parts

SAMPLED = 1024  # numbers of each parameter that a model's fingerprint reads
RECORDED = ("started", "seconds", "worlds", "worlds_skipped", "spot_checks")
NOT_FINITE = "an unedited run's logits are not finite"


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
    kept, job = _planned(model, traceable_pairs(model, asked, options), options)
    with begun(folder), telling(options.progress) as progress:
        manifest = _manifest(folder, job, asked, options)
        keep_config(folder, job.model, asked, manifest["spec"]["options"], write=options.write, run=_part(options))
        with _threads(manifest["threads"]):
            job = job.within(manifest["budget"])
            _fill(Store(folder, manifest["spec_sha256"]), _Asked(model, options, job, asked, kept), manifest, progress)
    return open_trace(folder)


def _planned(model: Model, kept: Kept, options: RunOptions) -> tuple[Kept, Job]:
    """The job of the pairs that can be traced, without those whose noise does not fit into memory alone."""
    if not kept.pairs:
        reason = next(iter(kept.failed.values()), "")
        raise InvalidPair(f"None of the {len(kept.failed)} pairs can be traced. The first: {reason}")
    try:
        return kept, plan_job(model, kept.pairs, options)
    except OutOfMemory:
        too_large = {pair.id: said for pair in kept.pairs if (said := _too_large(model, pair, options))}
        if not too_large:
            raise
    rest = [pair for pair in kept.pairs if pair.id not in too_large]
    return _planned(model, replace(kept, pairs=rest, failed={**kept.failed, **too_large}), options)


def _too_large(model: Model, pair: Pair, options: RunOptions) -> str:
    """What is said where a pair alone does not fit; empty where it does, or where it is no job alone."""
    try:
        plan_job(model, [pair], options)
    except OutOfMemory as error:
        return str(error)
    except InputError:
        pass
    return ""


def _manifest(folder: Path, job: Job, pairs: Sequence[Pair], options: RunOptions) -> dict[str, Any]:
    """The folder's manifest, written if there is none. Raises InvalidResults where another run was begun in it."""
    record, shard = provenance_of(job), options.shard
    spec = {
        "model": {name: record[name] for name in ("family", "layers", "dtype", "attention", "engine")}
        | {"fingerprint": fingerprint(job.model), "device": job.model.device.type},
        "versions": {name: record["versions"].get(name) for name in ("causal-tracing", "torch", "transformers")},
        "options": record["options"],
        "keep": options.keep,
        "pairs_sha256": digest([pair_to_dict(pair) for pair in pairs]),
        # Another tokenizer, or a chat template that knows the date, makes other prompts of the same pairs.
        "tokens_sha256": digest([[prompt.tokens for prompt in (pair.clean, pair.corrupt)] for pair in job.pairs]),
        "chunk": pairs_at_once(job.contrasts),
    }
    if not is_run_folder(folder):
        part, whole = _part(options) | {"out": folder.name}, {"keep": options.keep}
        record["command"] = command(job.model, pairs, record["options"], part)
        manifest = {
            "spec": spec,
            "spec_sha256": digest(spec),
            "pairs": [pair_to_dict(pair) for pair in pairs],
            "shard": list(shard),
            "whole_command": command(job.model, pairs, record["options"], whole),
            "threads": torch.get_num_threads(),
            "budget": job.backend.describe().budget,
            "provenance": {name: value for name, value in record.items() if name not in ("pairs", "noise")}
            | {"noise": record["noise"] and {n: v for n, v in record["noise"].items() if n not in PER_PAIR}},
        }
        write_manifest(folder, manifest)
        return manifest
    found = read_manifest(folder)
    differ = [
        *differences(found["spec"], json.loads(json.dumps(spec))),
        *differences(found["shard"], list(shard), "shard"),
    ]
    if differ:
        raise InvalidResults(f"{folder} was begun with something else: {'; '.join(differ)}. Give --out another name.")
    return found


def _part(options: RunOptions) -> dict[str, str]:
    """Which of the pairs are traced, as a command line says it."""
    first, count = options.shard
    return {"keep": options.keep} | ({} if (first, count) == (0, 1) else {"shard": f"{first}/{count}"})


def fingerprint(model: Model) -> str:
    """What tells a model's weights from others': names, shapes, and some numbers of every parameter."""
    found = hashlib.sha256()
    if model.network is None:  # a backend of its own runs it
        found.update(f"{model.name} {model.backend.describe().engine}".encode())
        return found.hexdigest()
    for name, weight in weights(model.network):
        flat = weight.flatten()
        step = max(1, len(flat) // SAMPLED)
        found.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        found.update(flat[::step][:SAMPLED].float().cpu().numpy().tobytes())
    return found.hexdigest()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """So many threads, as the run was begun with: other numbers add in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """All pairs of a run, which of them can be traced, and the job of those."""

    model: Model
    options: RunOptions
    job: Job
    pairs: Sequence[Pair]
    traceable: Kept


def _fill(store: Store, asked: _Asked, manifest: Mapping[str, Any], progress: Progress | None) -> None:
    """Measures every chunk that is not there yet. A shard asks about no pair of another's."""
    size, (first, shards) = manifest["spec"]["chunk"], manifest["shard"]
    places = {pair.id: number for number, pair in enumerate(asked.traceable.pairs)}
    chunks = [asked.pairs[start : start + size] for start in range(0, len(asked.pairs), size)]
    mine, done = range(first, len(chunks), shards), store.chunks()
    for at, chunk in enumerate(mine):
        if chunk not in done:
            there = [pair for pair in chunks[chunk] if pair.id in places]
            kept = preferred_pairs(asked.model, there, asked.options, asked.options.keep)
            rest = _left_out(chunks[chunk], {**asked.traceable.failed, **kept.failed}, kept.dropped)
            numbers = [places[pair.id] for pair in kept.pairs]
            rows, record = _measured(asked.job, numbers, _within(progress, at, len(mine)))
            store.add(chunk, [*rows, *rest], record)
        if progress:
            progress(1000 * (at + 1), 1000 * len(mine))


def _within(progress: Progress | None, at: int, of: int) -> Progress | None:
    """A chunk's progress, told as the run's."""
    if progress is None:
        return None
    return lambda done, total: progress(round(1000 * (at + done / max(1, total))), 1000 * of)


def _left_out(pairs: Sequence[Pair], failed: Mapping[str, str], dropped: Mapping[str, str]) -> list[Row]:
    """The rows of those pairs of a chunk that are not measured, in order."""
    ids = [pair.id or "" for pair in pairs]
    return [
        Row(pair=id, status=FAILED if id in failed else DROPPED, reason=failed.get(id) or dropped[id])
        for id in ids
        if id in failed or id in dropped
    ]


def _measured(job: Job, numbers: Sequence[int], progress: Progress | None) -> tuple[list[Row], dict[str, Any]]:
    """A chunk's rows, and what is recorded of it. Where a world does not fit into memory, half of the pairs at once."""
    if not numbers:
        return [], {}
    part = job.part(numbers)
    try:
        found = measured(part, progress)
    except OutOfMemory as error:
        if len(numbers) == 1:
            return [Row(pair=part.pairs[0].id, status=FAILED, reason=str(error))], {}
        half = len(numbers) // 2
        apart = [_measured(job, part, None) for part in (numbers[:half], numbers[half:])]
        return [row for rows, _ in apart for row in rows], _added([record for _, record in apart if record])
    rows = [_row(found, n) for n in range(len(numbers))]
    return rows, {name: found.provenance[name] for name in RECORDED}


def _row(found: Measurements, number: int) -> Row:
    """One pair of a chunk."""
    id = str(found.pairs.pair.values[number])
    one = found.of_pair(id)
    unedited = one.pairs[["clean", "corrupt"]].sel(metric="log_prob").to_array()
    if not np.isfinite(unedited.values).all():
        return Row(pair=id, status=FAILED, reason=NOT_FINITE)
    tables, arrays = to_parts(one)
    noise = found.provenance["noise"]
    drawn = None if noise is None else {name: noise[name][number] for name in PER_PAIR}
    return Row(pair=id, status=OK, texts={"tables": tables, "noise": drawn}, arrays=arrays)


def _added(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is recorded of pairs that were measured alone, as one record."""
    if not records:
        return {}
    return {
        "started": records[0]["started"],
        **{name: sum(record[name] for record in records) for name in ("seconds", "worlds", "worlds_skipped")},
        "spot_checks": together([record["spot_checks"] for record in records]),
    }
