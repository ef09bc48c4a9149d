"""What kind of device computes: its name, and whether it makes whole products of float32 numbers."""

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch

from causal_tracing.models.at_rest import as_written
from causal_tracing.models.model import Model

SIZE = 256  # of a product by which TF32 is seen: large enough to be made on tensor cores
LAST_BITS = 2**-13  # beside 1: float32 has it (23 bits), TF32 (10) and bfloat16 (7) do not


def kinds_of_device(model: Model) -> list[dict[str, Any]]:
    """What a model computes on, as one kind: two runs on the same kind have the same last bits, others may not.

    Nothing where a backend of its own computes, which may be anywhere.
    """
    if model.backend is not None:
        return []
    name = " + ".join(sorted({_name(device) for device in model.devices}))
    short = model.dtype == "float32" and any(map(short_products, model.devices))
    return [{"name": name, "short_products": short}]


def short_products(device: torch.device) -> bool:
    """Whether products of float32 lose bits there (TF32, bfloat16). Seen, not asked: torch has two ways to allow it."""
    factor = torch.full((SIZE, SIZE), 1 + LAST_BITS, dtype=torch.float32, device=device)
    with as_written():
        # Where the last bits are dropped from each factor, the whole sum falls short.
        return (factor @ factor)[0, 0].item() < SIZE * (1 + LAST_BITS)


@cache
def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _processor() if device.type == "cpu" else f"{device.type} of {_processor()}"


def _processor() -> str:
    """The CPU's model, where Linux says it; else what Python knows."""
    said, key = Path("/proc/cpuinfo"), "model name"
    lines = said.read_text(encoding="utf-8", errors="replace").splitlines() if said.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith(key)]
    return models[0] if models else platform.processor() or platform.machine()
