"""Heads and neurons of a model: how many there are, and whether patching them means what it says.

1. Two short runs show what attention sees in each layer, and what goes into the last projections (`counted`).
2. All of a layer's heads are its attention, all of its neurons its MLP, queries and keys its pattern, pattern and
   values its heads' outputs: patched at all positions, both must give the same logits (`proofs`). Where a gate stands
   between heads and the last projection, what goes into this is no head's output, and the rest is as it is called.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from causal_tracing.engine.checks.bounds import PATTERN, TWO_FORWARDS
from causal_tracing.engine.checks.experts import Calls, experts_located
from causal_tracing.engine.checks.findings import Finding, bounded, own_activations, random_write, write_all
from causal_tracing.engine.checks.layouts import ATTENTION_WORDS, named
from causal_tracing.engine.checks.logits import apart, largest
from causal_tracing.engine.hooks.attention import SEEN, Asked, attention_by
from causal_tracing.engine.hooks.forward import forward
from causal_tracing.engine.hooks.modules import bears_hooks, first_tensor, stream_in
from causal_tracing.engine.hooks.record import record
from causal_tracing.errors import CannotPack
from causal_tracing.interventions.edits import Run
from causal_tracing.models.anatomy import Anatomy, Layout
from causal_tracing.models.model import Model

# Patched at all positions of a layer, the first ones are the second: what is compared, and whom it speaks for.
SAME = (
    (("q", "k"), ("pattern",)),
    (("pattern", "v"), ("z",)),
    (("z",), ("attn_out",)),
    (("neurons",), ("mlp_out",)),
)


def counted(model: Model, run: Run) -> Anatomy:
    """The anatomy with the numbers of heads and neurons in each layer, and the reasons where there are none."""
    passing = _passing(model, run)
    heads, reason = _heads(model, passing)
    anatomy = replace(model.anatomy, layouts=_located(model, passing))
    calls = [(each.calls, each.outputs.get(each.layout.mlp or "")) for each in passing]
    anatomy = experts_located(replace(model, anatomy=anatomy), calls)
    unread = next(filter(None, (each.unread for each in passing)), "")
    for component in SEEN if reason else ("pattern",) if unread else ():
        anatomy = anatomy.refuse(component, reason or unread)
    queries, shared = [each[0] for each in heads], [each[1] for each in heads]
    each = {"q": queries, "pattern": queries, "z": queries, "k": shared, "v": shared, "neurons": [0] * len(heads)}
    for component, missing in (("z", _no_z(model, passing)), ("neurons", _no_neurons(anatomy, model.active))):
        widths = {} if missing else _widths(replace(model, anatomy=anatomy), component, run)
        if component == "neurons":
            each["neurons"] = [widths.get(layer, 0) for layer in range(len(heads))]
        missing = missing or _not_cut(each[component], widths, known=component == "neurons" or not reason)
        anatomy = anatomy.refuse(component, missing) if missing else anatomy
    counts = tuple((name, max(numbers)) for name, numbers in each.items())
    uneven = tuple((name, tuple(numbers)) for name, numbers in each.items() if len({*numbers} - {0}) > 1)
    return replace(anatomy, counts=(*counts, *anatomy.counts), uneven=uneven)


def _not_cut(numbers: Sequence[int], widths: Mapping[int, int], *, known: bool) -> str:
    """Why what goes into a projection cannot be cut into so many parts a layer; "" where it can be.

    Where the number of heads is not `known` but read in a configuration, layers of different widths speak against it.
    """
    if not widths:
        return "what goes into its last projection could not be read."
    wrong = next((layer for layer, width in widths.items() if not numbers[layer] or width % numbers[layer]), None)
    if wrong is not None:
        return f"in layer {wrong} what goes into its last projection is no whole number of heads."
    return "" if known or len({*widths.values()}) == 1 else "its layers have different numbers of them."


def _layouts(model: Model) -> Iterator[tuple[int, Layout]]:
    yield from enumerate(model.anatomy.layouts)


def _located(model: Model, passing: Sequence["_Passing"]) -> tuple[Layout, ...]:
    """Each layer's last projections. Where some layers ask for attention, the others mix otherwise: they have no z."""
    found = [passing[number].located(layout) for number, layout in _layouts(model)]
    attending = _attending(model, passing)
    if not attending:
        return tuple(found)
    return tuple(each if n in attending else replace(each, z=None, attends=False) for n, each in enumerate(found))


def _attending(model: Model, passing: Sequence["_Passing"]) -> list[int]:
    """The layers that ask transformers' replaceable function for their attention."""
    return [layer for layer in model.active if passing[layer].asked]


