"""Experts of a mixture, found by what modules are called with, and patched by calling them by hand.

Inside a layer, such a module is given tokens, some whole numbers a token and as many weights. What one expert adds is
what the module gives where all other weights are zero. Patched is one token: its weights and numbers (the router), what
is read (experts_in), or what one expert adds (experts).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from model_types.anatomy import Found
from model_types.attention import Cell, NotFound
from model_types.spots import Change, forward, unchanged

MIXTURE = ("router", "experts_in", "experts")


@dataclass(frozen=True, eq=False)
class Called:
    """One call: the module's path, all that it was given, and by position or name which are the three tensors."""

    path: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    hidden: int | str
    index: int | str
    weights: int | str

    def get(self, name: int | str) -> Tensor:
        return self.kwargs[name] if isinstance(name, str) else self.args[name]

    def with_(self, changed: Mapping[int | str, Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args = tuple(changed.get(number, value) for number, value in enumerate(self.args))
        return args, {name: changed.get(name, value) for name, value in self.kwargs.items()}

    def of_expert(self, network: nn.Module, expert: int) -> Tensor:
        """What one expert adds at every token [token, d_model]."""
        alone = torch.where(self.get(self.index) == expert, self.get(self.weights), 0)
        args, kwargs = self.with_({self.weights: alone})
        with torch.no_grad():
            found = network.get_submodule(self.path).forward(*args, **kwargs)
        return by_token(found[0] if isinstance(found, (tuple, list)) else found)


@dataclass(frozen=True, eq=False)
class Mixture:
    """The calls of one run, by layer."""

    calls: dict[int, Called] = field(default_factory=dict)

    @classmethod
    def of_run(cls, network: nn.Module, found: Found, tokens: Sequence[int]) -> "Mixture":
        mixture, handles = cls(), []
        for number, layer in enumerate(found.layers):
            for name, module in network.get_submodule(layer.call).named_modules():
                note = mixture.noting(number, f"{layer.call}.{name}")
                handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
        try:
            forward(network, tokens)
        finally:
            for handle in handles:
                handle.remove()
        return mixture

    def noting(self, layer: int, path: str) -> Callable[..., None]:
        def hook(_: Any, args: Any, kwargs: Any) -> None:
            places = places_of({**dict(enumerate(args)), **kwargs})
            if places and layer not in self.calls:
                copied = {name: value.clone() for name, value in _tensors(args, kwargs)}
                call = Called(path, args, kwargs, *places)
                args, kwargs = call.with_(copied)
                self.calls[layer] = Called(path, args, kwargs, *places)

        return hook

    def get(self, cell: Cell) -> Called:
        if cell.layer not in self.calls:
            raise NotFound(f"no experts in layer {cell.layer}")
        return self.calls[cell.layer]

    def patched(
        self, network: nn.Module, tokens: Sequence[int], donor: "Mixture", cell: Cell, then: Change = unchanged
    ) -> Tensor:
        """[token, vocab] of this run's prompt with one site of the donor's; `then` changes what is written too."""
        own, given = self.get(cell), donor.get(cell)
        if cell.component == "experts":
            mine, theirs = (then(each.of_expert(network, cell.part)[cell.position]) for each in (own, given))
            with changing(network.get_submodule(own.path), cell.position, theirs - mine, then):
                return forward(network, tokens)
        names = {"router": ("index", "weights"), "experts_in": ("hidden",)}[cell.component]
        changed = {getattr(own, n): at_token(own.get(getattr(own, n)), given.get(getattr(given, n)), cell.position)
                   for n in names}  # fmt: skip
        changed |= {name: then(value) for name, value in changed.items() if value.is_floating_point()}
        handle = network.get_submodule(own.path).register_forward_pre_hook(
            lambda *_: own.with_(changed), with_kwargs=True
        )
        try:
            return forward(network, tokens)
        finally:
            handle.remove()


def _tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[int | str, Tensor]]:
    yield from ((name, value) for name, value in {**dict(enumerate(args)), **kwargs}.items() if torch.is_tensor(value))


def places_of(given: Mapping[int | str, Any]) -> tuple[int | str, int | str, int | str] | None:
    """Which of what a module is called with are tokens, experts and weights; None where it is no such call."""
    tensors = {name: value for name, value in given.items() if torch.is_tensor(value) and value.ndim > 1}
    whole = [name for name, value in tensors.items() if value.dtype in (torch.int32, torch.int64)]
    real = [name for name, value in tensors.items() if value.is_floating_point()]
    if len(whole) != 1 or len(real) != 2:
        return None
    alike = [name for name in real if tensors[name].shape == tensors[whole[0]].shape]
    if not alike:
        return None
    hidden = next(name for name in real if name != alike[-1])
    same = len(by_token(tensors[hidden])) == len(by_token(tensors[whole[0]]))
    return (hidden, whole[0], alike[-1]) if same else None


def by_token(value: Tensor) -> Tensor:
    """[token, width]."""
    return value.reshape(-1, value.shape[-1])


def at_token(own: Tensor, given: Tensor, position: int) -> Tensor:
    """The run's own, with another's at one token."""
    changed = by_token(own).clone()
    changed[position] = by_token(given)[position]
    return changed.view_as(own)


@contextmanager
def changing(module: nn.Module, position: int, change: Tensor, then: Change) -> Iterator[None]:
    """Adds something to what a module gives at one token."""

    def hook(_: Any, __: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, (tuple, list)) else output
        changed = by_token(first).clone()
        changed[position] += change
        changed = then(changed.view_as(first))
        return type(output)((changed, *output[1:])) if isinstance(output, (tuple, list)) else changed

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
