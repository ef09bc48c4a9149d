"""Whether what is written at one token is seen at later ones: the noise that is written, and the look behind it."""

import torch
from torch import Tensor

WRITTEN = 1  # the token that is written at


def noise(value: Tensor, generator: torch.Generator) -> Tensor:
    """As large as what a token has there."""
    size = value.float().square().mean().sqrt().clamp(min=0.01)
    drawn = torch.randn(value.shape[-1], generator=generator, dtype=torch.float32)
    return (drawn.to(value.device) * size).to(value.dtype)


def reached(before: Tensor, after: Tensor, bound: float) -> bool:
    """Whether anything differs behind the token that was written at."""
    return differ(before[WRITTEN + 1 :], after[WRITTEN + 1 :], before, bound)


def differ(one: Tensor, other: Tensor, scale: Tensor, bound: float) -> bool:
    """Whether two tensors differ by more than rounding; what is not a number does."""
    return not (one - other).abs().max().item() <= bound * scale.abs().max().item()
