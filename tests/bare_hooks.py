"""Patching by bare torch hooks, written against the models alone: nothing of the package is used here."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask


@dataclass(frozen=True)
class Paths:
    """The modules of a family by hand: its layers, and whose outputs are attention's and the MLP's contribution.

    `turns` are attention's in layers that take turns; `mid` is a norm between the two whose output is the stream;
    `beside` is added with attention, and runs before it.
    """

    layers: str = "model.layers"
    attn: str = "self_attn"
    mlp: str = "mlp"
    scale: float = 1.0
    turns: tuple[str, ...] = ()
    mid: str = ""
    beside: str = ""

    def of(self, component: str, layer: int) -> str:
        if component in ("attn_out", "mixer_out"):
            return self.turns[layer % len(self.turns)] if self.turns else self.attn
        return self.mlp


NORMS_AFTER = Paths(attn="post_attention_layernorm", mlp="post_feedforward_layernorm")
PATHS = {
    "gemma2": NORMS_AFTER,
    "gemma3_text": NORMS_AFTER,
    "gemma3": Paths(layers="model.language_model.layers", attn=NORMS_AFTER.attn, mlp=NORMS_AFTER.mlp),
    "olmo2": NORMS_AFTER,
    "granite": Paths(scale=0.5),
    "gpt2": Paths(layers="transformer.h", attn="attn"),
    "gptj": Paths(layers="transformer.h", attn="attn"),
    "gpt_neo": Paths(layers="transformer.h", attn="attn.attention.out_proj"),
    "gpt_neox": Paths(layers="gpt_neox.layers", attn="attention"),
    "gpt_neox-sequential": Paths(layers="gpt_neox.layers", attn="attention"),
    "falcon": Paths(layers="transformer.h", attn="self_attention"),
    "falcon-40b": Paths(layers="transformer.h", attn="self_attention"),
    "falcon-rw": Paths(layers="transformer.h", attn="self_attention"),
    "bloom": Paths(layers="transformer.h", attn="self_attention.dense", mlp="mlp.dense_4h_to_h"),
    "mpt": Paths(layers="transformer.blocks", attn="attn", mlp="ffn.down_proj"),
    "opt": Paths(layers="model.decoder.layers", mlp="fc2"),
    "opt-350m": Paths(layers="model.decoder.layers", mlp="fc2", mid="self_attn_layer_norm"),
    "falcon_h1": Paths(mlp="feed_forward", beside="mamba"),
    "qwen3_next": Paths(turns=("linear_attn", "self_attn")),
    "mamba": Paths(layers="backbone.layers", attn="mixer"),
}


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def with_first(output: Any, value: Tensor) -> Any:
    return (value, *output[1:]) if isinstance(output, tuple) else value


@contextmanager
def hooked(hooks: Sequence[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Forward hooks on these modules, for as long as the block lasts."""
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def put(value: Tensor, position: int) -> Callable[..., Any]:
    """A hook that writes what `value` [token, d_model] holds at a position into every row."""

    def hook(_: Any, __: Any, output: Any) -> Any:
        changed = first(output).clone()
        changed[:, position] = value[position]
        return with_first(output, changed)

    return hook


Change = Callable[[int, str, Tensor], Tensor]


@contextmanager
def attention_written_out(network: Any, change: Change) -> Iterator[None]:
    """Softmax attention by algebra; what `change` makes of each layer's q, k, v and pattern goes on."""

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
        layer, length = module.layer_idx, query.shape[2]
        query, key, value = (change(layer, *each) for each in (("q", query), ("k", key), ("v", value)))
        repeats = query.shape[1] // key.shape[1]
        scale = options.get("scaling") or query.shape[-1] ** -0.5
        scores = query @ key.repeat_interleave(repeats, 1).transpose(2, 3) * scale
        if options.get("softcap"):
            scores = torch.tanh(scores / options["softcap"]) * options["softcap"]
        seen = torch.ones(length, length, dtype=torch.bool).tril() if mask is None else mask
        pattern = change(layer, "pattern", scores.masked_fill(~seen, -torch.inf).softmax(-1))
        return (pattern @ value.repeat_interleave(repeats, 1)).transpose(1, 2), None

    AttentionInterface.register("written_out", attend)
    AttentionMaskInterface.register("written_out", sdpa_mask)
    before = network.config._attn_implementation
    network.set_attn_implementation("written_out")
    try:
        yield
    finally:
        network.set_attn_implementation(before)


