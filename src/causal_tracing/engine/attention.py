"""Attention: the one thing in a decoder layer that mixes tokens, and the one function that is put in its place.

Nearly every transformers model asks `ALL_ATTENTION_FUNCTIONS` for its attention by name. While the engine works, the
model's own name gives a function of ours, so that model, configuration and masks stay as they are; inside it the
model's own attention is called. The one place that knows transformers' interface.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from causal_tracing.errors import CannotPack
from causal_tracing.model import Model

Attention = Callable[..., tuple[Tensor, Any]]  # (module, query, key, value, mask, **options) -> (output, weights)
Attend = Callable[..., tuple[Tensor, Any]]  # (own attention, layer, module, query, key, value, mask, **options)


@contextmanager
def attention_by(model: Model, attend: Attend) -> Iterator[None]:
    """The model's layers attend by `attend` while the context is open; other models are left alone. Not for threads."""
    name = model.attention
    layers = {id(part): number for number, layer in enumerate(model.layers) for part in layer.modules()}
    registered: dict[str, Any] = ALL_ATTENTION_FUNCTIONS._local_mapping
    before = registered.get(name)
    ALL_ATTENTION_FUNCTIONS[name] = partial(_dispatch, layers, ALL_ATTENTION_FUNCTIONS.get(name), attend)
    try:
        yield
    finally:
        if before is None:
            del ALL_ATTENTION_FUNCTIONS[name]
        else:
            ALL_ATTENTION_FUNCTIONS[name] = before


def _dispatch(
    layers: Mapping[int, int],
    found: Attention | None,
    attend: Attend,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    **options: Any,
) -> tuple[Tensor, Any]:
    own = found or _eager(module)
    layer = layers.get(id(module))
    if layer is None:
        return own(module, query, key, value, mask, **options)
    return attend(own, layer, module, query, key, value, mask, **options)


def _eager(module: nn.Module) -> Attention:
    """The eager attention that lies beside the module's class, or beside the class that it was made from."""
    for kind in type(module).__mro__:
        eager = getattr(sys.modules[kind.__module__], "eager_attention_forward", None)
        if eager is not None:
            return eager
    raise CannotPack(f"{type(module).__name__} has no eager attention function of its own.")


def causal_rows(length: int, like: Tensor, *, eager: bool) -> Tensor:
    """A causal mask [1, 1, query, key] in full, where the model left it to be understood."""
    seen = torch.ones(length, length, dtype=torch.bool, device=like.device).tril()[None, None]
    if not eager:
        return seen
    return torch.zeros_like(seen, dtype=like.dtype).masked_fill(~seen, torch.finfo(like.dtype).min)
