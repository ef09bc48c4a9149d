"""How a network is called for its logits, whatever its forward takes and gives: written by hand, many know no cache."""

import inspect
from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from causal_tracing.errors import UnsupportedModel

NAME = "input_ids"
BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def words_of(embedding: nn.Module) -> int | None:
    """How many tokens an embedding knows; None where it has no table of them."""
    if isinstance(embedding, nn.Linear):  # for tokens that are written as a one among zeros
        return embedding.in_features
    weight = getattr(embedding, "weight", None)
    if not isinstance(weight, Tensor):
        return None
    # Bytes may be packed: then the shape says nothing.
    return weight.shape[0] if weight.is_floating_point() else getattr(embedding, "num_embeddings", weight.shape[0])


def called(network: nn.Module, tokens: Tensor, **options: Any) -> Any:
    """What the network gives for these tokens. No cache is kept, of a network that can be told so."""
    taken = inspect.signature(network.forward).parameters
    by_name = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in taken.values())
    # Nothing is generated: a cache would hold every layer's keys and values for nobody.
    without_cache = {"use_cache": False} if by_name or "use_cache" in taken else {}
    first = next(iter(taken.values()), None)
    by_place = NAME not in taken or taken[NAME].kind is inspect.Parameter.POSITIONAL_ONLY
    if by_place and first is not None and first.kind in BY_PLACE:
        return network(tokens, **without_cache, **options)
    return network(**{NAME: tokens}, **without_cache, **options)


def head_of(network: Any) -> Any:
    """The module that makes the logits, where the network says which it is; else None."""
    return getattr(network, "get_output_embeddings", lambda: None)()


def logits_in(output: Any) -> Float[Tensor, "row token vocab"]:
    """The logits in what a network gives: by their name, or its first tensor. Raises UnsupportedModel."""
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if found is None and not isinstance(output, Mapping):
        found = next(iter(output), None) if isinstance(output, (tuple, list)) else output
    if isinstance(found, Tensor) and found.ndim == 3:
        return found
    named = f" of {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
    other = "" if found is None else f" whose logits are a {type(found).__name__}"
    shape = f" with the shape {list(found.shape)}" if isinstance(found, Tensor) else other
    raise UnsupportedModel(
        "The model cannot be traced: logits [row, token, word] are needed, and its forward returns a "
        f"{type(output).__name__}{named}{shape}."
    )