def _heads(model: Model, passing: Sequence["_Passing"]) -> tuple[list[tuple[int, int]], str]:
    """How many heads each layer's queries have, and keys and values; and why, where attention does not show them."""
    # Where the attention function is not asked, nothing else says how many heads a layer has.
    named = getattr(model.config, "num_attention_heads", 0)
    said = [(named, named) if type(named) is int else (0, 0)] * len(passing)
    attending = _attending(model, passing)
    if not attending:
        first = model.active[0]
        return said, f"layer {first} does not attend by transformers' replaceable attention function."
    again = next((layer for layer in attending if len(passing[layer].asked) > 1), None)
    if again is not None:
        return said, f"layer {again} attends {len(passing[again].asked)} times in one run."
    return [each.asked[0] if each.asked else (0, 0) for each in passing], ""


def _no_z(model: Model, passing: Sequence["_Passing"]) -> str:
    """Why heads' outputs are not offered; "" where nothing speaks against them."""
    attending = _attending(model, passing)
    for layer in attending or model.active:
        if not attending and not named(model.layout(layer).attn or "", ATTENTION_WORDS):
            return f"layer {layer} has no attention heads that can be told."
        if not passing[layer].located(model.layout(layer)).z:
            return f"in layer {layer} it is not known which projection its heads' outputs go into."
    return ""


def _no_neurons(anatomy: Anatomy, active: Sequence[int]) -> str:
    """Why neurons are not offered; "" where nothing speaks against them."""
    for layer in active:
        layout = anatomy.layouts[layer]
        if not anatomy.has("neurons", layer):
            continue
        if not layout.mlp:
            return f"in layer {layer} no MLP was found."
        if not layout.neurons:
            return (
                f"in layer {layer} no single projection gives what the MLP ({layout.mlp}) adds; in a mixture of "
                "experts each token has neurons of its own."
            )
    return ""


def _passing(model: Model, run: Run) -> list["_Passing"]:
    """What one run brings past the parts of each layer."""
    seen = [_Passing(model.layer(number), layout) for number, layout in _layouts(model)]

    def look(asked: Asked) -> tuple[Tensor, Any]:
        output, weights = asked.answer()
        seen[asked.layer].asked.append((asked.query.shape[1], asked.key.shape[1]))
        seen[asked.layer].unread = _unread(asked)
        seen[asked.layer].attended = output.flatten(2)
        return output, weights

    with ExitStack() as stack:
        for one in seen:
            for path, part in filter(lambda each: bears_hooks(each[1]), one.layer.named_modules()):
                hook = part.register_forward_hook(partial(one.note, path), with_kwargs=True)
                stack.callback(hook.remove)
        with attention_by(model, look):
            forward(model, [run], {}, keep=1)
    return seen


