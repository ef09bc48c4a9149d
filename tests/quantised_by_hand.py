"""What is patched in a quantised llama, by hooks of torch's alone: one prompt a forward."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import causal_tracing as ct
from tiny import tiny_tokenizer

CLEAN, CORRUPT, ANSWER, FOIL = "the city of Rome is in", "the city of Paris is in", " Mary", " John"
PAIR = ct.Pair(clean=CLEAN, corrupt=CORRUPT, answer=ANSWER, foil=FOIL)
CLOSE = 2e-3  # logits, of which the largest are 15: what rounding explains in float32


# The oracle: hooks of torch's, one prompt a forward.


def tokens(text: str) -> Tensor:
    return torch.tensor([tiny_tokenizer()(text)["input_ids"]])


def difference(network: Any, text: str) -> float:
    """Answer minus foil, after the prompt alone."""
    with torch.no_grad():
        last = network(input_ids=tokens(text), use_cache=False).logits[0, -1].double()
    vocabulary = tiny_tokenizer().get_vocab()
    return float(last[vocabulary[ANSWER]] - last[vocabulary[FOIL]])


def module_of(network: Any, component: str, layer: int) -> tuple[nn.Module, bool]:
    """The module that a component is read and written at, and whether that is its input."""
    block = network.model.layers[layer]
    return {
        "resid_post": (block, False),
        "attn_out": (block.self_attn, False),
        "mlp_out": (block.mlp, False),
        "z": (block.self_attn.o_proj, True),
        "q": (block.self_attn.q_proj, False),
        "k": (block.self_attn.k_proj, False),
        "v": (block.self_attn.v_proj, False),
        "neurons": (block.mlp.down_proj, True),
    }[component]


@contextmanager
def at(network: Any, component: str, layer: int, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    module, is_input = module_of(network, component, layer)

    def on_output(_: Any, __: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    def on_input(_: Any, args: tuple[Tensor, ...]) -> Any:
        return (change(args[0]),)

    handle = module.register_forward_pre_hook(on_input) if is_input else module.register_forward_hook(on_output)
    try:
        yield
    finally:
        handle.remove()


def restored(network: Any, component: str, layer: int, position: int, part: slice) -> float:
    """The metric of the corrupt prompt with some numbers of the clean one's, minus that of the corrupt one."""
    seen: list[Tensor] = []

    def look(value: Tensor) -> Tensor:
        seen.append(value.clone())
        return value

    def write(value: Tensor) -> Tensor:
        new = value.clone()
        new[:, position, part] = seen[0][:, position, part]
        return new

    with at(network, component, layer, look):
        difference(network, CLEAN)
    with at(network, component, layer, write):
        patched = difference(network, CORRUPT)
    return patched - difference(network, CORRUPT)
