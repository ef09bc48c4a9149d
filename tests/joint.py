"""A tiny model with a pair of prompts, and the same patches by bare hooks: nothing of the package makes the numbers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

import causal_tracing as ct
from bare_hooks import first, with_first
from causal_tracing.engine.checks.check import accept
from causal_tracing.models.model import Model
from families import FAMILIES, build
from tokenizers_for_tests import words

WORDS = words(*(f" w{n}" for n in range(96)))
CLEAN, CORRUPT = " w11 w12 w13 w14 w15 w16", " w11 w12 w43 w14 w25 w16"
SPOKEN: dict[str, Any] = {"answer": " w7", "foil": " w8", "subject": " w12 w13", "corrupt_subject": " w12 w43"}
PAIR = ct.Pair(clean=CLEAN, corrupt=CORRUPT, **SPOKEN)
LAST = 5
# Of a family: its layers, and of each its attention, the module behind its heads, its MLP and that behind its neurons.
MODULES = {
    "llama": ("model.layers", "self_attn", "self_attn.o_proj", "mlp", "mlp.down_proj"),
    "gpt2": ("transformer.h", "attn", "attn.c_proj", "mlp", "mlp.c_proj"),
}
WIDTHS = {"z": 8, "neurons": 1}
Place = tuple[str, int, int | None, int]  # component, layer, part, position


def others(count: int) -> list[ct.Pair]:
    """Pairs of the clean prompt with as many others."""
    made = []
    for n in range(30, 30 + count):
        corrupt = f" w11 w12 w{n} w14 w{n + 9} w16"
        told: dict[str, Any] = SPOKEN | {"corrupt_subject": f" w12 w{n}"}
        made.append(ct.Pair(clean=CLEAN, corrupt=corrupt, **told))
    return made


@cache
def network(family: str = "llama") -> Any:
    return build(next(each for each in FAMILIES if each.name == family))


@cache
def tiny(family: str = "llama") -> Model:
    return accept(network(family), WORDS, name="tiny")


class ByHand:
    """Forwards of one network in which places are written by hooks."""

    def __init__(self, family: str = "llama") -> None:
        self.network = network(family)
        layers, *self.parts = MODULES[family]
        self.layers: Any = self.network.get_submodule(layers)
        self.known: dict[tuple[str, str, int], Tensor] = {}

    def module(self, component: str, layer: int) -> Any:
        attention, heads, mlp, neurons = self.parts
        path = {"attn_out": attention, "z": heads, "mlp_out": mlp, "neurons": neurons, "resid_post": ""}[component]
        return self.layers[layer].get_submodule(path)

    @contextmanager
    def seen_and_written(self, component: str, layer: int, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """What goes into the last projection of heads and neurons, or comes out of the others, changed."""
        module = self.module(component, layer)
        if component in WIDTHS:
            handle = module.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))
        else:
            handle = module.register_forward_hook(lambda _, __, output: with_first(output, change(first(output))))
        try:
            yield
        finally:
            handle.remove()

    def logits(self, text: str) -> Tensor:
        with torch.no_grad():
            return self.network(torch.tensor([WORDS(text)["input_ids"]])).logits[0, -1].double()

    def activation(self, text: str, component: str, layer: int) -> Tensor:
        seen: list[Tensor] = []
        with self.seen_and_written(component, layer, lambda value: seen.append(value.clone()) or value):
            self.logits(text)
        return seen[0]

    def patched(self, text: str, donor: str, places: Sequence[Place]) -> Tensor:
        """The logits of a text with what another one's unedited run has at all of these places."""
        for at in {(donor, component, layer) for component, layer, _, _ in places} - {*self.known}:
            self.known[at] = self.activation(*at)
        values = [self.known[donor, component, layer] for component, layer, _, _ in places]
        with ExitStack() as stack:
            for (component, layer, part, position), value in zip(places, values, strict=True):
                change = self.write(component, part, position, value)
                stack.enter_context(self.seen_and_written(component, layer, change))
            return self.logits(text)

    def effects(self, places: Sequence[Place], metric: str = "logit_diff") -> tuple[float, float]:
        """What patching all of these places together restores and disrupts."""
        clean, corrupt = (measured(self.logits(text), metric) for text in (CLEAN, CORRUPT))
        restored = measured(self.patched(CORRUPT, CLEAN, places), metric)
        disrupted = measured(self.patched(CLEAN, CORRUPT, places), metric)
        return restored - corrupt, clean - disrupted

    @staticmethod
    def write(component: str, part: int | None, position: int, value: Tensor) -> Callable[[Tensor], Tensor]:
        width = WIDTHS.get(component, 0)
        where = slice(None) if part is None else slice(part * width, (part + 1) * width)

        def change(here: Tensor) -> Tensor:
            changed = here.clone()
            changed[0, position, where] = value[0, position, where]
            return changed

        return change


def measured(logits: Tensor, metric: str) -> float:
    answer, foil = (WORDS(token)["input_ids"][0] for token in (" w7", " w8"))
    if metric == "logit_diff":
        return (logits[answer] - logits[foil]).item()
    assert metric == "log_prob"
    return logits.log_softmax(-1)[answer].item()
