"""Sites by name, as texts: `z 23.4 @ last` is head 4 of layer 23 by its output at the last token.

    COMPONENT LAYERS[.PART] @ TOKENS        resid_post 0-9 @ subject        neurons 12.1035 @ 3        mlp_out 4 @ all

LAYERS are one or a range, PART is one head or neuron of each of them, TOKENS a position, a role, a span, `subject` or
`all`; of several tokens all are patched together.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from causal_tracing import validation
from causal_tracing.errors import InvalidOption, InvalidPair, nearest
from causal_tracing.interventions.edits import Edit, From, Run
from causal_tracing.interventions.sites import COMPONENTS, MEDIATORS, Site
from causal_tracing.prompts.alignment import Slot
from causal_tracing.prompts.pairs import TokenPair
from causal_tracing.prompts.tokens import Column

if TYPE_CHECKING:  # every --help reads this: nothing heavy
    from causal_tracing.models.model import Model

FORM = re.compile(r"\s*(\w+)\s+(\d+)(?:-(\d+))?(?:\.(\d+))?\s*@\s*(\S.*?)\s*")
ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedSite:
    """What one text names: layers `first` to `last` of a component, one part of each or the whole, at some tokens."""

    component: str
    first: int
    last: int
    part: int | None
    tokens: Column

    @property
    def layers(self) -> range:
        """Its layers."""
        return range(self.first, self.last + 1)

    def slots(self, pair: TokenPair) -> list[Slot]:
        """The paired tokens of a pair that it names."""
        if self.tokens == ALL:
            return list(pair.slots)
        if self.tokens == "subject" and "subject" not in pair.clean.spans:
            named: Sequence[int] = pair.clean.subject
        elif isinstance(self.tokens, int):
            named = (self.tokens % len(pair.clean.tokens),)
        else:
            named = pair.clean.positions(self.tokens)
        return [slot for slot in pair.slots if slot.clean in named]

    def edits(self, pair: TokenPair, donor: Run, *, restores: bool) -> Iterator[Edit]:
        """What puts the donor's activations there: the clean run's into the corrupt one, or the other way round."""
        for slot in self.slots(pair):
            here, there = (slot.corrupt, slot.clean) if restores else slot
            for layer in self.layers:
                yield Edit(Site(self.component, layer, here, self.part), From(donor, there))


def named_site(text: Any) -> NamedSite:
    """The site that a text names. Raises InvalidOption with the form that is meant."""
    found = FORM.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise InvalidOption(
            f"{text!r} is no site. Name a component, a layer or a range of them, a head or neuron if it is one, and "
            'where: such as "z 23.4 @ last" or "resid_post 0-9 @ subject".'
        )
    component, first, last, part, tokens = found.groups()
    if component not in (*COMPONENTS, *MEDIATORS):
        raise InvalidOption(f"{text!r}: there is no component {component!r}. {nearest(component, COMPONENTS)}")
    if part is not None and component not in MEDIATORS:
        raise InvalidOption(f"{text!r}: {component} has no heads or neurons. Leave .{part} out.")
    if last is not None and int(last) < int(first):
        raise InvalidOption(f"{text!r}: its layers run backwards. Write {last}-{first}.")
    number = validation.whole_number(tokens)
    return NamedSite(
        component=component,
        first=int(first),
        last=int(first if last is None else last),
        part=None if part is None else int(part),
        tokens=tokens if number is None else number,
    )


def check_named_sites(values: Any) -> None:
    """Raises InvalidOption for what is no list of sites, or names one twice."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise InvalidOption(f'given= is a list of sites, such as ["z 23.4 @ last"]; it is {values!r}.')
    validation.once("site", [named_site(value) for value in values])


def require_sites(model: "Model", sites: Sequence[NamedSite], pairs: Sequence[TokenPair]) -> None:
    """Raises InvalidOption, InvalidPair or ComponentNotOffered where a model or a pair has no such site."""
    for site in sites:
        validation.numbered("layer", [site.last], model.num_layers, model.name)
        for layer in site.layers:
            model.anatomy.require_layer(layer)
        if site.part is not None:
            place = f"a layer of {model.name} ({site.component})"
            validation.numbered("part", [site.part], model.parts(site.component), place)
        for pair in pairs:
            if not site.slots(pair):
                raise InvalidPair(
                    f"pair {pair.id!r} has no paired token {site.tokens!r}, which given= names. Use a position, a "
                    "role or a span that every pair has."
                )
