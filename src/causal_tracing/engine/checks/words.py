"""Whether a head's rows of some words give what the whole head gives there: tried once on each network."""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from causal_tracing.engine.checks.bounds import ONE_FORWARD
from causal_tracing.engine.checks.logits import apart, largest
from causal_tracing.engine.packed.unembed import logits_of, plain_head
from causal_tracing.models.model import Model

FEW = 4  # states that are tried

_proved: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def spares_words(
    model: Model, states: Float[Tensor, "state d_model"], words: Sequence[int], *, token: int, tuples: bool
) -> bool:
    """Whether these words' logits alone are those that the whole head gives, on this network."""
    if model.network not in _proved:
        _proved[model.network] = plain_head(model) is not None and _agrees(model, states[:FEW], words, token, tuples)
    return _proved[model.network]


def _agrees(model: Model, states: Tensor, words: Sequence[int], token: int, tuples: bool) -> bool:
    whole = logits_of(model, states, token=token, tuples=tuples)
    few = logits_of(model, states, token=token, tuples=tuples, words=words)
    if few.shape != (len(states), len(words)):
        return False
    # What follows the head is the model's own, and might look at all words.
    named = whole[:, torch.tensor(words, device=whole.device)]
    bound = ONE_FORWARD[str(whole.dtype).removeprefix("torch.")] * largest(whole)
    return bool((apart(named, few) <= bound).all())
