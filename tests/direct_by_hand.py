"""Paths to the logits by bare hooks, against the network alone: what is held behind a writer is written back."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bare_hooks import PATHS, Paths, first, with_first
from loaded import BY_NAME, shared

CLEAN, CORRUPT = (5, 17, 42, 11, 60, 33, 8, 71, 90), (5, 17, 42, 13, 60, 29, 8, 71, 91)
ANSWER, FOIL, LAST, LAYERS = 7, 20, 8, 4
NORMS = {  # the final norm by hand, where it is not model.norm
    "gemma3": "model.language_model.norm", "phi": "model.final_layernorm", "gpt2": "transformer.ln_f",
    "gpt_neox": "gpt_neox.final_layer_norm", "gpt_neox-sequential": "gpt_neox.final_layer_norm",
    "opt": "model.decoder.final_layer_norm", "falcon": "transformer.ln_f", "falcon-40b": "transformer.ln_f",
    "falcon-rw": "transformer.ln_f", "bloom": "transformer.ln_f", "gptj": "transformer.ln_f",
    "gpt_neo": "transformer.ln_f", "mpt": "transformer.norm_f", "mamba": "backbone.norm_f",
}  # fmt: skip
PROJECTIONS = {
    "llama": "self_attn.o_proj",
    "gemma2": "self_attn.o_proj",
    "gpt2": "attn.c_proj",
    "phi": "self_attn.dense",
}


def parts(name: str) -> tuple[str, ...]:
    return BY_NAME[name].parts


class Held:
    """One family's network with bare hooks, written against the model alone."""

    def __init__(self, name: str) -> None:
        self.network, self.paths, self.name = shared(name).network, PATHS.get(name, Paths()), name
        self.known: dict[tuple[Sequence[int], Any], Tensor] = {}
        self.layers: Any = self.network.get_submodule(self.paths.layers)

    def module(self, component: str, layer: int) -> Any:
        return self.layers[layer].get_submodule(self.paths.of(component, layer))

    def run(self, tokens: Sequence[int], hooks: Sequence[tuple[Any, str, Callable[..., Any]]] = ()) -> np.ndarray:
        """The last token's logits. A hook is (module, "in" or "out", function)."""
        with ExitStack() as stack, torch.no_grad():
            for module, side, hook in hooks:
                if side == "in":
                    stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
                else:
                    stack.callback(module.register_forward_hook(hook).remove)
            return self.network(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].double().numpy()

    def seen(self, tokens: Sequence[int], module: Any) -> Tensor:
        """What a module gives for the last token of an unedited run."""

        def keep(_: Any, __: Any, output: Any) -> None:
            self.known[tokens, module] = first(output).reshape(len(tokens), -1)[-1].clone()

        if (tokens, module) not in self.known:
            self.run(tokens, [(module, "out", keep)])
        return self.known[tokens, module]

    def direct(self, component: str, layer: int, *, mlps: bool) -> float:
        """Logit difference of the corrupt run with the clean activation, and what is behind as in the corrupt run."""
        hooks = []
        if component == "resid_pre":
            hooks.append((self.layers[layer], "in", self._stream_written(self._stream(CLEAN, layer))))
        else:
            module = self.module(component, layer)
            hooks.append((module, "out", written(self.seen(CLEAN, module))))
        for part in parts(self.name):
            for later in range(layer, LAYERS):
                behind = later > layer or component == "resid_pre" or (component, part) == ("attn_out", "mlp_out")
                if behind and (part != "mlp_out" or mlps):
                    module = self.module(part, later)
                    hooks.append((module, "out", written(self.seen(CORRUPT, module))))
        return self.difference(hooks)

    def through_the_stream(self, component: str, layer: int) -> float:
        """The same for held MLPs, of the sum alone: the change of a contribution, added behind the last layer."""
        module = self.module(component, layer)
        change = self.paths.scale * (self.seen(CLEAN, module) - self.seen(CORRUPT, module))
        after = self.seen(CORRUPT, self.layers[-1]) + change
        return self.difference([(self.layers[-1], "out", written(after))])

    def with_the_norm_frozen(self) -> float:
        """The clean run's stream behind the last layer, divided by what the corrupt one's is divided by."""
        norm = self.network.get_submodule(NORMS.get(self.name, "model.norm"))
        clean, corrupt = (self.seen(tokens, self.layers[-1]).double() for tokens in (CLEAN, CORRUPT))
        centred = "RMS" not in type(norm).__name__ and "Llama" not in type(norm).__name__
        eps = next((getattr(norm, each) for each in ("eps", "variance_epsilon") if hasattr(norm, each)), 1e-5)
        sizes = [((x - centred * x.mean()).square().mean() + eps).sqrt() for x in (clean, corrupt)]
        with torch.no_grad():
            offset = norm(torch.zeros(1, len(clean)))[0]
        normed = offset + (self.seen(CLEAN, norm) - offset) * (sizes[0] / sizes[1])
        return self.difference([(norm, "out", written(normed.float()))])

    def difference(self, hooks: Sequence[Any]) -> float:
        """Of the logits of the corrupt run so changed and as it is."""
        with_hooks, without = (logits[ANSWER] - logits[FOIL] for logits in (self.run(CORRUPT, hooks), self.unedited))
        return float(with_hooks - without)

    @cached_property
    def unedited(self) -> np.ndarray:
        return self.run(CORRUPT)

    def _stream(self, tokens: Sequence[int], layer: int) -> Tensor:
        found: list[Tensor] = []

        def keep(_: Any, args: Any, kwargs: Any) -> None:
            found.append((args[0] if args else kwargs["hidden_states"])[0, -1].clone())

        self.run(tokens, [(self.layers[layer], "in", keep)])
        return found[0]

    @staticmethod
    def _stream_written(value: Tensor) -> Callable[..., Any]:
        def write(_: Any, args: Any, kwargs: Any) -> Any:
            stream = (args[0] if args else kwargs["hidden_states"]).clone()
            stream[0, -1] = value
            return ((stream, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": stream})

        return write


@cache
def of_family(name: str) -> Held:
    return Held(name)


@cache
def direct_by_hand(name: str, component: str, layer: int, *, mlps: bool) -> float:
    """The same for both engines."""
    return of_family(name).direct(component, layer, mlps=mlps)


def written(value: Tensor) -> Callable[..., Any]:
    """A hook that puts this where a module gives the last token's output."""

    def hook(_: Any, __: Any, output: Any) -> Any:
        changed = first(output).clone()
        changed.view(-1, changed.shape[-1])[-1] = value
        return with_first(output, changed)

    return hook
