"""Edges by bare torch hooks, on models whose layers differ: each reader is given a stream of its own.

Modules are named by hand, and nothing of the package is used. What a reader reads is the stream, and of each edge that
is cut what its sender adds otherwise instead of what it adds.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

ANSWER, FOIL = 9, 12


@dataclass(frozen=True, kw_only=True)
class Added:
    """What adds to the stream in a layer, by name; the norm through which it reads, and its module.

    Of heads that are told apart, `heads` is how many there are and how many keys and values; `output` their projection.
    """

    name: str
    norm: str
    module: str
    heads: tuple[int, int] | None = None
    output: str = "o_proj"


@dataclass(frozen=True, kw_only=True, eq=False)
class Hooked:
    """A network, where its layers are, what each adds in order, and the norm behind them."""

    network: nn.Module
    at: str
    layers: Sequence[Sequence[Added]]
    norm: str

    def run(
        self,
        tokens: Sequence[int],
        cut: Iterable[str] = (),
        other: Mapping[str, Tensor] | None = None,
        probes: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The difference of the two logits, and what each sender adds in this run [token, d_model].

        `probes` are added to what readers read ("into NAME"), or to what senders add ("NAME").
        """
        state = _State({*cut}, other or {}, probes or {}, {})
        with ExitStack() as stack, torch.set_grad_enabled(probes is not None):
            for handle in self._hooked(state):
                stack.callback(handle.remove)
            logits = self.network(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
        return logits[ANSWER] - logits[FOIL], state.added

    def _hooked(self, state: "_State") -> Iterator[Any]:
        embedding: Any = self.network.get_input_embeddings()  # type: ignore[operator]
        yield embedding.register_forward_hook(partial(state.sent, "resid_pre 0"))
        for number, parts in enumerate(self.layers):
            layer = self.network.get_submodule(f"{self.at}.{number}")
            for part in parts:
                norm, module = layer.get_submodule(part.norm), layer.get_submodule(part.module)
                if part.heads is None:
                    yield norm.register_forward_pre_hook(partial(state.reads, f"{part.name} {number}"))
                    yield module.register_forward_hook(partial(state.sent, f"{part.name} {number}"))
                    continue
                heads, shared = part.heads
                yield norm.register_forward_pre_hook(partial(state.keep, number))
                for name, count in (("q", heads), ("k", shared), ("v", shared)):
                    projection = module.get_submodule(f"{name}_proj")
                    hook = partial(state.projected, number, norm, [f"{name} {number}.{n}" for n in range(count)])
                    yield projection.register_forward_hook(hook)
                output = module.get_submodule(part.output)
                yield output.register_forward_pre_hook(partial(state.mixed, [f"z {number}.{n}" for n in range(heads)]))
        yield self.network.get_submodule(self.norm).register_forward_pre_hook(partial(state.reads, "logits"))


@dataclass(eq=False)
class _State:
    cut: set[str]
    other: Mapping[str, Tensor]
    probes: Mapping[str, Tensor]
    added: dict[str, Tensor]

    def __post_init__(self) -> None:
        self.streams: dict[int, Tensor] = {}

    def moved(self, reader: str) -> Tensor | float:
        """How much else a reader reads."""
        found: Any = self.probes.get(f"into {reader}", 0.0)
        for name, value in self.added.items():
            if f"{name} -> {reader}" in self.cut:
                found = found + (self.other[name] - value)
        return found

    def sent(self, name: str, _: nn.Module, __: Any, output: Any) -> Any:
        value = output[0] if isinstance(output, tuple) else output
        value = value + self.probes.get(name, 0.0)
        self.added[name] = value[0]
        return (value, *output[1:]) if isinstance(output, tuple) else value

    def reads(self, name: str, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0] + self.moved(name), *args[1:])

    def keep(self, layer: int, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.streams[layer] = args[0]

    def projected(
        self, layer: int, norm: nn.Module, names: Sequence[str], module: nn.Module, _: Any, output: Tensor
    ) -> Tensor:
        """Each head's part of what the projection makes of a stream of its own."""
        size = output.shape[-1] // len(names)
        make: Callable[[Tensor], Tensor] = lambda stream: module.forward(norm.forward(stream))  # noqa: E731
        each = [make(self.streams[layer] + self.moved(name)) for name in names]
        return torch.cat([one[..., n * size : (n + 1) * size] for n, one in enumerate(each)], -1)

    def mixed(self, names: Sequence[str], module: Any, args: tuple[Tensor, ...]) -> None:
        size = args[0].shape[-1] // len(names)
        assert module.bias is None
        for number, name in enumerate(names):
            here = slice(number * size, (number + 1) * size)
            self.added[name] = args[0][0, :, here] @ module.weight[:, here].T