@dataclass(slots=True, eq=False)
class _Passing:
    """What goes into a layer's modules, what its matrices and parts give, and what its attention function gives.

    `asked` holds of each call of that function how many heads there were of queries, and of keys and values; `unread`
    why its pattern cannot be made.
    """

    layer: nn.Module
    layout: Layout
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    attended: Tensor | None = None
    unread: str = ""
    asked: list[tuple[int, int]] = field(default_factory=list)
    calls: Calls = field(default_factory=Calls)

    def note(self, path: str, part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.calls.note(path, args, kwargs, output)
        given, first = stream_in(args, kwargs), first_tensor(output)
        if given is not None:
            self.inputs[path] = given
        if path not in (self.layout.attn, self.layout.mlp) and not _is_matrix(part):
            return
        if first is not None:
            self.outputs[path] = first.clone()  # falcon adds to its MLP's output in place

    def located(self, layout: Layout) -> Layout:
        """The layout with its last projections: attention's goes into `z`, `neurons` gives what the MLP adds."""
        # By the numbers that go in, which are what attention gave: no name is asked.
        z = next((path for path in self._matrices(layout.attn) if _same(self.inputs.get(path), self.attended)), None)
        # What wraps a matrix may do more with the same numbers, as LoRA does.
        while z and "." in z and _same(self.inputs.get(z.rpartition(".")[0]), self.attended):
            z = z.rpartition(".")[0]
        return replace(layout, z=z or self._last(layout.attn), neurons=self._last(layout.mlp))

    def _matrices(self, before: str | None = None) -> list[str]:
        """The matrices that were done when a part was (None: all), the last one first."""
        # A module's output is noted when it is done, so that the order is that of the computation.
        done = [*self.outputs]
        until = done[: done.index(before) + 1] if before in self.outputs else done
        return [path for path in reversed(until) if _is_matrix(self.layer.get_submodule(path))]

    def _last(self, part: str | None) -> str | None:
        """The matrix whose product is what a part adds, or what the part makes it of where it is a norm."""
        if part is None:
            return None
        added = [self.outputs.get(part)]
        if not any(self.layer.get_submodule(part).children()):
            added.append(self.inputs.get(part))
        matrices = self._matrices(part)
        return next((path for path in matrices if any(_same(self.outputs.get(path), one) for one in added)), None)


def _unread(asked: Asked) -> str:
    """Why a layer's pattern cannot be made by its eager attention; "" where it can be."""
    try:
        asked.pattern()
    except CannotPack as error:
        return str(error)
    # Whatever a model's own function raises when it is called beside the one in use.
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        return f"in layer {asked.layer} eager attention fails with {type(error).__name__}: {error}."
    return ""


def _is_matrix(part: nn.Module) -> bool:
    weight = getattr(part, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether both are there, and hold the same numbers."""
    if one is None or other is None or one.numel() != other.numel():
        return False
    return torch.equal(one.flatten(), other.flatten())


def _widths(model: Model, component: str, run: Run) -> dict[int, int]:
    """How many numbers a token has there, in each layer that has it; nothing where that cannot be looked at."""
    places = [(component, layer) for layer in model.having(component)]
    try:
        found = record(model, [run], places)[run].activations
    except (AttributeError, KeyError, RuntimeError, TypeError):  # layers without that module
        return {}
    return {layer: value.shape[-1] for (_, layer), value in found.items()}


def proofs(model: Model, mediators: Sequence[str], clean: Run, corrupt: Run) -> Iterator[Finding]:
    """The checks that patch heads and neurons, for those that are asked for."""
    if not mediators:
        return
    # Of what is not asked for only what it is held against: another component may not be passed once in each run.
    together = {name for parts, whole in SAME if {*parts, *whole} & {*mediators} for name in (*parts, *whole)}
    offered = [
        name for name in (*model.anatomy.components, *model.anatomy.mediators) if name in {*together, *mediators}
    ]
    places = [(name, layer) for name in {*offered, "resid_post"} for layer in model.having(name)]
    keep = len(clean.tokens)
    donors = record(model, [clean, corrupt], places, keep=keep)
    donors |= record(model, [clean], places, keep=keep)  # alone: batches of other sizes differ in the last bits
    size = largest(donors[corrupt].logits)
    for component in mediators:
        yield own_activations(model, component, clean, donors)
        yield from random_write(model, component, clean, donors[clean])
    for parts, whole in SAME:
        if {*parts, *whole} <= {*offered} and {*parts, *whole} & {*mediators}:
            having = [layer for layer in model.active if all(model.anatomy.has(n, layer) for n in (*parts, *whole))]
            runs = [
                Run(clean.tokens, tuple(edit for name in names for edit in write_all(model, name, corrupt, layer)))
                for names in (parts, whole)
                for layer in sorted({having[0], having[len(having) // 2], having[-1]})
            ]
            one, other = forward(model, runs, donors, keep=keep)[0].chunk(2)
            off = apart(one, other).max().item() / size
            bound = (PATTERN if "pattern" in (*parts, *whole) else TWO_FORWARDS)[model.dtype]
            blamed = (*parts, *whole)
            if "pattern" in blamed and not off <= bound:
                blamed = _blamed(model, clean, parts, whole, bound)
            if speaks_for := tuple(name for name in blamed if name in mediators):
                yield bounded(f"{' and '.join(parts)} = {whole[0]}", speaks_for, off, bound)


def _blamed(model: Model, run: Run, parts: Sequence[str], whole: Sequence[str], bound: float) -> tuple[str, ...]:
    """Who is not what it is called, where the law of patterns fails for these."""
    if _mixed_by_pattern(model, run) <= bound:
        # A gate stands behind the heads: patterns and values are what they are called.
        return tuple(whole) if "z" in whole else (*parts, *whole)
    # Attention does more than mix values by its pattern (sinks that scale what it gives): the rest stands by itself.
    return ("pattern",) if "z" not in whole or _from_attention(model, run) else ("pattern", "z")


def _from_attention(model: Model, run: Run) -> bool:
    """Whether what goes into the last projection is what attention gives, in every layer."""
    given: dict[int, Tensor] = {}

    def look(asked: Asked) -> tuple[Tensor, Any]:
        output, weights = asked.answer()
        given[asked.layer] = output.clone()
        return output, weights

    with attention_by(model, look):
        found = record(model, [run], [("z", layer) for layer in model.having("z")])[run].activations
    return all(_same(value, given.get(layer)) for (_, layer), value in found.items())


def _mixed_by_pattern(model: Model, run: Run) -> float:
    """How far patterns times values are from what attention gives in any layer, in shares of its largest number."""
    apart_by = [0.0]

    def look(asked: Asked) -> tuple[Tensor, Any]:
        output, weights = asked.answer()
        values = asked.value.repeat_interleave(asked.query.shape[1] // asked.value.shape[1], 1)
        made = (asked.pattern() @ values).transpose(1, 2)
        apart_by.append(((made - output).abs().max() / output.abs().max()).item())
        return output, weights

    with attention_by(model, look):
        forward(model, [run], {}, keep=1)
    # NaN is as far apart as can be: max() alone would pass it over.
    return max(apart_by, key=lambda each: math.inf if math.isnan(each) else each)
