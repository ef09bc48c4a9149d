"""What mixes tokens: told by writing at one token and looking at the later ones of the same layer.

Everything that says that an effect is known without running it rests on this. All layers are asked in one run: each
gets the stream of the first row again, so that what is written in one layer is not seen in the next.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from causal_tracing.engine.backend import Place
from causal_tracing.engine.checks.at_a_token import WRITTEN, differ, noise, reached
from causal_tracing.engine.checks.contributions import Way
from causal_tracing.engine.checks.layers import Layers
from causal_tracing.engine.checks.logits import apart, largest
from causal_tracing.engine.checks.texts import as_batch, run_text
from causal_tracing.engine.hooks.forward import forward, watched
from causal_tracing.engine.hooks.modules import as_before, by_token_of, on_input, on_output
from causal_tracing.interventions.edits import Run
from causal_tracing.models.anatomy import Anatomy
from causal_tracing.models.at_rest import at_rest
from causal_tracing.models.model import Model

SEED = 2
# Read by attention at other tokens: nothing is concluded of them.
READ_BY_OTHERS = ("resid_pre", "k", "v")


def mixing_parts(
    network: nn.Module, layers: Layers, tokens: Sequence[int], name: str, ways: Sequence[Way], bound: float
) -> set[str]:
    """The modules that mix tokens in any layer, among those that add to the stream: by their paths inside a layer.

    Row 0 is the text. In row n + 1 a token of the stream that the nth sum of a layer starts from is changed, where its
    modules read it: so that a later one is not taken for what it only reads of an earlier one.
    """
    rows = 1 + max((len(way) for way in ways), default=0)
    if rows == 1:
        return set()
    found: set[str] = set()
    generator = torch.Generator().manual_seed(SEED)

    def change(changed: Sequence[int], afresh: bool, value: Tensor) -> Tensor:
        shaped = by_token_of(value, rows, layers.lanes)
        # Of row 0 again at each layer, so that a change made in one layer is not told of the next.
        new = shaped[:1].repeat(rows, 1, 1) if afresh else shaped.clone()
        new[[number + 1 for number in changed], WRITTEN] += noise(shaped[0], generator)
        return as_before(new, value, layers.lanes)

    def judge(path: str, number: int, value: Tensor) -> Tensor:
        shaped = by_token_of(value, rows, layers.lanes)
        # In any layer is enough: what is concluded of a component is concluded in all of them.
        if reached(shaped[0], shaped[number + 1], bound):
            found.add(path)
        return value

    with at_rest(network), ExitStack() as stack:
        for layer, way in zip(layers.members(network), ways, strict=True):
            at_start = [number for number, step in enumerate(way) if step.base == ("", False)]
            stack.enter_context(on_input(layer, partial(change, at_start, True)))
            for number, step in enumerate(way):
                path, is_output = step.base
                if path:
                    place = on_output if is_output else on_input
                    stack.enter_context(place(layer.get_submodule(path), partial(change, [number], False)))
                for part, _ in step.parts:
                    stack.enter_context(on_output(layer.get_submodule(part), partial(judge, part, number)))
        run_text(network, as_batch(network, tokens, rows), name)
    return found


def in_turn(
    network: nn.Module, layers: Layers, tokens: Sequence[int], name: str, ways: Sequence[Way], bound: float
) -> set[int]:
    """The layers in which a module reads what another gives that stands in the same sum: they are not side by side.

    Row 1 of each layer is row 0 but for what the first such module gives at one token.
    """
    found: set[int] = set()
    generator = torch.Generator().manual_seed(SEED)
    first: dict[int, str] = {}

    def begin(value: Tensor) -> Tensor:
        shaped = by_token_of(value, 2, layers.lanes)
        return as_before(shaped[:1].repeat(2, 1, 1), value, layers.lanes)

    def passed(number: int, path: str, value: Tensor) -> Tensor:
        shaped = by_token_of(value, 2, layers.lanes)
        if first.setdefault(number, path) != path:
            if differ(shaped[0], shaped[1], shaped[0], bound):
                found.add(number)
            return value
        changed = shaped.clone()
        # At one token: what is the same at all of them some norms take away.
        changed[1, WRITTEN] += noise(shaped[0], generator)
        return as_before(changed, value, layers.lanes)

    together = {number: step for number, way in enumerate(ways) for step in way if len(step.parts) > 1}
    if not together:
        return found
    members = layers.members(network)
    with at_rest(network), ExitStack() as stack:
        for number, step in together.items():
            stack.enter_context(on_input(members[number], begin))
            for path, _ in step.parts:
                see = partial(passed, number, path)
                stack.enter_context(on_output(members[number].get_submodule(path), see))
        run_text(network, as_batch(network, tokens, rows=2), name)
    return found


def mixing(model: Model, components: Sequence[str], run: Run, bound: float) -> tuple[str, ...]:
    """Those of these components whose edits are seen at later tokens behind the same layer, in any layer.

    The stream before a layer, and keys and values, are read by other tokens: they are among them without being tried.
    All of them are where something behind the last layer mixes tokens, such as another decoder: there an edit in the
    last layer is seen at later tokens whatever it is.
    """
    asked = [name for name in components if name not in (*READ_BY_OTHERS, "resid_post")]
    found = {name for name in components if name in READ_BY_OTHERS}
    generator = torch.Generator().manual_seed(SEED)
    wanted = {(name, layer) for name in ("resid_pre", *asked, "resid_post") for layer in model.having(name)}
    behind = 1 + len(asked)  # the row that is written behind the last layer

    def watch(place: Place, value: Tensor) -> Tensor:
        component, layer = place
        changed = value.clone()
        if component == "resid_pre":
            changed[1:] = value[0]
        elif component == "resid_post":
            found.update(name for row, name in enumerate(asked, 1) if reached(value[0], value[row], bound))
            # Something behind the layers may mix tokens too (another decoder): it would be seen in the logits alone.
            if layer == model.active[-1]:
                changed[behind] = value[0]
                changed[behind, WRITTEN] += noise(value[0], generator)
        else:
            changed[1 + asked.index(component), WRITTEN] += noise(value[0], generator)
        return changed

    with model.at_rest():
        logits = watched(model, [run] * (behind + 1), {}, wanted, watch, keep=len(run.tokens))
    later = slice(WRITTEN + 1, None)
    if not apart(logits[0, later], logits[behind, later]).max().item() <= bound * largest(logits[0]):
        return tuple(components)
    return tuple(name for name in components if name in found)


def tokenwise(model: Model, components: Sequence[str], clean: Run, other: Run, bound: float) -> tuple[str, ...]:
    """Those of these components that in layer 0 are the same for the same token at the same place, whatever is before.

    The two runs differ in every token but the first; a third has the tokens of one and the other in turn.
    """
    components = [name for name in components if model.anatomy.has(name, 0)]
    if not components:
        return ()
    turns = Run(tuple(pair[place % 2] for place, pair in enumerate(zip(clean.tokens, other.tokens, strict=True))))
    # At these places the tokens are equal and what stands before them is not.
    same = range(2, len(turns.tokens), 2)
    _, seen = forward(model, [clean, turns], {}, keep=1, wanted=[(name, 0) for name in components])
    return tuple(
        name for name in components if not differ(seen[name, 0][0][same], seen[name, 0][1][same], seen[name, 0], bound)
    )


def gathering(anatomy: Anatomy, active: Sequence[int]) -> tuple[str, ...]:
    """The components through which alone a token gets anything from others in a layer; none where that is not known.

    In each layer attention's part, or the only one, must be all that mixes: nothing else may be added, and what is
    written at the components behind it must stay at its token.
    """
    behind = {"attn_out", "resid_mid", "neurons", "mlp_out", "mixer_out"} & {*anatomy.components, *anatomy.mediators}
    # Neurons are inside the MLP: that they mix says nothing that mlp_out does not.
    mixes, passed = behind & ({*anatomy.mixing} - {"neurons"}), len(active) == len(anatomy.layouts)
    if mixes or not passed or not all(layout.sums for layout in anatomy.layouts):
        return ()
    return tuple(name for name in ("attn_out", "mixer_out") if name in anatomy.components)
