"""Receivers by name, as texts: what reads the stream behind a sender, at the sender's own token.

What reads as a whole (attention, the only part of a layer) gives something else at later tokens too.

    q|k|v [LAYERS[.HEADS]]    q 24.4     k 24-26     v     queries, keys, values: one head's, layers', all later ones
    mlp_out [LAYERS]          mlp_out 25
    attn_out [LAYERS]         attn_out 3                   attention as a whole, and what mixes tokens in its place
    mixer_out [LAYERS]        mixer_out 3                  the only part of a layer
    logits                    what the head of the model reads behind the last layer
    each ...                  each q     each mlp_out 20-29

What a text names receives jointly; after `each`, every layer and every head is a receiver of its own.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from causal_tracing import validation
from causal_tracing.errors import InvalidOption, nearest
from causal_tracing.patching.named_sites import Named, singles, some_range

if TYPE_CHECKING:  # every --help reads this: nothing heavy
    from causal_tracing.models.model import Model

LOGITS = "logits"
IN_HEADS = ("q", "k", "v")
WHOLE = ("attn_out", "mixer_out")  # they mix tokens: each reads its own and all before it
RECEIVERS = (*IN_HEADS, "mlp_out", *WHOLE, LOGITS)
FORM = re.compile(r"\s*(each\s+)?(\w+)(?:\s+(\d+)(?:-(\d+))?(?:\.(\d+)(?:-(\d+))?)?)?\s*")
EXAMPLES = '"q 24.4", "mlp_out 25", "logits", or "each q" for every head\'s query one by one'


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiver(Named):
    """A receiver by name: what its text does not say of layers and heads is all of them."""

    def places(self, num_layers: int) -> Iterator[tuple[int, int | None]]:
        """Its layers and heads (None: all of a layer), one by one; the logits are behind the last layer."""
        if self.component == LOGITS:
            yield num_layers, None
        else:
            yield from self.within((0, num_layers - 1))


def receiver(text: Any) -> Receiver:
    """The receiver that a text names. Raises InvalidOption with the form that is meant."""
    found = FORM.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise InvalidOption(f"{text!r} is no receiver. Name one such as {EXAMPLES}.")
    each, component, first, last, part, last_part = found.groups()
    if component not in RECEIVERS:
        raise InvalidOption(f"{text!r}: {component!r} receives nothing. {nearest(component, RECEIVERS)}")
    if part is not None and component not in IN_HEADS:
        raise InvalidOption(f"{text!r}: {component} has no heads. Leave .{part} out.")
    if component == LOGITS and (each or first is not None):
        raise InvalidOption(f'{text!r}: the logits are behind all layers: write "logits".')
    return Receiver(
        component=component,
        layers=some_range(text, "layers", first, last),
        parts=some_range(text, "heads", part, last_part),
        each=bool(each),
    )


def receivers_on(model: "Model", texts: Sequence[str]) -> tuple[Receiver, ...]:
    """The receivers that these texts name on this model, those after `each` one by one.

    Raises InvalidOption or ComponentNotOffered where the model has no such layer or head.
    """
    found = tuple(one for text in texts for one in singles(model, receiver(text)))
    for one in found:
        if one.layers is not None:
            validation.numbered("layer", [one.layers[1]], model.num_layers, model.name)
        if one.component != LOGITS:
            _require(model, one)
    validation.once("receiver", map(str, found))
    return found


def _require(model: "Model", one: Receiver) -> None:
    """Raises InvalidOption or ComponentNotOffered where a layer has no such receiver."""
    model.anatomy.require(one.component)
    for layer, head in one.places(model.num_layers):
        model.anatomy.require_layer(layer, one.component)
        if head is not None:
            place = f"layer {layer} of {model.name} ({one.component})"
            validation.numbered("head", [head], model.parts(one.component, layer), place)
