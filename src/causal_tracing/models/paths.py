"""Where modules are in a network."""

from collections.abc import Sequence
from itertools import takewhile

from torch import nn


def module_at(network: nn.Module, path: str) -> nn.Module | None:
    """The module at a path; None where there is none, or no longer."""
    try:
        return network.get_submodule(path)
    except AttributeError:
        return None


def around(network: nn.Module, paths: Sequence[str]) -> nn.Module:
    """The innermost module that holds all of these, and is called: no list or table of modules."""
    holders = [path.split(".")[:-1] for path in paths]
    names = [together[0] for together in takewhile(lambda each: len({*each}) == 1, zip(*holders, strict=False))]
    while names and isinstance(network.get_submodule(".".join(names)), (nn.ModuleList, nn.ModuleDict, nn.Sequential)):
        names = names[:-1]
    return network.get_submodule(".".join(names))
