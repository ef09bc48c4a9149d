"""Which engine runs a trace: decided by what both of them give on this model, never by its name.

Worlds of every kind (single cells, windows, several edits; some and all positions read) run on both engines: short ones
when a model is loaded, and once more, fewer, at the length of the prompts that are traced, where that is longer. A
layer may do other things with a long prompt (windows, blocks, other scales). The packed engine is used for the
components on which it gives what replay gives.
"""

from collections.abc import Hashable, Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from random import Random
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from causal_tracing.engine.checks.bounds import TWO_FORWARDS
from causal_tracing.engine.checks.logits import apart, largest
from causal_tracing.engine.evaluate import engine_of
from causal_tracing.engine.memory import default_budget
from causal_tracing.engine.random_prompts import LENGTH, random_prompts, short_prompts
from causal_tracing.errors import CannotPack
from causal_tracing.interventions.edits import Attending, Edit, From, Run, World
from causal_tracing.interventions.sites import ATTENTION, Site
from causal_tracing.models.memory import is_out_of_memory, memory_said
from causal_tracing.models.model import Agreement, Model

SEED = 0
CELLS = 6  # random ones of a component
CELLS_AT_LENGTH = 1
OTHERS = 3  # the first cell, the last, and a window


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """The engine that runs a trace, and why it is not the packed one (None where it is, or where replay was asked)."""

    engine: str
    note: str | None = None


# What was compared at the length of prompts, by network (without a reference to it), circumstances and component.
_AT_LENGTH: MutableMapping[nn.Module, dict[Hashable, dict[str, Agreement]]] = WeakKeyDictionary()


def choose(model: Model, components: Sequence[str], asked: str = "auto", length: int = LENGTH) -> EngineChoice:
    """The packed engine where it is known to agree with replay on these components, and replay elsewhere.

    `length` is that of the longest prompt, in tokens. A model that has changed since it was loaded (hooks, attention
    implementation) is compared again. Raises CannotPack where "packed" is asked for and does not agree.
    """
    if asked == "replay":
        return EngineChoice("replay")
    agreement = model.agreement
    # Used as long as nothing about the model has changed: a hook of the user's may bear one engine and not the other.
    known = agreement.differences if agreement else {}
    if agreement is None or agreement.circumstances != model.circumstances or not {*components} <= {*known}:
        with room_for_checks(model.name):
            agreement = compare(model, components, *short_prompts(model.network, model.tokenizer))
    against = agreement.against(components) or _against_at(model, components, length)
    if against is None:
        return EngineChoice("packed")
    if asked == "packed":
        raise CannotPack(f"The packed engine does not run {model.name}: {against} Use engine='replay'.")
    return EngineChoice(
        "replay", f"The packed engine is not used on {model.name}: {against} Replay is, which is slower."
    )


def _against_at(model: Model, components: Sequence[str], length: int) -> str | None:
    """What speaks against the packed engine on prompts of this length.

    Each component is compared once for a length and shorter ones, whatever others it is traced with.
    """
    if length <= LENGTH:
        return None
    known = _AT_LENGTH.setdefault(model.network, {}).setdefault(model.circumstances, {})
    # Not asked again of shorter prompts: windows and blocks begin to matter at some length, and do not stop.
    missing = [name for name in components if name not in known or known[name].length < length]
    if missing:
        with room_for_checks(model.name):
            prompts = random_prompts(model.network, model.tokenizer, length)
            known |= dict.fromkeys(missing, compare(model, missing, *prompts, cells=CELLS_AT_LENGTH))
    return next(filter(None, (known[name].against([name]) for name in components)), None)


def room_for_checks(name: str) -> AbstractContextManager[None]:
    """Raises OutOfMemory where memory runs out: nothing is known of a model that could not be tried."""
    return memory_said(
        f"{name} cannot be checked: beside its weights, prompts of {LENGTH} tokens do not fit into memory. Give "
        'dtype="bfloat16", another device, or a smaller model.'
    )


