"""How large logits are and how far apart: words that a model masks (−inf, −1e9) are left out."""

import torch
from jaxtyping import Float
from torch import Tensor

MASKED = -1e6  # a logit below is of a word that the model is forbidden to say


def largest(logits: Float[Tensor, "... vocab"]) -> float:
    """The largest absolute logit of a word that is not masked; NaN where there is a logit that is no number."""
    said = logits[~(logits <= MASKED)].abs()
    return said.max().item() if said.numel() else float("nan")


def apart(one: Float[Tensor, "... vocab"], other: Float[Tensor, "... vocab"]) -> Float[Tensor, "..."]:
    """By how much logits differ at most, at each place; words that are masked in both do not."""
    both = (one <= MASKED) & (other <= MASKED)
    return torch.where(both, 0.0, (one - other).abs()).amax(-1)
