"""Where a result came from: everything that is needed to make it again, as plain values."""

import platform
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from causal_tracing import __version__
from causal_tracing.experiments.repeat import command, pair_to_dict
from causal_tracing.models.devices import kinds_of_device
from causal_tracing.patching.job import Job
from causal_tracing.patching.options.trace import Options
from causal_tracing.results.site_kinds import BLOCKS

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
    model, described, options = job.model, job.backend.describe(), _options(job)
    return {
        "model": model.name,
        "source": dict(model.source),
        "family": model.anatomy.family,
        "layers": model.num_layers,
        "dtype": model.dtype,
        "device": str(model.device),
        "devices": kinds_of_device(model),
        "attention": model.attention,
        "engine": described.engine,
        "engine_note": described.note,
        "rounding": described.rounding,
        "versions": {"causal-tracing": __version__, "python": platform.python_version(), **_versions()},
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        "options": options,
        "noise": job.noise,
        "pairs": [pair_to_dict(pair) for pair in job.asked],
        "command": command(model, job.asked, options, declared=type(job.options)),
    }


def _options(job: Job) -> dict[str, Any]:
    """The options, of a trace with what the grid of blocks made of them."""
    found = job.options.to_dict()
    if not isinstance(job.options, Options):
        return found
    first, blocks = job.grids[0], [grid for grid in job.grids if grid.kind == BLOCKS]
    arms = dict.fromkeys(arm for grid in job.grids for arm in grid.arms)
    directions = [arm.name for arm in arms if arm.is_direction]
    severed = [arm.severed for arm in arms if arm.severed]
    made = {"components": [name for grid in blocks for name in grid.components], "layers": list(first.layers)}
    return found | made | {"directions": directions, "sever": severed}


@cache  # each is a file of metadata
def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # an extra that is not installed
            continue
    return found
