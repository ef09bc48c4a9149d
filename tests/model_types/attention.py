"""Queries, keys, values and patterns, read and written inside the function that attention modules call.

That function is transformers' replaceable one or, where a model runs eagerly, the one in its own file. Which layer
calls it is known by hooks on the layers. Patterns are what eager functions return, or the softmax by algebra; either
is used only where pattern · values is what the function gives.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from model_types.anatomy import Found
from model_types.spots import forward

NAMES = ("q", "k", "v", "pattern")
SAME = 1e-4  # of the largest: pattern · values against what the function gives
Visit = Callable[[int, str, Tensor], Tensor]  # layer, name, [head, token, size] -> what goes on


class NotFound(Exception):
    """The oracle cannot say what this cell must be, and why."""


class Miscounted(Exception):
    """A layer has another number of heads than the tool says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One site. part: which head or neuron, of how many in this layer."""

    component: str
    layer: int
    position: int
    part: int = 0
    parts: int = 1


@dataclass(frozen=True, eq=False)
class Attention:
    """What attention saw in one run, by layer and name, [head, token, …]."""

    seen: dict[tuple[int, str], Tensor] = field(default_factory=dict)

    @classmethod
    def of_run(cls, network: nn.Module, found: Found, tokens: Sequence[int]) -> "Attention":
        attention = cls()

        def note(layer: int, name: str, value: Tensor) -> Tensor:
            if (layer, name) in attention.seen:
                raise NotFound(f"layer {layer} attends more than once")
            attention.seen[layer, name] = value.clone()
            return value

        with visiting(network, found, note):
            forward(network, tokens)
        return attention

    def get(self, layer: int, name: str, length: int) -> Tensor:
        if (layer, name) not in self.seen:
            raise NotFound(f"no {name} in layer {layer}: no call of a replaceable attention function")
        value = self.seen[layer, name]
        if value.shape[1] != length:
            raise NotFound(f"{name} of layer {layer} is not one a token")
        return value

    def patched(self, network: nn.Module, found: Found, tokens: Sequence[int], cell: Cell) -> Tensor:
        """[token, vocab] of a prompt with one head at one token from this run. Raises NotFound, Miscounted."""
        donor = self.get(cell.layer, cell.component, len(tokens))
        if len(donor) != cell.parts:
            raise Miscounted(f"layer {cell.layer} has {len(donor)} of {cell.component}, not {cell.parts}")

        def write(layer: int, name: str, value: Tensor) -> Tensor:
            if (layer, name) != (cell.layer, cell.component):
                return value
            changed = value.clone()
            changed[cell.part, cell.position] = donor[cell.part, cell.position]
            return changed

        with visiting(network, found, write):
            return forward(network, tokens)


@contextmanager
def visiting(network: nn.Module, found: Found, visit: Visit) -> Iterator[None]:
    """Every call of an attention function inside a layer passes by `visit`."""
    inside = Inside(found)
    with ExitStack() as stack:
        stack.enter_context(inside.watching(network))
        for name in ("sdpa", "eager"):
            if name in ALL_ATTENTION_FUNCTIONS:
                wrapped = through(ALL_ATTENTION_FUNCTIONS[name], inside, visit)
                stack.enter_context(mock.patch.dict(ALL_ATTENTION_FUNCTIONS._local_mapping, {name: wrapped}))
        for home in {type(module).__module__ for module in network.modules()}:
            own = getattr(sys.modules[home], "eager_attention_forward", None)
            if own is not None:
                wrapped = through(own, inside, visit)
                stack.enter_context(mock.patch.object(sys.modules[home], "eager_attention_forward", wrapped))
        yield


class Inside:
    """In which layer a run is."""

    def __init__(self, found: Found) -> None:
        self.number = {(layer.call, layer.turn): number for number, layer in enumerate(found.layers)}
        self.layer: int | None = None

    @contextmanager
    def watching(self, network: nn.Module) -> Iterator[None]:
        handles = []
        for path in {path for path, _ in self.number}:
            module = network.get_submodule(path)
            handles += [module.register_forward_pre_hook(self.entering(path)), module.register_forward_hook(self.left)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def entering(self, path: str) -> Callable[..., None]:
        turns = iter(range(10**6))

        def hook(_: Any, __: Any) -> None:
            self.layer = self.number.get((path, next(turns)))

        return hook

    def left(self, _: Any, __: Any, ___: Any) -> None:
        self.layer = None


def through(function: Callable[..., Any], inside: Inside, visit: Visit) -> Callable[..., Any]:
    """The attention function, with what goes in and its pattern shown to `visit`."""

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any = None, *args: Any, **options: Any):
        mask = options.pop("attention_mask", mask)
        layer = inside.layer
        if layer is None:
            return function(module, query, key, value, mask, *args, **options)
        query, key, value = (
            visit(layer, name, each[0])[None] for name, each in zip("qkv", (query, key, value), strict=True)
        )
        out, weights = function(module, query, key, value, mask, *args, **options)
        pattern = weights if weights is not None else softmax(module, query, key, mask, options)
        if pattern is None or not agrees(pattern, value, out):
            return out, weights
        changed = visit(layer, "pattern", pattern[0])[None]
        return (out if torch.equal(changed, pattern) else mixed(changed, value)), weights

    return attend


def softmax(module: Any, query: Tensor, key: Tensor, mask: Any, options: dict[str, Any]) -> Tensor | None:
    """The pattern by algebra."""
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    scores = query @ key.repeat_interleave(query.shape[1] // key.shape[1], 1).transpose(2, 3) * scale
    if mask is None:
        causal = options.get("is_causal")
        if causal or (causal is None and getattr(module, "is_causal", True)):
            scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
    elif mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -torch.inf)
    else:
        scores = scores + mask
    return scores.softmax(-1)


def mixed(pattern: Tensor, value: Tensor) -> Tensor:
    """[batch, token, head, size]: the values by their pattern."""
    return (pattern @ value.repeat_interleave(pattern.shape[1] // value.shape[1], 1)).transpose(1, 2).contiguous()


def agrees(pattern: Tensor, value: Tensor, out: Tensor) -> bool:
    if pattern.ndim != 4 or pattern.shape[-1] != value.shape[2] or pattern.shape[1] % value.shape[1]:
        return False
    made = mixed(pattern, value)
    return made.shape == out.shape and bool((made - out).abs().max() <= SAME * out.abs().max())
