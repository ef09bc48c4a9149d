"""One trace as plain values, and how it is run: every name in its block is sent along."""

import hashlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import nnsight
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Asked:
    """The inputs of a model, and a function of `block` that is run beside it, with its arguments: plain values."""

    inputs: dict[str, Any]
    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    def key(self) -> str:
        """The same for the same question: by it, what a killed process asked for is known again."""
        found = hashlib.sha256()
        for part in _flat([self.inputs, self.function, self.arguments]):
            # With its length, so that no two lists of parts run together into the same bytes.
            found.update(len(part).to_bytes(8, "big") + part)
        return found.hexdigest()


def traced(model: Any, asked: Asked, **how: Any) -> Any:
    """What the function gives inside a trace of an nnsight model."""
    for each in _functions((asked.function, asked.arguments)):  # their source is sent, and not the name of a module
        nnsight.register(each.__module__)
    inputs, function, arguments = asked.inputs, asked.function, asked.arguments
    found = None  # where a server answers later
    with model.trace(inputs, **how):
        found = nnsight.save(function(model, *arguments))
    return found  # noqa: RET504 (it is set in the trace, which is another function)


def _functions(value: Any) -> Iterator[Callable[..., Any]]:
    """The functions among values."""
    if isinstance(value, list | tuple):
        for each in value:
            yield from _functions(each)
    elif callable(value):
        yield value


def _flat(value: Any) -> Iterator[bytes]:
    if isinstance(value, Tensor):
        yield f"{tuple(value.shape)} {value.dtype}".encode()
        yield value.contiguous().numpy().tobytes()
    elif isinstance(value, dict):
        for name in sorted(value):
            yield name.encode()
            yield from _flat(value[name])
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _flat(each)
    elif inspect.isfunction(value):
        yield from _of_function(value)
    else:
        yield (value.__name__ if callable(value) or inspect.ismodule(value) else repr(value)).encode()


def _of_function(value: Any) -> Iterator[bytes]:
    """Its source, and what it uses from outside: two functions made by one may differ in that alone."""
    yield inspect.getsource(value).encode()
    used = inspect.getclosurevars(value)
    for name, held in sorted({**used.globals, **used.nonlocals}.items()):
        yield name.encode()
        if held is not value:  # a function may call itself
            yield from _flat(held)
