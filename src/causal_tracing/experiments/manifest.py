"""What a run folder's manifest says: what is asked for, on which model, and all that fixes the numbers."""

import hashlib
import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from causal_tracing.errors import InvalidResults
from causal_tracing.experiments.provenance import provenance_of
from causal_tracing.experiments.repeat import command, pair_to_dict
from causal_tracing.models.model import Model
from causal_tracing.models.offload import absent, weights
from causal_tracing.models.quantised import beside_parameters
from causal_tracing.patching.job import PER_PAIR, Job
from causal_tracing.patching.measure import pairs_at_once
from causal_tracing.patching.options.trace import RunOptions
from causal_tracing.prompts.pairs import Pair
from causal_tracing.results.storage.run_folder import (
    differences,
    digest,
    is_run_folder,
    read_manifest,
    threads_of,
    write_manifest,
)

FACTS = ("model", "versions", "tokens_sha256", "chunk")  # of a specification: what a worker says of itself
SAMPLED = 1024  # numbers of each parameter that a model's fingerprint reads


def begin_or_resume(folder: Path, job: Job, pairs: Sequence[Pair], options: RunOptions, threads: int) -> dict[str, Any]:
    """The folder's manifest, written if there is none; one that is there keeps its threads.

    Raises InvalidResults where another run was begun in it.
    """
    if not is_run_folder(folder):
        return _begun(folder, job, pairs, options, threads)
    found = read_manifest(folder)
    # Threads are those that the run was begun with, on which it is gone on with: they cannot differ.
    spec = _spec(job, pairs, options, threads_of(found))
    if "threads" not in found["spec"]:  # 0.1.0 had them beside it
        del spec["threads"]
    began, now = (each["versions"]["causal-tracing"] for each in (found["spec"], spec))
    if began != now:
        raise InvalidResults(
            f"{folder} was begun by causal-tracing {began}, and this is {now}, which measures otherwise: a run is of "
            "one version. open_trace reads what is done; give --out another name to measure all of it, or install "
            f"causal-tracing=={began} to go on."
        )
    differ = [
        # Through JSON, as what was written went: tuples are lists there, and numbers as keys are texts.
        *differences(found["spec"], json.loads(json.dumps(spec))),
        *differences(found["shard"], list(options.shard), "shard"),
    ]
    if differ:
        raise InvalidResults(f"{folder} was begun with something else: {'; '.join(differ)}. Give --out another name.")
    return found


def _begun(folder: Path, job: Job, pairs: Sequence[Pair], options: RunOptions, threads: int) -> dict[str, Any]:
    record, spec, described = provenance_of(job), _spec(job, pairs, options, threads), job.backend.describe()
    run, whole = part_of(options) | {"out": folder.name}, {"keep": options.keep}
    record["command"] = command(job.model, pairs, record["options"], run)
    manifest = {
        "spec": spec,
        "spec_sha256": digest(spec),
        "pairs": [pair_to_dict(pair) for pair in pairs],
        "shard": list(options.shard),
        "whole_command": command(job.model, pairs, record["options"], whole),
        "budget": described.budget,
        "call_tokens": described.call_tokens,
        "provenance": {name: value for name, value in record.items() if name not in ("pairs", "noise")}
        | {"noise": record["noise"] and {n: v for n, v in record["noise"].items() if n not in PER_PAIR}},
    }
    write_manifest(folder, manifest)
    return manifest


def _spec(job: Job, pairs: Sequence[Pair], options: RunOptions, threads: int) -> dict[str, Any]:
    """What another run in the same folder must have in common with this one."""
    return facts(job, threads) | {
        "options": provenance_of(job)["options"],
        "keep": options.keep,
        "pairs_sha256": digest([pair_to_dict(pair) for pair in pairs]),
    }


def facts(job: Job, threads: int) -> dict[str, Any]:
    """What a model, as it was loaded here, makes of the pairs; whoever works on the same run has the same."""
    record = provenance_of(job)
    return {
        "model": {name: record[name] for name in ("family", "layers", "dtype", "attention", "engine")}
        | {"fingerprint": fingerprint(job.model), "device": job.model.device.type},
        "versions": {name: record["versions"].get(name) for name in ("causal-tracing", "torch", "transformers")},
        # Another tokenizer, or a chat template that knows the date, makes other prompts of the same pairs.
        "tokens_sha256": digest([[prompt.tokens for prompt in (pair.clean, pair.corrupt)] for pair in job.pairs]),
        "chunk": pairs_at_once(job.contrasts),
        "threads": threads,
    }


def part_of(options: RunOptions) -> dict[str, str]:
    """Which of the pairs are traced, as a command line says it."""
    first, count = options.shard
    return {"keep": options.keep} | ({} if (first, count) == (0, 1) else {"shard": f"{first}/{count}"})


def fingerprint(model: Model) -> str:
    """What tells a model's weights from others': names, shapes, and some numbers of every parameter."""
    found = hashlib.sha256()
    if model.network is None or absent(model.network):  # a backend of its own runs it, and has its weights
        found.update(f"{model.name} {model.backend.describe().engine} {model.source.get('key', '')}".encode())
        return found.hexdigest()
    for name, weight in chain(weights(model.network), beside_parameters(model.network)):
        flat = weight.flatten()
        # Some numbers, evenly spread over each parameter: a run is begun without reading gigabytes.
        step = max(1, len(flat) // SAMPLED)
        found.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        found.update(flat[::step][:SAMPLED].float().cpu().numpy().tobytes())
    return found.hexdigest()