def compare(model: Model, components: Sequence[str], one: Run, other: Run, cells: int = CELLS) -> Agreement:
    """The largest difference between the engines' logits for each component, in shares of the largest logit."""
    length = len(one.tokens)
    common = {"bound": TWO_FORWARDS[model.dtype], "circumstances": model.circumstances, "length": length}
    differences: dict[str, float] = {}
    for names in _at_once(model, components, length, cells):
        worlds = [_worlds(model, name, one, other, cells) for name in names]
        try:
            packed = _logits(model, worlds, "packed")
        # Whatever a model's own code raises when it is called with packed tokens speaks against packing, and for
        # replay.
        except (CannotPack, RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
            if is_out_of_memory(error):
                raise
            said = f"{type(error).__name__}: {error}".rstrip(".")
            why = str(error) if isinstance(error, CannotPack) else f"it fails with {said}."
            return Agreement(differences=dict.fromkeys(components, float("nan")), reason=why, **common)
        replayed = _logits(model, worlds, "replay")
        differences |= {name: _apart(*both) for name, *both in zip(names, packed, replayed, strict=True)}
    return Agreement(differences=differences, reason="", **common)


def _apart(packed: Sequence[Tensor], replayed: Sequence[Tensor]) -> float:
    """How far apart the two engines' logits of the same worlds are, in shares of the largest."""
    # In shares of the largest logit, since what rounding does grows with the numbers.
    size = max(largest(logits) for logits in replayed)
    return max(apart(*both).max().item() for both in zip(packed, replayed, strict=True)) / size


def _at_once(model: Model, components: Sequence[str], length: int, cells: int) -> Iterator[Sequence[str]]:
    """The components in groups whose worlds share forwards: as many as both engines' logits fit the budget of."""
    logits = 2 * (cells + OTHERS) * length * (model.vocabulary or 1) * torch.float32.itemsize
    size = max(1, default_budget(model) // logits)
    for start in range(0, len(components), size):
        yield components[start : start + size]


def _worlds(model: Model, component: str, one: Run, other: Run, random_cells: int) -> list[World]:
    """The first and the last cell that can matter, random ones, and a window at two positions."""
    length = len(one.tokens)
    random, layers = Random(SEED), model.having(component)
    cells = [(layers[0], 1), (layers[-1], length - 1)]
    cells += [(layers[random.randrange(len(layers))], random.randrange(1, length)) for _ in range(random_cells)]
    written = [[cell] for cell in cells]
    middle = (len(layers) - 1) // 2
    written.append([(layer, position) for layer in layers[middle : middle + 3] for position in sorted({2, length - 2})])
    worlds = []
    for number, sites in enumerate(written):
        # By turns both ways, and with all or one position read: each is another path through the engine.
        base, donor = (one, other) if number % 2 else (other, one)
        edits = tuple(_edit(Site(component, layer, position), donor, number) for layer, position in sites)
        readout = tuple(range(length)) if number % 3 else (length - 1,)
        worlds.append(World(base, edits, readout))
    return worlds


def _edit(site: Site, donor: Run, number: int) -> Edit:
    """The donor's activation; of attention in turn a blocked key, a zeroed one, and a donor's query, key and value."""
    if site.component != ATTENTION:
        return Edit(site, From(donor, site.position))
    there, query = ((0, From(donor, 0)), (1, From(donor, 1))), ((0, From(donor, site.position)),)
    hidden = Attending(blocked=(1,) if site.position > 1 else (0,))
    return Edit(site, (hidden, Attending(zeroed=(0,)), Attending(q=query), Attending(k=there, v=there))[number % 4])


def _logits(model: Model, worlds: Sequence[Sequence[World]], engine: str) -> list[list[Tensor]]:
    """Each component's worlds' logits [readout, vocab], nothing pruned."""
    run = engine_of(engine, model, [world for each in worlds for world in each], default_budget(model))
    found: dict[int, Tensor] = {}
    for batch in run.batches(None):
        for numbers, logits in run.logits(batch):
            found.update(zip(numbers, logits.float(), strict=True))
    in_order = iter([found[number] for number in sorted(found)])
    return [list(islice(in_order, len(each))) for each in worlds]
