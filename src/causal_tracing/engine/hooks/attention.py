"""Attention: the one thing in a decoder layer that mixes tokens, and the one function that is put in its place.

Nearly every transformers model asks `ALL_ATTENTION_FUNCTIONS` for its attention by name. While the engine works, the
model's own name gives a function of ours, so that model, configuration and masks stay as they are; inside it the
model's own attention is called. The one place that knows transformers' interface.
"""

import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from causal_tracing.engine.backend import Place
from causal_tracing.engine.hooks.modules import Visit, require_once
from causal_tracing.errors import CannotPack
from causal_tracing.interventions.sites import ATTENTION
from causal_tracing.models.at_rest import alone
from causal_tracing.models.model import Model

SEEN = ("q", "k", "v", ATTENTION, "pattern")  # what only the attention function sees

Attention = Callable[..., tuple[Tensor, Any]]  # (module, query, key, value, mask, **options) -> (output, weights)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Asked:
    """What a layer asks of its attention: queries, keys and values are [batch, head, token, size]."""

    own: Attention
    layer: int
    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Any
    options: Mapping[str, Any]

    def answer(self) -> tuple[Float[Tensor, "batch token head size"], Any]:
        """What the model's own attention gives: its output, and the weights if it has them."""
        return self.own(self.module, self.query, self.key, self.value, self.mask, **self.options)

    @property
    def full_mask(self) -> Tensor:
        """The mask [1 or batch, 1 or head, token, key], in the model's own form. Raises CannotPack for other forms."""
        if self.mask is None:
            # Without a mask sdpa is told is_causal, which leaves nothing to hide a key in.
            return causal_rows(self.query.shape[2], self.query, eager=self.own is _eager(self.module))
        if not isinstance(self.mask, Tensor) or self.mask.ndim != 4:
            raise CannotPack(f"layer {self.layer} has an attention mask of a form in which no key can be hidden.")
        return self.mask

    def pattern(self) -> Float[Tensor, "batch head token key"]:
        """What the model's eager attention makes of the same queries and keys. Raises CannotPack."""
        mask, like = self.mask, self.query
        if mask is None:
            mask = causal_rows(like.shape[2], like, eager=True)
        elif not isinstance(mask, Tensor):
            raise CannotPack(f"layer {self.layer} has an attention mask of a form that eager attention cannot read.")
        elif mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=like.dtype).masked_fill(~mask, torch.finfo(like.dtype).min)
        # sdpa and flash attention give no weights; the eager function does.
        return _eager(self.module)(self.module, self.query, self.key, self.value, mask, **self.options)[1]


Attend = Callable[[Asked], tuple[Tensor, Any]]
Answer = Callable[[Asked], tuple[Asked, Tensor]]  # what was really asked, and attention's output


@contextmanager
def attention_by(model: Model, attend: Attend) -> Iterator[None]:
    """The model's layers attend by `attend` meanwhile. Other models are left alone; other threads wait."""
    with alone:  # from here on: while another thread works, a module may look otherwise
        name = model.attention
        layers = {id(part): number for number, layer in enumerate(model.layers) for part in layer.modules()}
        before = ALL_ATTENTION_FUNCTIONS.get(name)
        ALL_ATTENTION_FUNCTIONS[name] = partial(_dispatch, layers, before, attend)
        try:
            yield
        finally:
            del ALL_ATTENTION_FUNCTIONS[name]  # what is left is the library's own
            if ALL_ATTENTION_FUNCTIONS.get(name) is not before:  # there was one in its place
                ALL_ATTENTION_FUNCTIONS[name] = before


@contextmanager
def attention_shown(
    model: Model, places: Collection[Place], visit: Visit, changed: Mapping[int, Answer] | None = None
) -> Iterator[None]:
    """Shows queries, keys, values and patterns to `visit` as [batch, token, width], like any other component.

    `changed` are layers in which something else answers what attention is asked. Raises UnsupportedModel where one of
    the places' layers does not attend exactly once.
    """
    for component, layer in places:
        model.anatomy.require(component)
        model.anatomy.require_layer(layer, component)
    if not places:
        yield
        return
    passed: Counter[int] = Counter()
    with attention_by(model, partial(_attend_shown, frozenset(places), visit, changed or {}, passed)):
        yield
    for component, layer in sorted(places):
        require_once((component, layer), passed[layer])


def _attend_shown(
    places: Collection[Place], visit: Visit, changed: Mapping[int, Answer], passed: Counter[int], asked: Asked
) -> tuple[Tensor, Any]:
    def see(component: str, tensor: Tensor) -> Tensor:
        place = component, asked.layer
        return by_token(partial(visit, *place), tensor) if place in places else tensor

    passed[asked.layer] += 1
    # Queries, keys and values come before what is told of attention, as they do in computation order.
    asked = replace(asked, query=see("q", asked.query), key=see("k", asked.key), value=see("v", asked.value))
    if asked.layer in changed:
        (asked, output), weights = changed[asked.layer](asked), None
    else:
        output, weights = asked.answer()
    if ("pattern", asked.layer) in places:
        output = with_patterns(output, partial(see, "pattern"), asked)
    return output, weights


def by_token(
    see: Callable[[Tensor], Tensor], value: Float[Tensor, "batch head token size"]
) -> Float[Tensor, "batch head token size"]:
    """Shows a tensor of heads as [batch, token, head · size]."""
    shaped = value.transpose(1, 2).flatten(2)
    seen = see(shaped)
    # Unchanged, the very tensor goes on: to look must change nothing, not even how numbers lie in memory.
    if seen is shaped:
        return value
    made = seen.unflatten(2, (value.shape[1], -1)).transpose(1, 2)
    return made.contiguous() if value.is_contiguous() else made  # some attention functions view it in another shape


def with_patterns(
    output: Float[Tensor, "batch token head size"], see: Callable[[Tensor], Tensor], asked: Asked
) -> Float[Tensor, "batch token head size"]:
    """Attention's output where `see` has changed a row of the pattern [batch, head, token, key]; elsewhere as it is."""
    pattern = asked.pattern()
    new = see(pattern)
    if new is pattern:
        return output
    # Grouped values stand for several heads each.
    made = (new @ asked.value.repeat_interleave(new.shape[1] // asked.value.shape[1], 1)).transpose(1, 2)
    if torch.is_grad_enabled():  # the same numbers, and the way back leads through the pattern
        output = output.detach() + (made - made.detach())
    # Rows that nobody wrote keep what the model's own function gave, to the bit.
    changed = (new != pattern).any(-1).transpose(1, 2)
    return torch.where(changed[..., None], made, output).contiguous()  # some models view it in another shape


def _dispatch(
    layers: Mapping[int, int],
    found: Attention | None,
    attend: Attend,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any = None,
    **options: Any,
) -> tuple[Tensor, Any]:
    """Called as the library's own functions are: some models name the mask, and some leave it out."""
    own, mask = found or _eager(module), attention_mask
    layer = layers.get(id(module))
    # Another model's module, or one outside the layers.
    if layer is None:
        return own(module, query, key, value, mask, **options)
    asked = Asked(own=own, layer=layer, module=module, query=query, key=key, value=value, mask=mask, options=options)
    return attend(asked)


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
