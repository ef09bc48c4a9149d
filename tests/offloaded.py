"""Networks whose weights accelerate keeps elsewhere: all or some of them, in memory or on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from torch import nn

CPU = torch.device("cpu")
EMBEDDINGS = ("wte", "embed_tokens")


def in_memory(network: Any, _: Path) -> nn.Module:
    return cpu_offload(network, execution_device=CPU)


def buffers_too(network: Any, _: Path) -> nn.Module:
    return cpu_offload(network, execution_device=CPU, offload_buffers=True)


def whole_layers(network: Any, _: Path) -> nn.Module:
    """A layer's weights are fetched together, by one hook of the layer."""
    return cpu_offload(network, execution_device=CPU, preload_module_classes=list(network._no_split_modules))


def on_disk(network: Any, folder: Path) -> nn.Module:
    disk_offload(network, folder, execution_device=CPU)
    return network


def middle_layers(network: Any, folder: Path) -> nn.Module:
    return _some(network, folder, lambda name: name.endswith((".1", ".2")))


def embeddings_and_a_layer(network: Any, folder: Path) -> nn.Module:
    return _some(network, folder, lambda name: name.endswith((".1", *EMBEDDINGS)))


def head(network: Any, folder: Path) -> nn.Module:
    return _some(network, folder, lambda name: name == "lm_head")


WAYS = (in_memory, buffers_too, whole_layers, on_disk, middle_layers, embeddings_and_a_layer, head)


def _some(network: Any, folder: Path, chosen: Callable[[str], bool]) -> nn.Module:
    where: Any = {name: "disk" if chosen(name) else "cpu" for name in _blocks(network)}
    return dispatch_model(network, where, main_device=CPU, offload_dir=folder, force_hooks=True)


def _blocks(network: nn.Module) -> list[str]:
    """The layers, and what stands beside them."""
    found = []
    for name, part in network.named_children():
        for inner, block in part.named_children():
            many = isinstance(block, nn.ModuleList)
            found += [f"{name}.{inner}.{n}" for n in range(len(block))] if many else [f"{name}.{inner}"]
        if not list(part.children()):
            found.append(name)
    return found
