"""Heads and neurons of a model: how many there are, and whether patching them means what it says.

1. Two short runs show what attention sees in each layer, and what goes into the last projections (`counted`).
2. All of a layer's heads are its attention, all of its neurons its MLP, queries and keys its pattern, pattern and
   values its heads' outputs: patched at all positions, both must give the same logits (`proofs`).
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from causal_tracing.engine.checks.agreement import LENGTH, TOLERANCE
from causal_tracing.engine.checks.findings import Finding, bounded, own_activations, random_write, write_all
from causal_tracing.engine.hooks.attention import SEEN, Asked, attention_by
from causal_tracing.engine.hooks.forward import forward
from causal_tracing.engine.hooks.record import record
from causal_tracing.interventions.edits import Run
from causal_tracing.models.architectures import Anatomy, Layout
from causal_tracing.models.model import Model

# Patched at all positions of a layer, the first ones are the second: what is compared, and whom it speaks for.
SAME = (
    (("q", "k"), ("pattern",)),
    (("pattern", "v"), ("z",)),
    (("z",), ("attn_out",)),
    (("neurons",), ("mlp_out",)),
)


def counted(model: Model, run: Run) -> Anatomy:
    """The anatomy with the numbers of heads and neurons in a layer, and the reasons where there are none."""
    heads, reason = _heads(model, run)
    anatomy = replace(model.anatomy, layout=_located(model, run))
    counts = {"q": heads[0], "pattern": heads[0], "z": heads[0], "k": heads[1], "v": heads[1]}
    if reason:
        for component in SEEN:
            anatomy = anatomy.refuse(component, reason)
    for component, missing in (
        ("z", "it is not known which projection its heads' outputs go into."),
        ("neurons", "it is not known where its MLPs' neurons are; in a mixture of experts each token has others."),
    ):
        width = _width(replace(model, anatomy=anatomy), component, run)
        if component == "neurons":
            counts["neurons"] = width
        if not width or (component == "z" and (not heads[0] or width % heads[0])):
            anatomy = anatomy.refuse(component, missing)
    return replace(anatomy, counts=tuple(counts.items()))


def _heads(model: Model, run: Run) -> tuple[tuple[int, int], str]:
    """How many heads queries have, and keys and values; and the reason where the attention function is not asked."""
    seen: dict[int, tuple[int, int]] = {}

    def look(asked: Asked) -> tuple[Tensor, Any]:
        seen[asked.layer] = asked.query.shape[1], asked.key.shape[1]
        return asked.answer()

    with attention_by(model, look):
        forward(model, [run], {}, keep=1)
    named = getattr(model.config, "num_attention_heads", 0)
    for layer in range(model.num_layers):
        if layer not in seen:
            return (named, named), f"layer {layer} does not attend by transformers' replaceable attention function."
    if len(set(seen.values())) > 1:
        return (named, named), "its layers have different numbers of heads."
    return seen[0], ""


def _located(model: Model, run: Run) -> Layout:
    """The layout with the last projections that the table does not know, by what passes through the middle layer.

    What attention gives goes into `z`; what comes out of `neurons` is what the MLP contributes.
    """
    layout, number = model.anatomy.layout, model.num_layers // 2
    layer, seen = model.layers[number], _Passing()

    def look(asked: Asked) -> tuple[Tensor, Any]:
        output, weights = asked.answer()
        if asked.layer == number:
            seen.attended = output.flatten(2)
        return output, weights

    with ExitStack() as stack:
        for path, part in layer.named_modules():
            stack.callback(part.register_forward_hook(partial(seen.note, path)).remove)
        with attention_by(model, look):
            forward(model, [run], {}, keep=1)
    weights = {path: getattr(part, "weight", None) for path, part in layer.named_modules()}
    projections = [path for path, weight in weights.items() if isinstance(weight, Tensor) and weight.ndim == 2]
    z = next((path for path in projections if _same(seen.inputs.get(path), seen.attended)), None)
    contributed = seen.outputs.get(layout.mlp) if layout.mlp else None
    neurons = next((path for path in projections if _same(seen.outputs.get(path), contributed)), None)
    return replace(layout, z=layout.z or z, neurons=layout.neurons or neurons)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether both are there, and hold the same numbers."""
    if one is None or other is None or one.numel() != other.numel():
        return False
    return torch.equal(one.flatten(), other.flatten())


@dataclass(slots=True, eq=False)
class _Passing:
    """What passes through the modules of a layer, by their paths, and what its attention function gives."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    attended: Tensor | None = None

    def note(self, path: str, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args and isinstance(args[0], Tensor):
            self.inputs[path] = args[0]
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor):
            self.outputs[path] = first.clone()  # falcon adds to its MLP's output in place


def _width(model: Model, component: str, run: Run) -> int:
    """How many numbers a token has there, in every layer; 0 where that cannot be looked at."""
    if not getattr(model.anatomy.layout, component):
        return 0
    places = [(component, layer) for layer in range(model.num_layers)]
    try:
        found = record(model, [run], places)[run].activations
    except (AttributeError, KeyError, RuntimeError, TypeError):  # layers without that module
        return 0
    widths = {value.shape[-1] for value in found.values()}
    return widths.pop() if len(widths) == 1 and len(found) == len(places) else 0


def proofs(model: Model, mediators: Sequence[str], clean: Run, corrupt: Run) -> Iterator[Finding]:
    """The checks that patch heads and neurons, for those that are asked for."""
    if not mediators:
        return
    together = {name for both in SAME for side in both for name in side}
    offered = [name for name in (*model.anatomy.components, *model.anatomy.mediators) if name in together]
    places = [(name, layer) for name in {*offered, "resid_post"} for layer in range(model.num_layers)]
    donors = record(model, [clean, corrupt], places, keep=LENGTH)
    donors |= record(model, [clean], places, keep=LENGTH)  # alone: batches of other sizes differ in the last bits
    bound, size = TOLERANCE[model.dtype], donors[corrupt].logits.abs().max().item()
    for component in mediators:
        yield own_activations(model, component, clean, donors)
        yield from random_write(model, component, clean, donors[clean], bound)
    for parts, whole in SAME:
        if {*parts, *whole} <= set(offered) and {*parts, *whole} & set(mediators):
            runs = [
                Run(clean.tokens, tuple(edit for name in names for edit in write_all(model, name, corrupt, layer)))
                for names in (parts, whole)
                for layer in sorted({0, model.num_layers // 2, model.num_layers - 1})
            ]
            one, other = forward(model, runs, donors, keep=LENGTH)[0].chunk(2)
            apart = (one - other).abs().max().item() / size
            speaks_for = tuple(name for name in (*parts, *whole) if name in mediators)
            yield bounded(f"{' and '.join(parts)} = {whole[0]}", speaks_for, apart, bound)