class Bare:
    """One network with bare hooks. Row i of a batch, one for each token, is patched at position i."""

    def __init__(self, network: nn.Module, paths: Paths) -> None:
        self.network = network
        self.paths = paths
        self.layers: Any = network.get_submodule(paths.layers)
        self.seen: dict[tuple[int, ...], list[dict[str, Tensor]]] = {}  # by layer, of the prompts that were looked at

    def run(self, tokens: tuple[int, ...], *, rows: int = 1) -> np.ndarray:
        with torch.no_grad():
            logits = self.network(input_ids=torch.tensor([tokens] * rows), use_cache=False).logits
        return logits.double().numpy()

    def donor(self, tokens: tuple[int, ...], component: str, layer: int) -> Tensor:
        """[token, d_model] of an unedited run."""
        if tokens not in self.seen:
            self.seen[tokens] = self.looked_at(tokens)
        seen = self.seen[tokens][layer]
        if component != "resid_mid":
            return seen[component]
        if self.paths.mid:
            return seen["mid"]
        return seen["resid_pre"] + self.paths.scale * (seen["attn_out"] + seen.get("beside", 0))

    def looked_at(self, tokens: tuple[int, ...]) -> list[dict[str, Tensor]]:
        """What passes the parts of each layer in one unedited run."""
        seen: list[dict[str, Tensor]] = [{} for _ in self.layers]

        def look(layer: int, name: str, value: Tensor) -> None:
            seen[layer][name] = value.detach().clone().reshape(len(tokens), -1)

        with ExitStack() as stack:
            for layer, block in enumerate(self.layers):
                hook = block.register_forward_pre_hook(
                    lambda _, args, kwargs, layer=layer: look(layer, "resid_pre", stream(args, kwargs)),
                    with_kwargs=True,
                )
                stack.callback(hook.remove)
                for name, path in self.outputs(block, layer).items():
                    hook = block.get_submodule(path).register_forward_hook(
                        lambda _, __, output, layer=layer, name=name: look(layer, name, first(output))
                    )
                    stack.callback(hook.remove)
            self.run(tokens)
        return seen

    def outputs(self, block: nn.Module, layer: int) -> dict[str, str]:
        """What is some module's output in a layer, and which one's."""
        named = {name: self.paths.of(name, layer) for name in ("attn_out", "mixer_out", "mlp_out")}
        named |= {"mid": self.paths.mid, "beside": self.paths.beside}
        there = {path for path, _ in block.named_modules() if path}
        return {"resid_post": ""} | {name: path for name, path in named.items() if path in there}

    def patched(self, tokens: tuple[int, ...], donor: Tensor, component: str, layer: int) -> np.ndarray:
        """[position patched, position, vocab]."""
        block, seen, length = self.layers[layer], {}, len(tokens)
        diagonal = torch.arange(length)

        def write(value: Tensor) -> Tensor:
            rows = value.reshape(length, length, -1).clone()
            rows[diagonal, diagonal] = donor
            return rows.reshape(value.shape)

        def write_middle(value: Tensor) -> Tensor:  # so that in + scale · attention is the donor's middle
            rows = value.reshape(length, length, -1).clone()
            before = seen["in"] + seen.get("beside", 0)
            rows[diagonal, diagonal] = (donor - before[diagonal, diagonal]) / self.paths.scale
            return rows.reshape(value.shape)

        def note(_: Any, args: Any, kwargs: Any) -> None:
            seen["in"] = stream(args, kwargs).detach().clone()

        def note_beside(value: Tensor) -> Tensor:
            if self.paths.beside:
                seen["beside"] = value.detach().clone()
            return value

        def write_input(_: Any, args: Any, kwargs: Any) -> Any:
            if args:
                return (write(args[0]), *args[1:]), kwargs
            return args, kwargs | {"hidden_states": write(kwargs["hidden_states"])}

        def on_output(path: str, change: Callable[[Tensor], Tensor]) -> Any:
            module = block.get_submodule(path)
            return module.register_forward_hook(lambda _, __, out: with_first(out, change(first(out))))

        if component == "resid_mid" and self.paths.mid:
            return self.ran(tokens, [on_output(self.paths.mid, write)])
        handles = {
            "resid_pre": lambda: [block.register_forward_pre_hook(write_input, with_kwargs=True)],
            "resid_post": lambda: [on_output("", write)],
            "resid_mid": lambda: [
                block.register_forward_pre_hook(note, with_kwargs=True),
                on_output(self.paths.of("attn_out", layer), write_middle),
                on_output(self.paths.beside or self.paths.of("mlp_out", layer), note_beside),
            ],
        }.get(component, lambda: [on_output(self.paths.of(component, layer), write)])()
        return self.ran(tokens, handles)

    def ran(self, tokens: tuple[int, ...], handles: Sequence[Any]) -> np.ndarray:
        found = self.run(tokens, rows=len(tokens))
        for handle in handles:
            handle.remove()
        return found


def stream(args: Any, kwargs: Any) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]
