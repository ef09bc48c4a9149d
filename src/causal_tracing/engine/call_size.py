"""How many tokens one call of a layer takes at most: on a CPU a constant, on other devices measured there.

Longer products are faster up to where a device is busy, and take memory from there on. Which length that is differs by
a factor of ten between devices, types and widths, so the model's own largest product is timed at several lengths.
"""

import statistics
import time
from collections.abc import Callable, Hashable, MutableMapping, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from causal_tracing.models.memory import is_out_of_memory
from causal_tracing.models.model import Model

# 512 to 2,048 are equally fast on a CPU (benchmarks/README.md), and the last bits of sums depend on it: every process
# that works on a run must come to the same.
ON_CPU = 1024
SIZES = (2048, 4096, 8192, 16384, 32768, 65536)
ENOUGH = 0.95  # of the best speed
REPEATS = 5

_MEASURED: MutableMapping[nn.Module, dict[Hashable, int]] = WeakKeyDictionary()


def call_tokens(model: Model) -> int:
    """The tokens of a call: measured once for a network on its device, in its type."""
    if model.device.type == "cpu":
        return ON_CPU
    known = _MEASURED.setdefault(model.network, {})
    key = (model.device, model.dtype)
    if key not in known:
        known[key] = enough(SIZES, partial(_seconds, model, largest_product(model)))
    return known[key]


def enough(sizes: Sequence[int], seconds: Callable[[int], float]) -> int:
    """The smallest size at which nearly the best speed is reached, of those that fit into memory."""
    speeds: dict[int, float] = {}
    for size in sizes:
        try:
            speeds[size] = size / seconds(size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            break  # larger ones do not fit either
    best = max(speeds.values(), default=0.0)
    return next((size for size, speed in speeds.items() if speed >= ENOUGH * best), sizes[0])


def largest_product(model: Model) -> Any:
    """The layers' module with the largest matrix."""
    inside: list[Any] = [*model.layer(model.active[0]).modules()]
    products = [module for module in inside if isinstance(getattr(module, "in_features", None), int)]
    # GPT-2's Conv1D is a product too, with its weight the other way round and no in_features.
    convs = [module for module in inside if type(module).__name__ == "Conv1D"]
    return max((*products, *convs), key=lambda each: each.weight.numel(), default=None)


def _seconds(model: Model, product: Any, tokens: int) -> float:
    """The median time of the product on so many tokens; 1 where there is no product to be timed."""
    if product is None:
        return 1.0
    # A Conv1D's weight is [in, out].
    width = getattr(product, "in_features", None) or product.weight.shape[0]
    weight = product.weight
    given = torch.randn(tokens, width, device=weight.device, dtype=getattr(torch, model.dtype))
    with model.at_rest():
        product(given)  # the first call finds its kernel
        return statistics.median(_timed(product, given) for _ in range(REPEATS))


def _timed(product: Any, given: torch.Tensor) -> float:
    # What was queued before must not be counted with it.
    _wait_for(given.device)
    began = time.perf_counter()
    product(given)
    _wait_for(given.device)
    return time.perf_counter() - began


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":  # there a call has done its work when it returns
        torch.accelerator.synchronize(device)
