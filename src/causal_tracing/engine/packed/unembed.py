"""What follows the last layer: the model's own final norm, head, scales and soft-caps, on any states.

For one call the layers give way to stand-ins that pass the states on. The states go in as sequences of one token.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from causal_tracing.engine.final_norm import scale_shown
from causal_tracing.models.model import Model


def logits_of(
    model: Model,
    states: Float[Tensor, "state d_model"],
    *,
    token: int,
    tuples: bool,
    scales: Callable[[Float[Tensor, "state 1"]], Tensor] | None = None,
) -> Float[Tensor, "state vocab"]:
    """The logits that the model makes of the stream behind its last layer.

    `token` is any ordinary one, to go in; `tuples` says whether the model's layers return such. `scales` is shown what
    the final norm divides the states by, and gives what it divides them by instead.
    """
    tokens = torch.full((len(states), 1), token, device=model.device)
    held = nullcontext() if scales is None else scale_shown(model, lambda own: scales(own.view(-1, 1)).view(own.shape))
    with _stand_ins(model, states[:, None], tuples=tuples), held:
        return model.network(input_ids=tokens, use_cache=False).logits[:, 0]


@contextmanager
def _stand_ins(model: Model, states: Tensor, *, tuples: bool) -> Iterator[None]:
    layers = model.layers
    own = dict(layers._modules)
    try:
        for name, layer in own.items():
            layers._modules[name] = _StandIn(layer, states, tuples=tuples)
        yield
    finally:
        layers._modules.update(own)


class _StandIn(nn.Module):
    """Has all that the layer has (models look at it between layers), and gives the states whatever comes in."""

    def __init__(self, layer: nn.Module | None, states: Tensor, *, tuples: bool) -> None:
        super().__init__()
        self.__dict__.update(layer=layer, states=states, tuples=tuples)  # the layer is no part of it

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"], name)

    def forward(self, *_: Any, **__: Any) -> Any:
        return (self.states,) if self.tuples else self.states
