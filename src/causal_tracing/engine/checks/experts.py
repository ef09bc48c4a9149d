"""Experts of a mixture: which module is called with what a router chose, and whether it is the sum that it must be.

1. Below each layer, the modules that are called with tokens, whole numbers and weights are looked at (`Calls`).
2. Called again by hand, such a module must be a sum over experts that is linear in their weights: each expert's part by
   itself is what it gives where all other weights are zero; the parts add up; other weights give other shares of them.
3. The MLP must not mix tokens: then a router looks at its own token alone.
4. Patched at all positions, the router and what experts read are all experts together, and these the MLP, where nothing
   stands beside them (`mixture_proofs`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from causal_tracing.engine.backend import Recording
from causal_tracing.engine.checks.bounds import ONE_FORWARD, TWO_FORWARDS
from causal_tracing.engine.checks.findings import Finding, bounded, own_activations, random_write, write_all
from causal_tracing.engine.checks.logits import apart, largest
from causal_tracing.engine.hooks.experts import Call, call_of, parts_of, result
from causal_tracing.engine.hooks.forward import forward
from causal_tracing.engine.hooks.modules import first_tensor
from causal_tracing.engine.hooks.record import record
from causal_tracing.errors import UnsupportedModel
from causal_tracing.interventions.edits import Edit, From, Run
from causal_tracing.interventions.sites import MIXTURE, ROUTED, Site
from causal_tracing.models.anatomy import Anatomy
from causal_tracing.models.model import Model

TIMES = -1.5  # what weights are multiplied by, to see that the sum is as well


@dataclass(slots=True, eq=False)
class Calls:
    """The calls in one layer that may be those of experts, by the paths of the modules, with what they gave."""

    found: dict[str, tuple[Call, Tensor]] = field(default_factory=dict)

    def note(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Keeps a call, if it is one."""
        call, given = call_of(args, kwargs), first_tensor(output)
        if call is not None and given is not None and given.numel() == call.hidden.numel():
            self.found[path] = call, given.clone()


def experts_located(model: Model, seen: Sequence[tuple[Calls, Tensor | None]]) -> Anatomy:
    """The anatomy with the experts of each layer, and how many there are; or with the reason against them.

    `seen` are each layer's calls, and what its MLP gave.
    """
    anatomy, layouts, counts = model.anatomy, [*model.anatomy.layouts], set[int]()
    reason = ""
    for layer in (layer for layer in model.active if seen[layer][0].found):
        path, reason = _experts_of(model, layer, seen[layer][0])
        if reason:
            break
        given, added = seen[layer][0].found[path][1], seen[layer][1]
        # A shared expert beside them adds to the MLP's output, which is then more than theirs.
        alone = added is not None and torch.equal(added.flatten(), given.flatten())
        layouts[layer] = replace(layouts[layer], experts=path, experts_alone=alone)
        counts.add(_count(model.part(layer, path)))
    # Offered in all layers that have some, or in none: a map has one axis of experts.
    if reason or len(counts) > 1:
        for component in MIXTURE:
            anatomy = anatomy.refuse(component, reason or "its layers have different numbers of them.")
        return anatomy
    return replace(anatomy, layouts=tuple(layouts), counts=(*anatomy.counts, *(("experts", n) for n in counts)))


def _experts_of(model: Model, layer: int, calls: Calls) -> tuple[str, str]:
    """The path of a layer's experts, and what speaks against them; "" where nothing does."""
    layout, reason = model.layout(layer), ""
    for path, (call, output) in calls.found.items():
        part = model.part(layer, path)
        if not layout.mlp:
            fault = "no MLP was found that experts could belong to."
        elif layout.mlp_mixes:
            fault = "the MLP mixes tokens, so that what a router chooses may depend on other tokens."
        elif not _count(part):
            fault = "it cannot be told how many experts there are."
        else:
            fault = _fault(model, part, call, output, _count(part))
        if not fault:
            return path, ""
        reason = reason or f"in layer {layer} ({path}) {fault}"
    return "", reason


def _count(part: nn.Module) -> int:
    """How many experts there are: as many as its stacked weights hold, or as it says; 0 where it does neither."""
    # Weights of all experts in one tensor [expert, ...], as transformers stacks them.
    stacked = [len(each) for each in part.parameters() if each.ndim > 2]
    said = getattr(part, "num_experts", 0)
    return max(stacked) if stacked else said if isinstance(said, int) else 0


