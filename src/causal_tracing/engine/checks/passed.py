"""What passes through modules that may be the layers: members of one list, of lists in a list, or of one module.

It is noted who is called, with what, and what comes out; and written at one token, to see whether later ones change.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from causal_tracing.engine.checks.at_a_token import WRITTEN, noise, reached
from causal_tracing.engine.checks.bounds import ONE_FORWARD
from causal_tracing.engine.checks.texts import as_batch, run_text
from causal_tracing.engine.hooks.modules import (
    as_before,
    bears_hooks,
    by_token_of,
    first_tensor,
    on_input,
    on_output,
    stream_in,
)
from causal_tracing.models.at_rest import at_rest
from causal_tracing.models.quantised import stream_dtype

SEED = 3
BARE = (nn.ModuleList, nn.ModuleDict)  # they hold modules, and are never called
Flow = tuple[int, Tensor, Tensor]  # who was called, with what, and what came out


@dataclass(slots=True, eq=False)
class Passed:
    """What passed through some modules, in the order of the calls; `gave` is what no stream came out of."""

    path: str
    members: tuple[str, ...]
    gave: dict[int, str] = field(default_factory=dict)
    calls: list[Flow] = field(default_factory=list)
    elsewhere: int | str | None = None  # which argument is what the last member gave, where it is not the first

    @property
    def order(self) -> list[int]:
        """Who was called, in order."""
        return [number for number, _, _ in self.calls]

    @property
    def once(self) -> bool:
        """Whether every call was another member's, in the order of the list, and the stream kept its shape."""
        alike = {value.shape for _, *both in self.calls for value in both}
        return self.order == sorted({*self.order}) and len(alike) == 1

    @property
    def handed_on(self) -> int:
        """How often what came out of one member went into the next."""
        return sum(_equal(before[2], after[1]) for before, after in self.links)

    @property
    def links(self) -> list[tuple[Flow, Flow]]:
        """Each call with the next one."""
        return list(zip(self.calls, self.calls[1:], strict=False))

    @property
    def chained(self) -> bool:
        """Whether each member was called once, with what the one before gave."""
        return self.once and len(self.calls) == len(self.members) and self.handed_on == len(self.calls) - 1

    @property
    def nested(self) -> bool:
        """Whether some members lie in lists of this list."""
        return any(member.removeprefix(f"{self.path}.").count(".") for member in self.members)

    def spans(self, before: Tensor, after: Tensor) -> bool:
        """Whether the first member was given the one, and the last gave the other."""
        return _equal(self.calls[0][1], before) and _equal(self.calls[-1][2], after)

    def note(self, number: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """A forward hook of a member."""
        before, after = stream_in(args, kwargs), first_tensor(output)
        if before is not None and self.calls and not _equal(before, handed := self.calls[-1][2]):
            given = (*enumerate(args), *kwargs.items())
            self.elsewhere = next((where for where, each in given if _equal(each, handed)), self.elsewhere)
        if before is not None and after is not None:
            # Clones, since some models add to the stream in place.
            self.calls.append((number, before.clone(), after.clone()))
        elif before is not None or _is_complex(first_tensor(output)):
            self.gave[number] = "tensor of complex numbers" if before is None else type(output).__name__

    def of(self, calls: Sequence[Flow], path: str | None = None) -> "Passed":
        """The members of these calls alone, as they were called."""
        members = tuple(self.members[number] for number, _, _ in calls)
        renumbered = [(number, before, after) for number, (_, before, after) in enumerate(calls)]
        return Passed(path=self.path if path is None else path, members=members, calls=renumbered)


def _is_complex(value: Tensor | None) -> bool:
    return value is not None and value.is_complex()


def _equal(value: Any, tensor: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == tensor.shape and torch.equal(value, tensor)


def linked(one: Passed, other: Passed) -> bool:
    """Whether what the last of the first gave went into the first of the other."""
    return _equal(one.calls[-1][2], other.calls[0][1])


def watching(network: nn.Module, groups: Sequence[Passed], stack: ExitStack) -> None:
    """Has all that passes through these noted, until the stack is closed."""
    for one in groups:
        modules = [network.get_submodule(member) for member in one.members]
        for number, module in enumerate(modules):
            if bears_hooks(module):
                handle = module.register_forward_hook(partial(one.note, number), with_kwargs=True)
                stack.callback(handle.remove)


def lists_in(network: nn.Module) -> list[Passed]:
    """Every list of modules; of lists in a list also all of their members together."""
    found = []
    for path, module in network.named_modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module):
            found.append(Passed(path=path, members=_named(path, module)))
        if isinstance(module, BARE) and len(module) and all(isinstance(each, BARE) for each in module.children()):
            found.append(Passed(path=path, members=tuple(_flat(path, module))))
    return found


def _named(path: str, module: nn.Module) -> tuple[str, ...]:
    """The paths of a module's own modules, one in two places by both."""
    return tuple(f"{path}.{name}" if path else name for name in module._modules)


def _flat(path: str, module: nn.Module) -> Iterator[str]:
    for name, each in zip(_named(path, module), module._modules.values(), strict=True):
        if isinstance(each, BARE):
            yield from _flat(name, each)
        else:
            yield name


def by_tokens(stream: Tensor, length: int) -> bool:
    """Whether what one text has there is a row for each of so many tokens, in a form that can be told."""
    plain = stream.ndim in (3, 4) and stream.shape[:2] == (1, length)
    # Some have all rows' tokens one behind the other.
    return plain or (stream.ndim == 2 and len(stream) == length) or lanes_of(stream, length) is not None


def lanes_of(stream: Tensor, length: int) -> str | None:
    """Where the stream of one text has its lanes, or that it has its rows behind its tokens; None of a plain one."""
    if stream.ndim == 4:
        return "last" if stream.shape[:2] == (1, length) else "first" if stream.shape[1:3] == (1, length) else None
    return "turned" if stream.ndim == 3 and stream.shape[:2] == (length, 1) else None


def mixers(network: Any, groups: Sequence[Passed], tokens: Sequence[int], name: str) -> set[str]:
    """Those members, by their paths, that mix tokens. None of the groups may lie in another's member.

    Row 0 is the text; in row 1 each member is given the same stream, with noise at one token.
    """
    found: set[str] = set()
    bound = ONE_FORWARD[str(stream_dtype(network)).removeprefix("torch.")]
    generator = torch.Generator().manual_seed(SEED)

    def write(lanes: str | None, size: int, value: Tensor) -> Tensor:
        if value.numel() != 2 * size:  # such as what is made of places alone: it is the same of any rows
            return value
        shaped = by_token_of(value, 2, lanes)[:1].repeat(2, 1, 1)
        shaped[1, WRITTEN] += noise(shaped[0], generator)
        return as_before(shaped, value, lanes)

    def judge(member: str, lanes: str | None, size: int, value: Tensor) -> Tensor:
        if value.numel() == 2 * size:
            shaped = by_token_of(value, 2, lanes)
            if reached(shaped[0], shaped[1], bound):
                found.add(member)
        return value

    with at_rest(network), ExitStack() as stack:
        for one in (one for one in groups if by_tokens(one.calls[0][1], len(tokens))):
            how = lanes_of(one.calls[0][1], len(tokens)), one.calls[0][1].numel()
            for member in {one.members[number] for number in one.order}:
                module = network.get_submodule(member)
                stack.enter_context(on_input(module, partial(write, *how)))
                stack.enter_context(on_output(module, partial(judge, member, *how)))
        run_text(network, as_batch(network, tokens, rows=2), name)
    return found
