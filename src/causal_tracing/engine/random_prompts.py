"""Prompts of random tokens, by which a model is checked and measured: the same ones each time."""

from typing import Any

import torch
from torch import nn

from causal_tracing.errors import UnsupportedModel
from causal_tracing.interventions.edits import Run
from causal_tracing.models.calling import words_of

LENGTH, LEAST = 6, 3
SEED = 0


def random_prompts(network: nn.Module, tokenizer: Any, length: int = LENGTH) -> tuple[Run, Run]:
    """Two prompts of random ordinary tokens that differ everywhere but in the first."""
    # Tables are often padded beyond the tokenizer's words, and some tokenizers name words that a table lacks.
    known = words_of(network.get_input_embeddings())  # pyright: ignore
    assert known is not None, "a network without such a table is refused before"
    special = set(getattr(tokenizer, "all_special_ids", ()))
    ordinary = torch.tensor([token for token in range(min(known, len(tokenizer))) if token not in special])
    if len(ordinary) < 2:
        raise UnsupportedModel(f"The vocabulary has {len(ordinary)} ordinary tokens; a check needs two.")
    # A generator of its own leaves the caller's random state as it was.
    generator = torch.Generator().manual_seed(SEED)
    picks = ordinary[torch.randperm(len(ordinary), generator=generator)]
    places = torch.arange(length)
    apart = (length - 1) % len(picks) or 1  # both go round where there are fewer words than places
    one, other = picks[places % len(picks)].tolist(), picks[(places + apart) % len(picks)].tolist()
    return Run(tuple(one)), Run((one[0], *other[1:]))


def short_prompts(network: Any, tokenizer: Any) -> tuple[Run, Run]:
    """The prompts by which a model is checked."""
    return random_prompts(network, tokenizer, short_length(network))


def short_length(network: Any) -> int:
    """Their length in tokens: as long as the model's context allows, where that is very short."""
    context = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    return context if isinstance(context, int) and LEAST <= context < LENGTH else LENGTH
