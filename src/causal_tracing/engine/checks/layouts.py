"""From the ways through the layers to what is offered of them: which module is attention, MLP, or a layer's only part.

Attention is the part that mixes tokens, the MLP the one that does not. Where that does not tell them apart (parts that
do nothing, or three of them), their names may; else what cannot be told is not offered.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from causal_tracing.engine.checks.contributions import Explained, Step, Way
from causal_tracing.models.anatomy import Layout, Sum

ATTENTION_WORDS = ("attn", "attention")
NO_MODULES = "no modules were found whose outputs add up to what its layers add."
MLP_WORDS = ("mlp", "ffn", "feed", "moe", "expert", "fc", "dense_4h")


def layout_of(found: Explained, mixing: Collection[str]) -> Layout:
    """The parts of one layer. `mixing` are the modules that mix tokens, in any layer."""
    parts = [(path, scale) for step in found.way for path, scale in step.parts]
    if found.whole and len(parts) == 1:
        path, scale = parts[0]
        # A layer of one part is attention or an MLP by what it does; mixer_out is it in either case.
        attn, mlp = (path, None) if path in mixing else (None, path)
        sums = _sums(found, {path: "mixer_out"})
        return Layout(mixer=path, attn=attn, mlp=mlp, attn_scale=scale, mlp_scale=scale, sums=sums)
    attn, mlp = _told_apart(parts, mixing)
    scales = dict(parts)
    layout = Layout(attn=attn, mlp=mlp, attn_scale=scales[attn] if attn else 1.0, mlp_scale=scales[mlp] if mlp else 1.0)
    layout = replace(layout, mlp_mixes=mlp in mixing)
    # An MLP that mixes tokens hands something on that no rule of `interventions.known` counts with.
    if attn and mlp and mlp not in mixing and not found.in_turn:
        layout = replace(layout, sums=_sums(found, {attn: "attn_out", mlp: "mlp_out"}))
    return _with_middle(layout, found.way)


def in_a_model(layouts: Sequence[Layout], active: Sequence[int]) -> tuple[Layout, ...]:
    """The layouts by the names of the model: a layer of one part, where others have two, is attention or an MLP."""
    if all(layouts[number].mixer for number in active):
        return tuple(layouts)
    return tuple(replace(each, mixer=None, sums=_named(each)) if each.mixer else each for each in layouts)


def _named(layout: Layout) -> tuple[Sum, ...]:
    """The sums of a layer of one part, which is called what it does."""
    name = "attn_out" if layout.attn else "mlp_out"
    return tuple(replace(each, parts=tuple((name, scale) for _, scale in each.parts)) for each in layout.sums)


def _sums(found: Explained, names: Mapping[str, str]) -> tuple[Sum, ...]:
    """How a layer adds up, by its parts' names; nothing where it adds anything else."""
    if not found.whole or any(path not in names for step in found.way for path, _ in step.parts):
        return ()
    sums, base = [], ("", False)
    for step in found.way:
        parts = tuple((names[path], scale) for path, scale in step.parts)
        sums.append(Sum(gain=step.gain, parts=parts, plain=step.base == base and not step.normed))
        base = (step.reader or "", False)
    return tuple(sums)


def _told_apart(parts: Sequence[tuple[str, float]], mixing: Collection[str]) -> tuple[str | None, str | None]:
    """Attention's path and the MLP's; None for what is not there, or cannot be told."""
    mix = [path for path, _ in parts if path in mixing]
    still = [path for path, _ in parts if path not in mixing]
    if not mix and len(still) == 2:  # two parts that do nothing: their order is all that is known
        return still[0], still[1]
    attentions = mix if len(mix) == 1 else [path for path in mix if named(path, ATTENTION_WORDS)]
    candidates = still or [path for path in mix if path not in attentions]  # a convolution after an MLP mixes
    mlps = candidates if len(still) == 1 else [path for path in candidates if named(path, MLP_WORDS)]
    return (attentions[0] if len(attentions) == 1 else None), (mlps[0] if len(mlps) == 1 else None)


def named(path: str, words: Sequence[str]) -> bool:
    """Whether a module's path holds one of these words."""
    return any(word in path.lower() for word in words)


def _with_middle(layout: Layout, way: Way) -> Layout:
    """The layout with the stream that the MLP is added to, where it can be read and written between the two."""
    last = next((step for step in way if layout.mlp in dict(step.parts)), None)
    # In parallel layers both read the layer's input: there is nothing between.
    if last is None or not last.base[0] or _order(way, layout.attn) > _order(way, layout.mlp):
        return layout
    path, is_output = last.base
    alone = last.reader is None and len(last.parts) == 1  # the layer's output can be added up anew
    return replace(layout, mid=path, mid_out=is_output, gain=last.gain) if is_output or alone else layout


def _order(way: Sequence[Step], path: str | None) -> int:
    return next((number for number, step in enumerate(way) if path in dict(step.parts)), -1)


class Refusal(NamedTuple):
    """A component that is not offered, the reason, and the layer that speaks against it, where it is one."""

    component: str
    reason: str
    layer: int | None = None


def refusals(layouts: Mapping[int, Layout], found: Mapping[int, Explained]) -> Iterator[Refusal]:
    """Each component that is not offered; both are of the layers that a text passes, by their numbers.

    Where a layer has one part alone, and that is all that it adds, it lacks the other: that speaks against neither.
    """
    single = bool(layouts) and all(layout.mixer for layout in layouts.values())
    if not single:
        yield Refusal("mixer_out", "its layers have more than one part.")
    for component, path, like in (("attn_out", "attn", "attention's"), ("mlp_out", "mlp", "an MLP's")):
        having = {n: layout for n, layout in layouts.items() if component not in layout.lacks}
        missing = next((n for n, layout in having.items() if not getattr(layout, path)), None)
        if single:
            yield Refusal(component, "its layers have one part each: mixer_out is what it adds.")
        elif missing is not None:
            yield _missing(component, missing, found, like)
    two = {n: layout for n, layout in layouts.items() if "resid_mid" not in layout.lacks}
    if single or not two:
        yield Refusal("resid_mid", "its layers have one part each, with nothing between.")
    elif not all(layout.mid for layout in two.values()):
        yield _no_middle(two, [found[n] for n in two])


def _missing(component: str, layer: int, found: Mapping[int, Explained], like: str) -> Refusal:
    if not any(each.way for each in found.values()):
        return Refusal(component, NO_MODULES)
    first = found[layer]
    beside = [path for step in first.way for path, _ in step.parts]
    told = f"; what it adds comes from {' and '.join(beside)}" if first.whole else ""
    reason = f"in layer {layer} no module was found whose output alone is added as {like} is{told}."
    return Refusal(component, reason, layer)


def _no_middle(layouts: Mapping[int, Layout], found: Sequence[Explained]) -> Refusal:
    if any(each.in_turn for each in found):
        return Refusal("resid_mid", "no module is given the stream between its attention and MLP as it is.")
    if all(len(each.way) == 1 and each.whole for each in found):
        return Refusal("resid_mid", "its attention and MLP read the same stream (parallel layers).")
    if not any(each.way for each in found):
        return Refusal("resid_mid", NO_MODULES)
    layer = next(n for n, layout in layouts.items() if not layout.mid)
    reason = f"in layer {layer} the stream between attention and MLP cannot be read and written."
    return Refusal("resid_mid", reason, layer)
