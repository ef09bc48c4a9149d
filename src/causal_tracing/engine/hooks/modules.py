"""Hooks at the places of a model: every value that passes is shown to `visit`, which may replace it.

The one place that knows how a component is read and written inside a layer. Shapes are [batch, token, width] whatever
the module's own; values are the module's own output, before the layer's scale. What only attention sees (queries,
keys, values, patterns) is shown by `attention.py`; how a mixture's experts are called is known to `experts.py`.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from causal_tracing.engine.backend import Place
from causal_tracing.engine.hooks.experts import on_mixture
from causal_tracing.engine.progress import Tick, never
from causal_tracing.errors import UnsupportedModel
from causal_tracing.interventions.sites import MIXTURE, ORDER
from causal_tracing.models.anatomy import Layout
from causal_tracing.models.model import Model

Visit = Callable[[str, int, Tensor], Tensor]
USUAL = "hidden_states"  # what the stream is called, where it has a name


@contextmanager
def attached(
    model: Model,
    places: Collection[Place],
    visit: Visit,
    *,
    batch: int,
    rows: Mapping[Place, Sequence[int]] | None = None,
) -> Iterator[None]:
    """Shows the value at each place to `visit(component, layer, value)` while the context is open.

    Of experts, whose parts are large, `rows` names the tokens of the whole call that are shown (as one row of a batch);
    where it names none of a place, all are.

    Hooks are removed on the way out, whatever happens. Raises ComponentNotOffered; UnsupportedModel where a place was
    not passed exactly once: what was read or written there would not be what it is called.
    """
    for component, layer in places:
        if component != "embed":
            model.anatomy.require(component)
            model.anatomy.require_layer(layer, component)
    passed: Counter[Place] = Counter()
    with ExitStack() as stack:
        for component, layer in sorted(places, key=_registration_order):
            some = (rows or {}).get((component, layer))
            # Some rows of a whole call are no longer batches of equal length.
            see = _Seen(visit, (component, layer), batch if some is None else 1, model.anatomy.lanes, passed)
            stack.enter_context(_hook(model, component, layer, see, some))
        yield
    # Asked behind the run, and only where it did not raise: a place that is skipped shows in nothing else.
    for place in places:
        require_once(place, passed[place])


def require_once(place: Place, times: int) -> None:
    """Raises UnsupportedModel where a run did not come past a place exactly once."""
    component, layer = place
    if times != 1 and component == "embed":
        raise UnsupportedModel(
            f"The module that reads tokens was called {times} times in one run, where once is needed: nothing can be "
            "added to what it gives, such as noise. Give a corrupt prompt instead."
        )
    if times != 1:
        raise UnsupportedModel(
            f"{component} of layer {layer} was passed {times} times in one run, where once is needed: the model skips "
            "it, or uses it again. Leave the component or the layer out."
        )


def _hook(
    model: Model, component: str, layer: int, see: Callable[[Tensor], Tensor], rows: Sequence[int] | None
) -> AbstractContextManager[None]:
    layout = model.layout(layer) if component != "embed" else Layout()
    if component in MIXTURE:
        return on_mixture(component, model.part(layer, layout.experts or ""), model.parts("experts"), see, rows)
    match component:
        case "embed":
            return on_output(model.network.get_input_embeddings(), see)
        case "resid_pre":
            return on_input(model.layer(layer), see)
        case "resid_post":
            return on_output(model.layer(layer), see)
        case "resid_mid":
            return _in_the_middle(model, layer, see)
        case "z" | "neurons":
            return on_input(model.part(layer, getattr(layout, component)), see)
        case _:
            return on_output(model.part(layer, getattr(layout, component.removesuffix("_out"))), see)


def _registration_order(place: Place) -> tuple[bool, bool, int]:
    """Hooks of one module fire as registered: as computed, the middle after the MLP's output, the layer's output last.

    (A mixture may be one module with its experts.)
    """
    return place[0] == "resid_post", place[0] == "resid_mid", ORDER.index(place[0])


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """Shows what passes a place as [batch, token, width], and counts how often something does."""

    visit: Visit
    place: Place
    batch: int
    lanes: str | None
    passed: Counter[Place]

    def __call__(self, value: Tensor) -> Tensor:
        self.passed[self.place] += 1
        shaped = by_token_of(value, self.batch, self.lanes)
        seen = self.visit(*self.place, shaped)
        # Unchanged, the very tensor goes on that came.
        return value if seen is shaped else as_before(seen, value, self.lanes)


def by_token_of(value: Tensor, batch: int, lanes: str | None) -> Float[Tensor, "batch token width"]:
    """What passes a module, by tokens, whatever its own shape: its lanes side by side, rows before tokens."""
    if value.ndim == 4 and lanes in ("first", "last"):
        return (value.permute(1, 2, 0, 3) if lanes == "first" else value).flatten(2)
    if lanes == "turned":
        return value.reshape(-1, batch, value.shape[-1]).transpose(0, 1)
    return value.reshape(batch, -1, value.shape[-1])


def as_before(shaped: Float[Tensor, "batch token width"], like: Tensor, lanes: str | None) -> Tensor:
    """The same numbers in the shape that they came in."""
    if like.ndim == 4 and lanes == "first":
        lane, batch, token, width = like.shape
        return shaped.reshape(batch, token, lane, width).permute(2, 0, 1, 3)
    if lanes == "turned":
        return shaped.transpose(0, 1).reshape(like.shape)
    return shaped.reshape(like.shape)


def bears_hooks(module: nn.Module) -> bool:
    """Whether hooks can be hung on a module: not on what torch.jit.script has compiled, nor on what is inside."""
    return not isinstance(module, torch.jit.RecursiveScriptModule)  # pyright: ignore[reportPrivateImportUsage]


@contextmanager
def on_input(module: nn.Module, see: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Shows the stream that goes into a module to `see`, which gives what goes on, while the context is open."""
    handle = module.register_forward_pre_hook(partial(_input_hook, see), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _input_hook(
    see: Callable[[Tensor], Tensor], _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    where = where_stream(args, kwargs)
    given = kwargs[where] if isinstance(where, str) else args[where]
    stream = first_tensor(given)
    assert stream is not None, "the argument was found by the tensor that it is or begins with"
    seen = with_first(given, see(stream))
    if isinstance(where, str):
        return args, {**kwargs, where: seen}
    return (*args[:where], seen, *args[where + 1 :]), kwargs


def where_stream(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | str:
    """Which argument of a module's is the stream, by number or name: the first that holds floating-point numbers.

    Where none does, it is the first thing that begins with such: members of an nn.Sequential hand on several so.
    """
    # By its usual name first: some layers are given other floating-point tensors before it.
    if isinstance(kwargs.get(USUAL), Tensor):
        return USUAL
    for where, value in (*enumerate(args), *kwargs.items()):
        if isinstance(value, Tensor) and value.is_floating_point():
            return where
    for where, value in (*enumerate(args), *kwargs.items()):
        found = first_tensor(value)
        if found is not None and found.is_floating_point():
            return where
    raise KeyError(USUAL)


def stream_in(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """What a module is called with; None where it is called with no such tensor."""
    try:
        where = where_stream(args, kwargs)
    except KeyError:
        return None
    return first_tensor(kwargs[where] if isinstance(where, str) else args[where])


def first_tensor(output: Any) -> Tensor | None:
    """What a module gives: a tensor, or the first of several things; of things with names, the stream by its own."""
    named = _named(output)
    if named is not None:
        return named.get(_stream_among(named))
    first = output[0] if isinstance(output, (tuple, list)) and output else output
    return first if isinstance(first, Tensor) else None


def with_first(output: Any, value: Tensor) -> Any:
    """The same as a module gives it, with another tensor in the place of that one."""
    if isinstance(output, (tuple, list)):
        several = (value, *output[1:])
        return type(output)(*several) if hasattr(output, "_fields") else type(output)(several)  # fields: a NamedTuple
    named = _named(output)
    if named is None:
        return value
    name = _stream_among(named)
    if not isinstance(output, MutableMapping):
        return replace(output, **{name: value})
    changed = copy(output)
    changed[name] = value
    return changed


def _named(output: Any) -> Mapping[str, Any] | None:
    """What a module gives by names (in a dict, a dataclass); None where its things have none."""
    if isinstance(output, MutableMapping):
        return output
    return {each.name: getattr(output, each.name) for each in fields(output)} if is_dataclass(output) else None


def _stream_among(named: Mapping[str, Any]) -> str:
    """The usual name, or that of the first that holds floating-point numbers; "" where there is none."""
    real = [name for name, each in named.items() if isinstance(each, Tensor) and each.is_floating_point()]
    return USUAL if USUAL in real else next(iter(real), "")


@contextmanager
def on_output(module: nn.Module, see: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The same for what comes out of a module, or the first of several things."""
    handle = module.register_forward_hook(partial(_output_hook, see))
    try:
        yield
    finally:
        handle.remove()


def _output_hook(see: Callable[[Tensor], Tensor], _: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
    first = first_tensor(output)
    assert first is not None, "the module was found by the tensor that it gives"
    return with_first(output, see(first))


@contextmanager
def _in_the_middle(model: Model, layer: int, see: Callable[[Tensor], Tensor]) -> Iterator[None]:
    layout = model.layout(layer)
    part = model.part(layer, layout.mid or "")
    if layout.mid_out:
        with on_output(part, see):
            yield
        return
    middle = _Middle(see, scale=layout.mlp_scale, gain=layout.gain)
    with (
        on_input(part, middle.show),
        on_output(model.part(layer, layout.mlp or ""), middle.note_mlp),
        on_output(model.layer(layer), middle.add_up),
    ):
        yield


class _Middle:
    """The stream between attention and MLP: no module holds it, for the layer adds it to the MLP's output by itself.

    So the MLP's side is given the new value, and where that differs, the layer's output is added up anew.
    """

    def __init__(self, see: Callable[[Tensor], Tensor], *, scale: float, gain: float) -> None:
        self.see = see
        self.scale = scale
        self.gain = gain
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
        anew = _times(after, self.gain) + _times(mlp, self.scale)
        if torch.is_grad_enabled():  # the same numbers, and the way back leads through the middle
            value = value.detach() + (anew - anew.detach())
        return torch.where(changed, anew, value)


def _times(value: Tensor, factor: float) -> Tensor:
    return value if factor == 1 else value * factor


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