def _fault(model: Model, part: nn.Module, call: Call, output: Tensor, count: int) -> str:
    """What speaks against a module's being a sum over experts; "" where nothing does."""
    bound, total = TWO_FORWARDS[model.dtype], output.reshape(-1, output.shape[-1])
    size = total.float().abs().max().clamp(min=torch.finfo(torch.float32).tiny)

    def off(one: Tensor, other: Tensor) -> float:
        return ((one.float() - other.float()).abs().max() / size).item()

    with model.at_rest():
        try:
            tried = [(fault, off(*both)) for fault, both in _tried(part, call, total, count)]
        except (RuntimeError, TypeError, ValueError, IndexError, UnsupportedModel) as error:
            return f"what is called with a router's choice cannot be called by hand ({type(error).__name__})."
    for fault, found in tried:
        # Written so that NaN is a fault.
        if not found <= bound:
            return f"what is called with a router's choice {fault} (measured {found:.2g}, bound {bound:.2g})."
    return ""


def _tried(part: nn.Module, call: Call, total: Tensor, count: int) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """What must be equal of a sum over experts, with what is wrong where it is not."""
    hidden, index, weights = call.hidden, call.index, call.weights
    # The expert that most tokens go to.
    parts, one = parts_of(part, call, count), int(index.flatten().mode().values)
    every = torch.arange(count, device=index.device).to(index).expand(len(index), -1)

    def given(index: Tensor, weights: Tensor) -> Tensor:
        return result(part, call, hidden, index, weights)

    yield "gives something else when it is called again", (total, given(index, weights))
    yield "gives something where all weights are zero", (total * 0, given(index, weights * 0))
    yield "is not linear in their weights", (total * TIMES, given(index, weights * TIMES))
    yield "is not the sum of what its experts give", (total, parts.sum(1))
    yield "gives something else for one expert alone", (parts[:, one], given(index, weights * (index == one)))
    yield "depends on more than the weights of all experts", (total, given(every, call.dense(count)))


def mixture_proofs(model: Model, asked: Sequence[str], clean: Run, corrupt: Run) -> Iterator[Finding]:
    """The checks that patch what is asked for of a mixture."""
    if not asked:
        return
    added = [name for name in ("mlp_out", "mixer_out") if name in model.anatomy.components][:1]
    places = [(name, layer) for name in (*MIXTURE, *added, "resid_post") for layer in model.having(name)]
    keep = len(clean.tokens)
    donors = record(model, [clean, corrupt], places, keep=keep)
    donors |= record(model, [clean], places, keep=keep)  # alone, as for heads and neurons
    for component in asked:
        yield own_activations(model, component, clean, donors)
        yield from random_write(model, component, clean, donors[clean])
    # Three layers say what all of them say of one kind of module, and a model has dozens.
    layers = model.having("experts")
    some = sorted({layers[0], layers[len(layers) // 2], layers[-1]})
    yield _same(model, (clean, corrupt), donors, ROUTED, "experts", some)
    for name in added:
        alone = [layer for layer in some if model.layout(layer).experts_alone]
        if alone:
            yield _same(model, (clean, corrupt), donors, ["experts"], name, alone)
        beside = _beside(model, name, clean, corrupt, donors, some)
        yield bounded(f"experts change {name} alone", MIXTURE, beside, ONE_FORWARD[model.dtype])


def _same(
    model: Model,
    runs: tuple[Run, Run],
    donors: Mapping[Run, Recording],
    parts: Sequence[str],
    whole: str,
    layers: Sequence[int],
) -> Finding:
    """Some components of the second run, at all positions of a layer of the first, are another one of it."""
    clean, corrupt = runs
    made = [
        Run(clean.tokens, tuple(edit for one in names for edit in write_all(model, one, corrupt, layer)))
        for names in (parts, [whole])
        for layer in layers
    ]
    name = f"{' and '.join(parts)} = {whole}"
    return bounded(name, MIXTURE, _off(model, made, donors), TWO_FORWARDS[model.dtype])


def _off(model: Model, runs: Sequence[Run], donors: Mapping[Run, Recording]) -> float:
    """How far the first half of the runs is from the other, in shares of the largest logit."""
    one, other = forward(model, runs, donors, keep=len(runs[0].tokens))[0].chunk(2)
    return apart(one, other).max().item() / largest(one)


def _beside(
    model: Model, added: str, clean: Run, corrupt: Run, donors: Mapping[Run, Recording], layers: Sequence[int]
) -> float:
    """What experts of another run change where all that the MLP adds is held as it was."""
    position = len(clean.tokens) // 2
    held = [Edit(Site(added, layer, position), From(clean, position)) for layer in layers]
    patched = [Edit(Site("experts", layer, position), From(corrupt, position)) for layer in layers]
    return _off(model, [Run(clean.tokens, (*held, *patched)), Run(clean.tokens, tuple(held))], donors)
