"""What follows the last layer: the model's own final norm, head, scales and soft-caps, on any states.

For one call the layers give way to stand-ins that pass the states on. The states go in as sequences of one token. Where
few words are wanted, the head gives way to its rows of these words: a large vocabulary is a third of the work.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from causal_tracing.engine.final_norm import scale_shown
from causal_tracing.engine.indices import indices
from causal_tracing.models.calling import called, head_of, logits_in
from causal_tracing.models.model import Model


def logits_of(
    model: Model,
    states: Float[Tensor, "state d_model"],
    *,
    token: int,
    tuples: bool,
    words: Sequence[int] | None = None,
    scales: Callable[[Float[Tensor, "state 1"]], Tensor] | None = None,
) -> Float[Tensor, "state vocab"]:
    """The logits that the model makes of the stream behind its last layer: of all words, or of these alone.

    `token` is any ordinary one, to go in; `tuples` says whether the model's layers return such. Words can be asked for
    where `plain_head` finds a head. `scales` is shown what the final norm divides the states by, and gives what it
    divides them by instead.
    """
    # Of one token each: rows do not see each other, and no position but the first is asked for.
    tokens = torch.full((len(states), 1), token, device=model.device)
    held = nullcontext() if scales is None else scale_shown(model, lambda own: scales(own.view(-1, 1)).view(own.shape))
    with _stand_ins(model, states[:, None], tuples=tuples), held, _rows_of_the_head(model, words):
        return logits_in(called(model.network, tokens))[:, 0]


def plain_head(model: Model) -> nn.Linear | None:
    """The head, where it is a plain product whose rows can be taken, and not one that is stored otherwise."""
    head = head_of(model.network)
    # A subclass may be quantised, or add an adapter's product to its own.
    return head if type(head) is nn.Linear else None


@contextmanager
def _rows_of_the_head(model: Model, words: Sequence[int] | None) -> Iterator[None]:
    """The head computes these words alone, whatever the model does behind it."""
    if words is None:
        yield
        return
    head = plain_head(model)
    assert head is not None, "words are asked for where there is a head whose rows can be taken"

    def rows(hidden: Tensor) -> Tensor:
        at = indices(words, head.weight.device)  # weights that are kept elsewhere are here while the head is called
        return nn.functional.linear(hidden, head.weight[at], None if head.bias is None else head.bias[at])

    # An attribute of the object hides its class's method, and is gone without a trace when it is deleted.
    own, name = vars(head), "_old_forward" if hasattr(head, "_hf_hook") else "forward"  # accelerate wraps the former
    before = own.get(name)
    own[name] = rows
    try:
        yield
    finally:
        del own[name]
        if before is not None:
            own[name] = before


@contextmanager
def _stand_ins(model: Model, states: Tensor, *, tuples: bool) -> Iterator[None]:
    own = {model.anatomy.path(number): layer for number, layer in enumerate(model.layers)}
    try:
        for path, layer in own.items():
            _put(model.network, path, _StandIn(layer, states, tuples=tuples))
        yield
    finally:
        for path, layer in own.items():
            _put(model.network, path, layer)


def _put(network: nn.Module, path: str, module: nn.Module) -> None:
    """Another module in a place."""
    holder, _, name = path.rpartition(".")
    network.get_submodule(holder)._modules[name] = module


class _StandIn(nn.Module):
    """Has all that the layer has (models look at it between layers), and gives the states whatever comes in."""

    def __init__(self, layer: nn.Module | None, states: Tensor, *, tuples: bool) -> None:
        super().__init__()
        self.__dict__.update(layer=layer, states=states, tuples=tuples)  # the layer is no part of it

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"], name)

    def forward(self, *_: Any, **__: Any) -> Any:
        return (self.states,) if self.tuples else self.states
