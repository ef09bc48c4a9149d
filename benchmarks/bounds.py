"""What no engine can beat, and what this one's own layers cost: the two bounds that a sweep is held against."""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from causal_tracing.models.model import Model

Product = tuple[nn.Linear, int]  # a linear projection, and how many tokens it was called with


def products(model: Model, sweep: Callable[[], object]) -> list[Product]:
    """Every call of a layer's linear projections in a sweep, in order."""
    seen: list[Product] = []

    def note(module: nn.Module, args: tuple[Tensor, ...], _: Tensor) -> None:
        seen.append((module, args[0].shape[:-1].numel()))  # pyright: ignore[reportArgumentType]

    linears = [module for layer in model.layers for module in layer.modules() if isinstance(module, nn.Linear)]
    handles = [linear.register_forward_hook(note) for linear in linears]
    try:
        sweep()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def projections_alone(calls: list[Product]) -> Callable[[], None]:
    """The same products again, on random inputs, and nothing else."""
    inputs = {(linear.in_features, tokens): torch.randn(1, tokens, linear.in_features) for linear, tokens in calls}

    def run() -> None:
        with torch.no_grad():
            for linear, tokens in calls:
                functional.linear(inputs[linear.in_features, tokens], linear.weight, linear.bias)

    return run


def operations(model: Model, calls: list[Product], states: int) -> float:
    """Floating-point operations of these products, and of the head on so many states."""
    head = model.network.get_output_embeddings()
    layers = sum(2.0 * tokens * linear.in_features * linear.out_features for linear, tokens in calls)
    return layers + 2.0 * states * head.in_features * head.out_features


def large_product(size: int = 2048) -> Callable[[], float]:
    """Multiplies two large square matrices; gives the operations a second."""
    left, right = torch.randn(size, size), torch.randn(size, size)

    def run() -> float:
        started = time.perf_counter()
        torch.mm(left, right)
        return 2.0 * size**3 / (time.perf_counter() - started)

    return run
