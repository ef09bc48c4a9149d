"""Experts of a mixture: a module that is given tokens, the experts that each of them goes to, and their weights.

Such a module is called with (hidden, index, weights), and gives for each token the sum of what its experts make of it,
each times its weight. So an expert's part is what the module gives where all other weights are zero; it is had for all
experts in one call, in which every token comes once for each expert that it goes to.

1. `router`: which experts, and how much, as the weights of all experts [token, expert], zero where one is not chosen.
2. `experts_in`: what the experts read [token, d_model]; what else reads it (the router, shared experts) is left alone.
3. `experts`: each expert's part of the sum [token, expert · d_model]; a change of a part changes the sum by as much.

That the module does so is tried before it is believed (`engine.checks.experts`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from causal_tracing.engine.indices import indices
from causal_tracing.errors import UnsupportedModel

See = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """One call of a mixture's experts, as it was made: `places` says which arguments the three tensors are."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    places: tuple[int | str, int | str, int | str]

    @property
    def hidden(self) -> Float[Tensor, "token d_model"]:
        """What the experts read."""
        return self._flat(0)

    @property
    def index(self) -> Int[Tensor, "token slot"]:
        """The experts that each token goes to."""
        return self._flat(1)

    @property
    def weights(self) -> Float[Tensor, "token slot"]:
        """How much each of them counts."""
        return self._flat(2)

    def _flat(self, number: int) -> Tensor:
        where = self.places[number]
        value = self.kwargs[where] if isinstance(where, str) else self.args[where]
        return value.reshape(-1, value.shape[-1])

    def arguments(self, hidden: Tensor, index: Tensor, weights: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The same call's arguments with other tensors [token, ...] in the place of these."""
        args, kwargs = [*self.args], {**self.kwargs}
        for where, value in zip(self.places, (hidden, index, weights), strict=True):
            if isinstance(where, str):
                kwargs[where] = value
            else:
                args[where] = value
        return tuple(args), kwargs

    def dense(self, experts: int) -> Float[Tensor, "token expert"]:
        """The weights of all experts, zero where one is not chosen. Raises UnsupportedModel."""
        index = self.index.long()
        if index.numel() and not 0 <= index.min().item() <= index.max().item() < experts:
            raise UnsupportedModel(f"A router chose an expert beyond the {experts} that there are. Leave experts out.")
        # Added up, should a token be sent to one expert twice.
        return self.weights.new_zeros(len(index), experts).scatter_add(1, index, self.weights)


def call_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call | None:
    """The call, where its arguments are those of experts: tokens, and for each some whole numbers with weights."""
    given = [(where, value) for where, value in (*enumerate(args), *kwargs.items()) if isinstance(value, Tensor)]
    whole = [(where, value) for where, value in given if value.dtype in (torch.int32, torch.int64)]
    real = [(where, value) for where, value in given if value.is_floating_point()]
    if len(whole) != 1 or len(real) != 2:
        return None
    (at, index), (one, first), (other, second) = whole[0], *real
    if first.shape == index.shape != second.shape:  # the weights come before the tokens
        (one, first), (other, second) = (other, second), (one, first)
    if second.shape != index.shape or index.ndim < 2 or first.ndim < 2:
        return None
    alike = first.numel() // first.shape[-1] == index.numel() // index.shape[-1]
    return Call(args=tuple(args), kwargs=kwargs, places=(one, at, other)) if alike else None


def result(module: nn.Module, call: Call, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """What the module gives for other tokens, experts and weights [token, d_model]. No hooks are passed."""
    args, kwargs = call.arguments(hidden, index, weights)
    # Past the hooks: this call is made up, and nobody is to see it as one of the run's.
    found = module.forward(*args, **kwargs)
    first = found[0] if isinstance(found, (tuple, list)) else found
    return first.reshape(-1, first.shape[-1])


def parts_of(
    module: nn.Module, call: Call, experts: int, rows: Tensor | None = None
) -> Float[Tensor, "token expert d_model"]:
    """What each expert adds to the sum, at all tokens of a call or at some of them; zero where it is not chosen."""
    hidden, index, weights = call.hidden, call.index, call.weights
    if rows is not None:
        hidden, index, weights = hidden[rows], index[rows], weights[rows]
    tokens, slots = index.shape
    # A token as often as it has experts, each time with one of them: no expert computes more than in the run itself.
    alone = result(module, call, hidden.repeat_interleave(slots, 0), index.reshape(-1, 1), weights.reshape(-1, 1))
    first = torch.arange(tokens, device=index.device)[:, None] * experts
    found = alone.new_zeros(tokens * experts, alone.shape[-1])
    return found.index_add(0, (first + index.long()).flatten(), alone).view(tokens, experts, -1)


def on_mixture(
    component: str, module: nn.Module, experts: int, see: See, rows: Sequence[int] | None = None
) -> AbstractContextManager[None]:
    """Shows a component of a mixture to `see`, which gives what goes on, while the context is open.

    `rows` are the tokens whose parts are shown (None: all).
    """
    match component:
        case "router":
            return _on_call(module, partial(_rerouted, experts, see))
        case "experts_in":
            return _on_call(module, partial(_reading, see))
        case _:
            return _on_parts(module, experts, see, rows)


@contextmanager
def _on_parts(module: nn.Module, experts: int, see: See, rows: Sequence[int] | None) -> Iterator[None]:
    """Shows each expert's part of the sum [token, expert · d_model] to `see`, of some tokens (None: of all).

    What is changed of the parts is added to the sum, which stays to the bit where nothing is.
    """

    def add(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        call, total = call_of(args, kwargs), output[0] if isinstance(output, (tuple, list)) else output
        assert call is not None, "it was called like that when it was found"
        # Asked for its refusal of an expert that is not there: below it would be added to another token's.
        call.dense(experts)
        at = None if rows is None else indices(rows, total.device)
        parts = parts_of(module, call, experts, at).flatten(1)
        seen = see(parts)
        if seen is parts:
            return output
        # A change of one part is small beside the sum, and half precision would lose it.
        exact = torch.promote_types(total.dtype, torch.float32)
        change = (seen.to(exact) - parts.to(exact)).unflatten(1, (experts, -1)).sum(1)
        flat = total.reshape(-1, total.shape[-1])
        at = torch.arange(len(flat), device=flat.device) if at is None else at
        new = flat.index_copy(0, at, (flat[at].to(exact) + change).to(flat.dtype)).view_as(total)
        return type(output)((new, *output[1:])) if isinstance(output, (tuple, list)) else new

    handle = module.register_forward_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _on_call(module: nn.Module, change: Callable[[Call], tuple[Tensor, Tensor, Tensor] | None]) -> Iterator[None]:
    """The module is called with what `change` makes of its call; None: as it was."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = call_of(args, kwargs)
        assert call is not None, "it was called like that when it was found"
        changed = change(call)
        if changed is None:
            return None
        shaped = [_as(value, call, number) for number, value in enumerate(changed)]
        return call.arguments(*shaped)

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _as(value: Tensor, call: Call, number: int) -> Tensor:
    """A tensor [token, width] in the shape that the call has it in, whatever its width is now."""
    where = call.places[number]
    before = call.kwargs[where] if isinstance(where, str) else call.args[where]
    return value.reshape(*before.shape[:-1], value.shape[-1])


def _reading(see: See, call: Call) -> tuple[Tensor, Tensor, Tensor] | None:
    """The call with what `see` gives to be read."""
    hidden = call.hidden
    seen = see(hidden)
    return None if seen is hidden else (seen, call.index, call.weights)


def _rerouted(experts: int, see: See, call: Call) -> tuple[Tensor, Tensor, Tensor] | None:
    """The call with the weights that `see` gives; tokens whose weights stay go where they went, in their order."""
    dense = call.dense(experts)
    seen = see(dense)
    if seen is dense:
        return None
    index, weights = call.index, call.weights
    if torch.is_grad_enabled():  # the way back leads through the weights of all experts, chosen or not
        return call.hidden, torch.arange(experts, device=index.device).to(index).expand(len(index), -1), seen
    # Experts are added up in the order in which they are listed, which tells in the last bit: who is not written keeps
    # it.
    changed = (seen != dense).any(-1, keepdim=True)
    # A written token may go to more experts than the router chose; the others' new slots have the weight 0.
    slots = max(index.shape[-1], int((torch.where(changed, seen, 0) != 0).sum(-1).max()))
    wider = slots - index.shape[-1]
    chosen = seen.abs().topk(slots, -1).indices
    index, weights = nn.functional.pad(index, (0, wider)), nn.functional.pad(weights, (0, wider))
    index = torch.where(changed, chosen.to(index), index)
    return call.hidden, index, torch.where(changed, seen.gather(1, chosen), weights)
