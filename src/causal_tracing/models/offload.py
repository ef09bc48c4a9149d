"""Weights that accelerate keeps elsewhere, in memory or on disk, and fetches for each call of their module.

Between calls such a parameter is on the meta device, without numbers. They are in a map that the module's hook holds;
the hook also says on which device the module computes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate.hooks import AlignDevicesHook


def weights(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter's name and numbers, wherever they are kept; a tied one comes under each of its names.

    One at a time: what is on disk is not held together.
    """
    kept = _kept(network)
    for name, parameter in network.named_parameters(remove_duplicate=False):
        yield name, kept[name].fetched(parameter) if parameter.is_meta and name in kept else parameter.detach()


def is_offloaded(network: nn.Module) -> bool:
    """Whether some of the parameters are kept elsewhere."""
    return bool(_kept(network))


def absent(network: nn.Module) -> list[str]:
    """The parameters that have no numbers: on the meta device, and kept nowhere."""
    kept = _kept(network)
    return [name for name, parameter in network.named_parameters() if parameter.is_meta and name not in kept]


def device_of(network: nn.Module, parameter: Tensor) -> torch.device:
    """The device that a parameter is on when its module computes."""
    if parameter.is_meta:
        kept = _kept(network)
        for name, one in network.named_parameters(remove_duplicate=False):
            if one is parameter and name in kept:
                where: Any = kept[name].hook.execution_device
                return torch.device(where)
    return parameter.device


def devices_of(network: nn.Module) -> Iterator[torch.device]:
    """The devices that its modules compute on."""
    for module in network.modules():  # once: it is asked before every batch
        for hook in _hooks(module):
            where: Any = hook.execution_device
            yield torch.device(where)
        yield from {one.device for one in module._parameters.values() if one is not None and not one.is_meta}


@dataclass(frozen=True, slots=True)
class _Kept:
    """Where a parameter is kept: in the map of this hook, under this name."""

    hook: "AlignDevicesHook"
    name: str

    def fetched(self, parameter: Tensor) -> Tensor:
        """The numbers, in the type that the module computes in."""
        maps: Any = self.hook.weights_map
        return maps[self.name].detach().to(parameter.dtype)


def _kept(network: nn.Module) -> dict[str, _Kept]:
    """The parameters that are kept elsewhere, by their full names."""
    return {
        f"{path}.{name}" if path else name: _Kept(hook, name)
        for path, module in network.named_modules(remove_duplicate=False)
        for hook in _hooks(module)
        # A hook may hold the weights of all modules inside its own.
        for name, _ in module.named_parameters(recurse=hook.place_submodules, remove_duplicate=False)
    }


def _hooks(module: nn.Module) -> Iterator["AlignDevicesHook"]:
    """The module's own hooks that fetch weights."""
    hook = getattr(module, "_hf_hook", None)
    if hook is None:
        return
    from accelerate.hooks import AlignDevicesHook, SequentialHook  # it is there: it has made the hook

    for one in hook.hooks if isinstance(hook, SequentialHook) else (hook,):
        if isinstance(one, AlignDevicesHook) and one.offload:
            yield one
