"""Bare torch hooks: what every module of a network takes in and gives out, and runs in which some of it is changed.

Nothing of the package is used here, nor anything that is known of a family.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Place = tuple[int | str, ...]  # the way to a tensor among a call's arguments or results
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """One tensor of a run: at a place in what a module takes in or gives out, the `turn`-th time that it is called."""

    path: str
    turn: int
    side: str  # "in" or "out"
    place: Place


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """One call of a module: the tensors that went in and came out, copied at once, and when it began and ended."""

    path: str
    turn: int
    begin: int
    end: int
    inputs: Mapping[Place, Tensor]
    outputs: Mapping[Place, Tensor]

    def spot(self, side: str, place: Place) -> Spot:
        return Spot(path=self.path, turn=self.turn, side=side, place=place)

    def holds(self, other: "Call") -> bool:
        """Whether the other call happens inside this one."""
        return self.begin < other.begin and other.end < self.end


def unchanged(value: Tensor) -> Tensor:
    return value


def tensors(value: Any, place: Place = ()) -> Iterator[tuple[Place, Tensor]]:
    """The floating tensors in nested tuples, lists and dictionaries, with their places."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield place, value
    elif isinstance(value, (tuple, list)):
        for number, each in enumerate(value):
            yield from tensors(each, (*place, number))
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield from tensors(each, (*place, name))


def replaced(value: Any, place: Place, change: Change) -> Any:
    """The same with the tensor at a place changed; what holds it is copied."""
    if not place:
        return change(value)
    key, inner = place[0], place[1:]
    if isinstance(value, (tuple, list)):
        items = [replaced(each, inner, change) if n == key else each for n, each in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    changed = {name: replaced(each, inner, change) if name == key else each for name, each in value.items()}
    return type(value)(**changed) if type(value) is not dict else changed


def at(value: Any, place: Place) -> Any:
    for key in place:
        value = value[key]
    return value


def forward(network: nn.Module, tokens: Sequence[int]) -> Tensor:
    """[token, vocab] of one prompt."""
    with torch.no_grad():
        return network(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0]


def record(network: nn.Module, tokens: Sequence[int]) -> list[Call]:
    """Every call of every module in one run, in the order in which they end."""
    calls: list[Call] = []
    begun: list[tuple[int, Mapping[Place, Tensor]]] = []
    turns: dict[str, int] = {}
    clock = iter(range(10**9))

    def copies(value: Any) -> Mapping[Place, Tensor]:
        return {place: tensor.detach().clone() for place, tensor in tensors(value)}

    def enter(_: Any, args: Any, kwargs: Any) -> None:
        begun.append((next(clock), copies((args, kwargs))))

    def leave(path: str) -> Callable[..., None]:
        def hook(_: Any, __: Any, output: Any) -> None:
            begin, inputs = begun.pop()
            turn = turns.get(path, 0)
            turns[path] = turn + 1
            calls.append(
                Call(path=path, turn=turn, begin=begin, end=next(clock), inputs=inputs, outputs=copies(output))
            )

        return hook

    handles = []
    for path, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave(path)))
    try:
        forward(network, tokens)
    finally:
        for handle in handles:
            handle.remove()
    return calls


@contextmanager
def changing(network: nn.Module, changes: Mapping[Spot, Change]) -> Iterator[None]:
    """Hooks that change the tensors at these spots, for one run."""
    handles = []
    for path in {spot.path for spot in changes}:
        module = network.get_submodule(path)
        mine = {spot: change for spot, change in changes.items() if spot.path == path}
        before, after = _hooks(mine)
        handles += [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooks(changes: Mapping[Spot, Change]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """A module's hooks, before and after: they count its calls (turns end inside out where it calls itself)."""
    turn = 0

    def before(_: Any, args: Any, kwargs: Any) -> Any:
        both: Any = (args, kwargs)
        for spot, change in changes.items():
            if spot.turn == turn and spot.side == "in":
                both = replaced(both, spot.place, change)
        return both

    def after(_: Any, __: Any, output: Any) -> Any:
        nonlocal turn
        for spot, change in changes.items():
            if spot.turn == turn and spot.side == "out":
                output = replaced(output, spot.place, change)
        turn += 1
        return output

    return before, after


def run(network: nn.Module, tokens: Sequence[int], changes: Mapping[Spot, Change]) -> Tensor:
    """[token, vocab] of one prompt with the tensors at these spots changed."""
    with changing(network, changes):
        return forward(network, tokens)


def look(network: nn.Module, tokens: Sequence[int], spots: Sequence[Spot]) -> dict[Spot, Tensor]:
    """What a run holds at these spots."""
    seen: dict[Spot, Tensor] = {}

    def note(spot: Spot) -> Change:
        def change(value: Tensor) -> Tensor:
            seen[spot] = value.detach().clone()
            return value

        return change

    run(network, tokens, {spot: note(spot) for spot in spots})
    return seen


def token_axis(value: Tensor, length: int) -> int:
    """The first axis that counts tokens."""
    return value.shape.index(length)


def put(donor: Tensor, position: int, length: int) -> Change:
    """Writes what the donor holds at one token."""

    def change(value: Tensor) -> Tensor:
        changed = value.clone()
        axis = token_axis(value, length)
        changed.narrow(axis, position, 1).copy_(donor.narrow(axis, position, 1))
        return changed

    return change
