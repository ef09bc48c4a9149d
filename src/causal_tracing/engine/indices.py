"""Numbers that Python knows, as tensors where they are needed."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def indices(values: Sequence[Any], device: torch.device) -> Tensor:
    """Whole numbers as a tensor on a device. A GPU is sent them from pinned memory: nothing waits for the copy."""
    if device.type != "cuda":
        return torch.tensor(values, device=device)
    return torch.tensor(values).pin_memory().to(device, non_blocking=True)
