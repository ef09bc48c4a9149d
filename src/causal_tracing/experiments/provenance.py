"""Where a result came from: everything that is needed to make it again, as plain values."""

import dataclasses
import platform
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from causal_tracing import __version__
from causal_tracing.models.model import Model
from causal_tracing.patching.job import Job
from causal_tracing.prompts.pairs import Pair

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "xarray", "nnsight")


def provenance(
    job: Job,
    *,
    started: datetime,
    seconds: float,
    worlds: int,
    worlds_run: int,
    spot_checks: Mapping[str, Any],
) -> dict[str, Any]:
    """The record that is kept with every result; JSON can hold it."""
    return provenance_of(job) | {
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "worlds": worlds,
        "worlds_skipped": worlds - worlds_run,
        "spot_checks": dict(spot_checks),
    }


def provenance_of(job: Job) -> dict[str, Any]:
    """What is known of a job before it is run."""
    model, options = job.model, job.options.to_dict(job.grids[0])
    return {
        "model": model.name,
        "source": dict(model.source),
        "family": model.anatomy.family,
        "layers": model.num_layers,
        "dtype": model.dtype,
        "device": str(model.device),
        "attention": model.attention,
        "engine": job.choice.engine,
        "engine_note": job.choice.note,
        "versions": {"causal-tracing": __version__, "python": platform.python_version(), **_versions()},
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        "options": options,
        "noise": job.noise,
        "pairs": [pair_to_dict(pair) for pair in job.asked],
        "command": command(model, job.asked, options),
    }


def pair_to_dict(pair: Pair) -> dict[str, Any]:
    """The fields of a pair that were given, as a row of a pairs file has them."""
    row = {field.name: getattr(pair, field.name) for field in dataclasses.fields(pair)}
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in row.items() if value}


def command(
    model: Model, pairs: Sequence[Pair], options: Mapping[str, Any], run: Mapping[str, str] | None = None
) -> str | None:
    """The command line that makes the result again; None for a model that was handed in from memory.

    `run` has the options of a run folder, whose pairs always are a file. Several pairs are named as `pairs.jsonl`: the
    pairs of the provenance, one JSON object a line; `reference.txt` holds the reference prompts of the options, one a
    line, and `tensors.safetensors` the tensors given.
    """
    if model.source.get("kind") in (None, "memory"):
        return None
    words = ["causal-tracing", "trace", "--model", model.name]
    if model.source["kind"] == "hub":  # a branch moves on; the commit does not
        words += ["--revision", model.source["commit"]]
    if model.dtype != "float32":
        words += ["--dtype", model.dtype]
    fields = ("clean", "corrupt", "answer", "foil", "subject", "corrupt_subject")
    if run is None and len(pairs) == 1 and {*pair_to_dict(pairs[0])} <= {*fields, "id", "cluster", "chat"}:
        words += ["--chat"] if pairs[0].chat else []
        for name in fields:
            value = getattr(pairs[0], name)
            if value is not None:
                words.append(f"--{name.replace('_', '-')}={value}")
    else:
        words += ["--pairs", "pairs.jsonl"]
    for name in ("components", "layers", "directions"):
        words += [f"--{name}", ",".join(map(str, options[name]))]
    positions = options["positions"]
    words += ["--positions", positions if isinstance(positions, str) else ",".join(map(str, positions))]
    if options["align"] != "strict":
        words += ["--align", options["align"]]
    if options["control"]:
        words += ["--control", options["control"]]
    words += _changes(options) + _written(options["write"]) + _units(options)
    for name in ("metric", "budget", "engine"):
        if not (name == "metric" and options["preset"]) and options[name] not in (None, "auto"):
            words += [f"--{name}", str(options[name])]
    words += ["--seed", str(options["seed"]), "--spot-checks", str(options["spot_checks"])]
    words += [word for option, value in (run or {}).items() for word in (f"--{option}", value)]
    return shlex.join(words)


def _changes(options: Mapping[str, Any]) -> list[str]:
    """Noise, windows, severed parts and a preset, where they were asked for."""
    if options["preset"]:
        words = ["--preset", options["preset"]]
    else:
        words, window = [], options["window"]
        if noise := options["noise"]:
            strength = f"{noise['scale']}sigma" if noise["sigma"] is None else str(noise["scale"] * noise["sigma"])
            words += ["--noise", strength, "--draws", str(noise["draws"]), "--draw-seed", str(noise["seed"])]
        if window != 1:
            widths = [f"{name}={width}" for name, width in window.items()] if isinstance(window, Mapping) else [window]
            words += ["--window", ",".join(map(str, widths))]
    if options["sever"]:
        words += ["--sever", ",".join(options["sever"])]
    return words if options["window_sums"] else [*words, "--no-window-sums"]


def _written(write: Mapping[str, Any]) -> list[str]:
    """What is written, where it is not the other run's activation; prompts and tensors as files of these names."""
    words = [] if write["kind"] == "donor" else ["--write", write["kind"]]
    if write["alpha"] != 1:
        words += ["--alpha", str(write["alpha"])]
    if "prompts" in write:
        words += ["--reference", "reference.txt"]
    if "draws" in write:
        words += ["--draws", str(write["draws"]), "--draw-seed", str(write["seed"])]
    return [*words, "--tensors", "tensors.safetensors"] if "tensors" in write else words


def _units(options: Mapping[str, Any]) -> list[str]:
    """Heads and neurons, where they were asked for."""
    words: list[str] = []
    for name in ("heads", "head_positions", "neurons", "neuron_positions"):
        value = options.get(name)
        if isinstance(value, Mapping):
            value = [layer + (":" + "+".join(map(str, listed)) if listed else "") for layer, listed in value.items()]
        if value is not None:
            text = "all" if value is True else value if isinstance(value, str) else ",".join(map(str, value))
            words += [f"--{name.replace('_', '-')}", text]
    return words


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # an extra that is not installed
            continue
    return found
