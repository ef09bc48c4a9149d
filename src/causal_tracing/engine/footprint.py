"""What one row of a batch takes in memory: measured on the model, by a run of one row and a run of two.

No configuration says it: an attention of another kind, experts, or a chunk that short prompts are filled up to take
many times what widths let one guess.
"""

from collections.abc import Hashable, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, finalize

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from causal_tracing.engine.hooks.forward import forward
from causal_tracing.engine.random_prompts import random_prompts
from causal_tracing.interventions.edits import Run
from causal_tracing.models.memory import is_out_of_memory
from causal_tracing.models.model import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes that a forward takes at its height, beside the weights: some in any case, and some for each row."""

    fixed: int
    row: int

    def rows(self, budget: int, more: int = 0) -> int:
        """How many rows fit into a budget in bytes, where each takes some `more`; at least one."""
        return max(1, (budget - self.fixed) // max(1, self.row + more))


# By network, without a reference to it: what was measured, by all that it depends on.
_MEASURED: MutableMapping[nn.Module, dict[Hashable, Footprint]] = WeakKeyDictionary()


def footprint(model: Model, length: int, keep: int) -> Footprint:
    """What runs of `length` tokens take where the logits of the last `keep` are wanted; measured once.

    The prompts are random, and always the same: what is cut by this is cut alike whenever a run is taken up again.
    """
    known = _MEASURED.setdefault(model.network, {})
    key = (model.circumstances, length, keep)
    if key not in known:
        one, two = random_prompts(model.network, model.tokenizer, length)
        single = _height(model, [one], keep)
        try:
            row = max(1, _height(model, [one, two], keep) - single)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            row = 2**62  # two do not fit
        known[key] = Footprint(fixed=max(0, single - row), row=row)
    return known[key]


def _height(model: Model, runs: Sequence[Run], keep: int) -> int:
    with Height() as height:
        forward(model, runs, {}, keep=keep)
    return height.most


# Counted here, because torch counts what is allocated on some kinds of device only, and never on a CPU.
class Height(TorchDispatchMode):
    """Within it, `most` is how many bytes of tensors that were made here were alive at once, on any device."""

    supports_higher_order_operators = True  # flex attention is one

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {id(value.untyped_storage()) for value in _tensors((*args, *kwargs.values()))}
        out = func(*args, **kwargs)
        for value in _tensors((out,)):
            storage = value.untyped_storage()
            if id(storage) not in given | self.alive:  # a view, or what was written in place, is nothing new
                self._note(storage)
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        """A tensor's bytes, from now until nothing holds them."""
        self.alive.add(id(storage))
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        # At the interpreter's end nobody counts any more.
        finalize(storage, self._gone, id(storage), storage.nbytes()).atexit = False

    def _gone(self, name: int, size: int) -> None:
        self.alive.discard(name)
        self.now -= size


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """The tensors among an operation's arguments or results, those in lists too; none without numbers."""
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _tensors(value)
        elif isinstance(value, torch.Tensor) and value.device.type != "meta" and value.layout is torch.strided:
            yield value
