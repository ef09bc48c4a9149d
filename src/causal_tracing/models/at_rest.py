"""A network as its weights and modules say, whatever the caller's own settings are: here everything is measured.

What is changed meanwhile (hooks, attention functions, modes) belongs to a network or to the whole process, so that one
thread at a time works in it.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import torch
from torch import nn

AUTOCAST = ("cpu", "cuda")
# Reentrant: a forward at rest may record what it reads in another one.
alone = threading.RLock()


@contextmanager
def at_rest(network: nn.Module) -> Iterator[None]:
    """The network in evaluation mode, without gradients, in its own types, and with nothing of it compiled.

    Every module's own mode is put back afterwards. Other threads wait.
    """
    with alone:
        # Usually none: then nothing is set, and nothing has to be put back.
        training = [module for module in network.modules() if module.training]
        if training:
            network.eval()
        try:
            with as_written(), torch.no_grad():
                yield
        finally:
            for module in training:
                module.training = True


@contextmanager
def as_written() -> Iterator[None]:
    """Operations as they stand: a caller's autocast would round them, and what is compiled goes past hooks.

    Other threads wait.
    """
    with alone, ExitStack() as stack:
        for kind in AUTOCAST:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if "torch._dynamo" in sys.modules:  # else nothing was compiled, and importing it takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


@contextmanager
def made_on_cpu() -> Iterator[None]:
    """Tensors of which no device is said are made on the CPU, whatever the caller's default is."""
    with nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu"):
        yield
