"""Where a result came from: everything that is needed to make it again, as plain values."""

import platform
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from causal_tracing import __version__
from causal_tracing.engine.agreement import Choice
from causal_tracing.model import Model
from causal_tracing.prompts import Pair, TokenPair

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "xarray", "nnsight")


def command(model: Model, pairs: Sequence[Pair], options: Mapping[str, Any]) -> str | None:
    """The command line that makes the trace again; None for a model that was handed in from memory.

    Several pairs are named as `pairs.jsonl`: the pairs of the provenance, one JSON object a line.
    """
    words = opening(model, pairs, "trace")
    if words is None:
        return None
    for name in ("components", "layers", "directions"):
        words += [f"--{name}", ",".join(map(str, options[name]))]
    positions = options["positions"]
    words += ["--positions", positions if isinstance(positions, str) else ",".join(map(str, positions))]
    for name in ("metric", "budget", "engine"):
        if options[name] not in (None, "auto"):
            words += [f"--{name}", str(options[name])]
    words += ["--seed", str(options["seed"]), "--spot-checks", str(options["spot_checks"])]
    return shlex.join(words)


def opening(model: Model, pairs: Sequence[Pair], name: str) -> list[str] | None:
    """The words of a command that say which model and which pairs; None for a model from memory."""
    if model.source.get("kind") in (None, "memory"):
        return None
    words = ["causal-tracing", name, "--model", model.name]
    if model.source["kind"] == "hub":  # a branch moves on; the commit does not
        words += ["--revision", model.source["commit"]]
    if model.dtype != "float32":
        words += ["--dtype", model.dtype]
    simple = len(pairs) == 1 and not (pairs[0].spans or pairs[0].occurrence or pairs[0].labels)
    if not simple:
        return [*words, "--pairs", "pairs.jsonl"]
    for name in ("clean", "corrupt", "answer", "foil", "subject", "corrupt_subject"):
        value = getattr(pairs[0], name)
        if value is not None:
            words.append(f"--{name.replace('_', '-')}={value}")
    return words


def provenance(
    model: Model,
    pairs: Sequence[TokenPair],
    *,
    options: Mapping[str, Any],
    engine: Choice,
    started: datetime,
    seconds: float,
    worlds: int,
    worlds_run: int,
    spot_checks: Mapping[str, Any],
    command: Callable[[Model, Sequence[Pair], Mapping[str, Any]], str | None] = command,
) -> dict[str, Any]:
    """The record that is kept with every result; JSON can hold it."""
    return {
        "model": model.name,
        "source": dict(model.source),
        "family": model.anatomy.family,
        "layers": model.num_layers,
        "dtype": model.dtype,
        "device": str(model.device),
        "attention": model.attention,
        "engine": engine.engine,
        "engine_note": engine.note,
        "versions": {"causal-tracing": __version__, "python": platform.python_version(), **_versions()},
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        "options": dict(options),
        "pairs": [pair_to_dict(pair.pair) for pair in pairs],
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "worlds": worlds,
        "worlds_skipped": worlds - worlds_run,
        "spot_checks": dict(spot_checks),
        "command": command(model, [pair.pair for pair in pairs], options),
    }


def pair_to_dict(pair: Pair) -> dict[str, Any]:
    """The fields of a pair that were given, as a row of a pairs file has them."""
    row = {field.name: getattr(pair, field.name) for field in fields(pair)}
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in row.items() if value}


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # an extra that is not installed
            continue
    return found
