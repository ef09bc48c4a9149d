"""Paths to the logits: what of a patched site reaches them, while what comes behind it is held as in the unedited run.

1. The site is patched as ever.
2. At the token that is read, attention of every later layer is overwritten with what it gave in the base run, and so
   are the later MLPs ("mlps_frozen"), or not ("mlps_live"). A part that is patched, or holds what is, stays live.
3. The final norm is live, or divides by what it divided by in the base run (`norm`).

So what is patched at other tokens reaches nothing, but for keys and values, which that token reads in their own layer.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

from causal_tracing.errors import ComponentNotOffered, InvalidOption
from causal_tracing.interventions.edits import Edit, From, Run
from causal_tracing.interventions.sites import FINAL_SCALE, IN_ATTENTION, MIXTURE, ORDER, Site, first_behind
from causal_tracing.models.model import Model
from causal_tracing.patching.options.checks import asked_paths
from causal_tracing.prompts.pairs import TokenPair
from causal_tracing.results.arms import DIRECT_ARMS, Arm

# What stays live in a layer where one of these is patched: it is a part of the site, or the site of it.
HOLDING = {
    "attn_out": (*IN_ATTENTION, "attn_out"),
    "mlp_out": ("neurons", *MIXTURE, "mlp_out"),
    "mixer_out": (*MIXTURE, "mixer_out"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """How direct paths are measured on a model: which of `DIRECT`, what is held of each layer, and the final norm."""

    asked: tuple[str, ...]
    gathers: str  # what brings something from other tokens: attn_out, or mixer_out of layers with one part
    having: Mapping[str, Sequence[int]]  # the layers that have each part that is held
    num_layers: int
    norm: str

    @property
    def parts(self) -> tuple[str, ...]:
        """All that is held in any of the arms."""
        held = dict.fromkeys(part for direct in self.asked for part in self._held(direct))
        return (*held, *([FINAL_SCALE] if self.norm == "frozen" else []))

    def arms(self, directions: Sequence[str]) -> tuple[Arm, ...]:
        """The arms that measure them in these directions."""
        return tuple(DIRECT_ARMS[direct, name] for direct in self.asked for name in directions)

    def behind(self, direct: str, base: Run, patched: Sequence[Edit]) -> Iterator[Edit]:
        """What is held behind these edits of one world, at the token that is read."""
        last = len(base.tokens) - 1
        places = {(edit.site.component, edit.site.layer) for edit in patched}
        # Of several sites (a window, heads of a set) what comes behind the first is held, but for what they are in.
        component, layer = min(places, key=lambda place: (place[1], ORDER.index(place[0])))
        given = {(edit.site.component, edit.site.layer) for edit in base.edits if edit.site.position == last}
        for part in self._held(direct):
            for later in (n for n in self.having[part] if n >= first_behind(component, layer, part)):
                live = any((inside, later) in places for inside in HOLDING[part])
                if not live and (part, later) not in given:  # what the base run writes there itself is held already
                    yield Edit(Site(part, later, last), From(base, last))
        if self.norm == "frozen":
            yield Edit(Site(FINAL_SCALE, self.num_layers - 1, last), From(base, last))

    def _held(self, direct: str) -> tuple[str, ...]:
        """The components that are overwritten behind the site."""
        mlps = direct == "mlps_frozen" and self.gathers == "attn_out"
        return (self.gathers, "mlp_out") if mlps else (self.gathers,)


def plan_paths(model: Model, pairs: Sequence[TokenPair], direct: bool | Sequence[str], norm: str) -> Paths | None:
    """What the options ask for on this model, for these pairs; None where they ask for nothing.

    Raises InvalidOption for answers of several tokens, ComponentNotOffered where it cannot be held what is behind.
    """
    asked = asked_paths(direct)
    if not asked:
        return None
    check_one_token(pairs, "direct=")
    check_layers(model, asked, "direct=")
    having = {part: model.having(part) for part in HOLDING}
    return Paths(asked=asked, gathers=model.rules.gathers[0], having=having, num_layers=model.num_layers, norm=norm)


def check_one_token(pairs: Sequence[TokenPair], option: str) -> None:
    """Raises InvalidOption where what comes behind a prompt is read too."""
    several = next((pair.id for pair in pairs if pair.several_tokens), None)
    if several is not None:
        raise InvalidOption(
            f"{option} follows what reaches the logits behind the prompt, and pair {several!r} has an answer or a foil "
            f"of several tokens, which are read further on too. Use such of one token, or leave {option} out."
        )


def check_layers(model: Model, asked: Sequence[str], option: str) -> None:
    """Raises ComponentNotOffered where the layers have more, or less, than what would be held for this option."""
    refuse_it = partial(refuse, model, option)
    if not model.rules.gathers:
        refuse_it(more_than_held(model))
    if model.rules.gathers[0] == "mixer_out" and "mlps_live" in asked:
        refuse_it('its layers have one part each, so that no MLPs can be left live. Use direct=["mlps_frozen"].')
    for layer in model.active if model.backend is None else ():  # of its own backend no layouts are known
        order = [name for each in model.layout(layer).sums for name, _ in each.parts]
        parallel = len(model.layout(layer).sums) == 1
        # `first_behind` counts in ORDER, where attention comes first: side by side that does not matter.
        if order == ["mlp_out", "attn_out"] and not parallel:
            refuse_it(f"in layer {layer} the MLP comes before attention, and it is not known what is behind it.")


def more_than_held(model: Model) -> str:
    """What a model's layers do that could not be held."""
    layers = model.active if model.backend is None and model.anatomy.layouts else ()
    if len(layers) < len(model.anatomy.layouts):
        return "a prompt of text alone does not pass some of its layers."
    open_ = next((layer for layer in layers if not model.layout(layer).sums), None)
    if open_ is None:
        return "it is not known that attention alone brings tokens something from others."
    return f"layer {open_} adds more to the stream than the attention and the MLP that could be held."


def refuse(model: Model, option: str, reason: str) -> NoReturn:
    """Raises ComponentNotOffered: the option is not offered on this model."""
    raise ComponentNotOffered(f"{option} is not offered on this model ({model.anatomy.family}): {reason}")
