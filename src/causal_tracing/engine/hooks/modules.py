"""Hooks at the places of a model: every value that passes is shown to `visit`, which may replace it.

The one place that knows how a component is read and written inside a layer. Shapes are [batch, token, width] whatever
the module's own; values are the module's own output, before the layer's scale. What only attention sees (queries,
keys, values, patterns) is shown by `attention.py`.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from causal_tracing.engine.backend import Place
from causal_tracing.engine.progress import Tick, never
from causal_tracing.models.model import Model

Visit = Callable[[str, int, Tensor], Tensor]


@contextmanager
def attached(model: Model, places: Collection[Place], visit: Visit, *, batch: int) -> Iterator[None]:
    """Shows the value at each place to `visit(component, layer, value)` while the context is open.

    Hooks are removed on the way out, whatever happens. Raises ComponentNotOffered.
    """
    for component, _ in places:
        if component != "embed":
            model.anatomy.require(component)
    with ExitStack() as stack:
        for component, layer in sorted(places, key=_registration_order):
            stack.enter_context(_hook(model, component, layer, partial(_shown, visit, component, layer, batch)))
        yield


def _hook(model: Model, component: str, layer: int, see: Callable[[Tensor], Tensor]) -> AbstractContextManager[None]:
    layout = model.anatomy.layout
    match component:
        case "embed":
            return _on_output(model.network.get_input_embeddings(), see)
        case "resid_pre":
            return _on_input(model.layers[layer], see)
        case "resid_post":
            return _on_output(model.layers[layer], see)
        case "resid_mid":
            return _in_the_middle(model, layer, see)
        case "z" | "neurons":
            return _on_input(model.part(layer, getattr(layout, component)), see)
        case "attn_out":
            return _on_output(model.part(layer, layout.attn or ""), see)
        case _:
            return _on_output(model.part(layer, layout.mlp or ""), see)


def _registration_order(place: Place) -> tuple[bool, bool]:
    """Hooks of one module fire as registered: the middle after the MLP's output, the layer's output last."""
    return place[0] == "resid_post", place[0] == "resid_mid"


def _shown(visit: Visit, component: str, layer: int, batch: int, value: Tensor) -> Tensor:
    shaped = value.reshape(batch, -1, value.shape[-1])
    seen = visit(component, layer, shaped)
    return value if seen is shaped else seen.reshape(value.shape)


@contextmanager
def _on_input(module: nn.Module, see: Callable[[Tensor], Tensor]) -> Iterator[None]:
    handle = module.register_forward_pre_hook(partial(_input_hook, see), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _input_hook(
    see: Callable[[Tensor], Tensor], _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args:
        return (see(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": see(kwargs["hidden_states"])}


@contextmanager
def _on_output(module: nn.Module, see: Callable[[Tensor], Tensor]) -> Iterator[None]:
    handle = module.register_forward_hook(partial(_output_hook, see))
    try:
        yield
    finally:
        handle.remove()


def _output_hook(see: Callable[[Tensor], Tensor], _: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
    if isinstance(output, tuple):
        return (see(output[0]), *output[1:])
    return see(output)


@contextmanager
def _in_the_middle(model: Model, layer: int, see: Callable[[Tensor], Tensor]) -> Iterator[None]:
    layout, middle = model.anatomy.layout, _Middle(see, model.scale(layer))
    with (
        _on_input(model.part(layer, layout.mid or ""), middle.show),
        _on_output(model.part(layer, layout.mlp or ""), middle.note_mlp),
        _on_output(model.layers[layer], middle.add_up),
    ):
        yield


class _Middle:
    """The stream between attention and MLP: no module holds it, for the layer adds it to the MLP's output by itself.

    So the MLP's side is given the new value, and where that differs, the layer's output is added up anew.
    """

    def __init__(self, see: Callable[[Tensor], Tensor], scale: float) -> None:
        self.see = see
        self.scale = scale
        self.seen: dict[str, Tensor] = {}

    def show(self, value: Tensor) -> Tensor:
        self.seen["before"], self.seen["after"] = value, self.see(value)
        return self.seen["after"]

    def note_mlp(self, value: Tensor) -> Tensor:
        self.seen["mlp"] = value
        return value

    def add_up(self, value: Tensor) -> Tensor:
        before, after, mlp = (self.seen.pop(name).reshape(value.shape) for name in ("before", "after", "mlp"))
        changed = (before != after).any(-1, keepdim=True)
        anew = after + (mlp if self.scale == 1 else mlp * self.scale)
        if torch.is_grad_enabled():  # the same numbers, and the way back leads through the middle
            value = value.detach() + (anew - anew.detach())
        return torch.where(changed, anew, value)


@contextmanager
def layers_told(model: Model, tick: Tick) -> Iterator[None]:
    """Tells of every layer that a forward reaches, as long as it lasts; no hook is made where nobody listens."""
    if tick is never:
        yield
        return
    handles = [
        layer.register_forward_pre_hook(lambda *_, number=number: tick(number))
        for number, layer in enumerate(model.layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
