"""Layers that are no members of one list: modules beside one another, and those inside of stages.

1. Of every module's own modules, those that hand the stream on, one to the next, are a chain (`beside`). Its layers are
   those that mix tokens or hold modules: a norm or dropout among them is none.
2. Where each member of a list is itself a chain, all through, of modules that all mix tokens, these are the layers
   (`finer`). Of a layer made of attention and an MLP, each with its residual, the MLP does not mix.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from torch import nn

from causal_tracing.engine.checks.passed import Flow, Passed, lists_in, mixers, watching
from causal_tracing.engine.checks.texts import as_batch, run_text
from causal_tracing.models.at_rest import at_rest

NAMED = 3  # of many layers, as many are named


def beside(network: Any, tokens: Sequence[int], name: str) -> tuple[Passed | None, list[Passed]]:
    """The longest chain of modules beside one another, two of which mix tokens at least, or None; and all chains.

    One that mixes is enough where no list holds anything that is made of modules.
    """
    groups = [Passed(path=path, members=members) for path, members in _held(network)]
    with at_rest(network), ExitStack() as stack:
        watching(network, groups, stack)
        run_text(network, as_batch(network, tokens), name)
    chains = [chain for one in groups for chain in _chains(network, one)]
    made = any(any(network.get_submodule(member).children()) for one in lists_in(network) for member in one.members)
    for chain in sorted(chains, key=lambda one: -len(one.members)):
        mixing = mixers(network, [chain], tokens, name)
        kept = [
            call
            for call, member in zip(chain.calls, chain.members, strict=True)
            if member in mixing or any(network.get_submodule(member).children())
        ]
        if len(mixing) > made and kept:
            return chain.of(kept, _label(network, chain.of(kept))), chains
    return None, chains


def _held(network: nn.Module) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each module that holds others, with their paths."""
    for path, module in network.named_modules():
        members = tuple(f"{path}.{child}" if path else child for child, _ in module.named_children())
        if members:
            yield path, members


def _chains(network: nn.Module, one: Passed) -> Iterator[Passed]:
    """The runs of calls, each of which is given what the one before gave, of modules that are called once.

    There is none where a module of modules is called again: it would be a layer without an activation of its own.
    """
    again = {number for number in one.order if one.order.count(number) > 1}
    if any(any(network.get_submodule(one.members[number]).children()) for number in again):
        return
    calls = [call for call in one.calls if call[1].shape == call[2].shape and call[0] not in again]
    run: list[Flow] = []
    for call in calls:
        if run and not Passed(path="", members=one.members, calls=[run[-1], call]).handed_on:
            yield one.of(run)
            run = []
        run.append(call)
    yield from [one.of(run)] if run else []


def _label(network: nn.Module, chain: Passed) -> str:
    """What the layers are called together: by the module that holds them and nothing else, or one by one."""
    if chain.path and [*chain.members] == [f"{chain.path}.{name}" for name in _children(network, chain.path)]:
        return chain.path
    shown = chain.members if len(chain.members) <= NAMED + 1 else (*chain.members[:NAMED], "...", chain.members[-1])
    return ", ".join(shown)


def _children(network: nn.Module, path: str) -> list[str]:
    return [name for name, _ in network.get_submodule(path).named_children()]


def finer(network: Any, best: Passed, passed: Sequence[Passed], tokens: Sequence[int], name: str) -> Passed:
    """The layers inside of these, where each is a chain of some, and nothing else; else these."""
    inside = [_inside(best, call, passed) for call in best.calls]
    chosen = [one for one in inside if one is not None]
    calls = [(one, call) for one in chosen for call in one.calls]
    if len(chosen) < len(best.members) or len(calls) == len(best.calls):
        return best
    members = tuple(one.members[call[0]] for one, call in calls)
    if not {*members} <= mixers(network, chosen, tokens, name):
        return best
    flows = [(number, before, after) for number, (_, (_, before, after)) in enumerate(calls)]
    return finer(network, Passed(path=best.path, members=members, calls=flows), passed, tokens, name)


def _inside(best: Passed, call: Flow, passed: Sequence[Passed]) -> Passed | None:
    """The longest chain in a member that takes what it takes, and gives what it gives."""
    number, *both = call
    member = best.members[number]
    there = [one for one in passed if f"{one.path}.".startswith(f"{member}.") and one.chained and one.spans(*both)]
    return max(there, key=lambda one: len(one.calls), default=None)
