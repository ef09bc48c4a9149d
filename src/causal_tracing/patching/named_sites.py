"""Sites by name, as texts: `z 23.4 @ last` is head 4 of layer 23 by its output at the last token.

    COMPONENT LAYERS[.PARTS] @ TOKENS           resid_post 0-9 @ subject     neurons 12.100-149 @ 3     mlp_out 4 @ all
    each COMPONENT [LAYERS[.PARTS]] @ TOKENS    each z 20-29 @ last          each mlp_out @ last

LAYERS are one or a range, PARTS one head, neuron or expert of each of them or a range, TOKENS a position, a role, a
span, `subject`, `all` or `each`. What a text names is patched together; after `each`, every layer and every part is a
site of its own, and where layers are left out these are all of the model's. At `each` token it is one of its own too.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from causal_tracing import validation
from causal_tracing.errors import InvalidOption, InvalidPair, nearest
from causal_tracing.interventions.edits import Edit
from causal_tracing.interventions.sites import COMPONENTS, MEDIATORS, MIXTURE, PARTED
from causal_tracing.prompts.alignment import Slot
from causal_tracing.prompts.pairs import TokenPair
from causal_tracing.prompts.tokens import Column

if TYPE_CHECKING:  # every --help reads this: nothing heavy
    from causal_tracing.interventions.edits import Run
    from causal_tracing.models.model import Model
    from causal_tracing.patching.contrast import Contrast

# Tokens without ; and |, which stand between sites where several are one text (options/site_texts.py).
FORM = re.compile(
    r"\s*(each\s+)?(\w+)(?:\s+(\d+)(?:-(\d+))?(?:\.(\d+)(?:-(\d+))?)?)?\s*@\s*([^\s;|](?:[^;|]*[^\s;|])?)\s*"
)
ALL, EACH = "all", "each"  # as tokens: all of them together, and every one by itself
Numbers = tuple[int, int]  # the first and the last of a range
DIGITS = 9  # of the number of a layer or part


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """What one text names: a range of layers (None: all), and a range of parts (None: the whole).

    `each`: every layer and every part of it is one of its own.
    """

    component: str
    layers: Numbers | None = None
    parts: Numbers | None = None
    each: bool = False

    def __str__(self) -> str:
        """The text that names it."""
        numbers = "" if self.layers is None else " " + ranged(self.layers)
        parts = "" if self.parts is None else "." + ranged(self.parts)
        return f"{'each ' if self.each else ''}{self.component}{numbers}{parts}"

    def within(self, layers: Numbers) -> Iterator[tuple[int, int | None]]:
        """Its layers and parts, one by one; of all layers those of a range."""
        first, last = self.layers or layers
        parts = [None] if self.parts is None else range(self.parts[0], self.parts[1] + 1)
        yield from ((layer, part) for layer in range(first, last + 1) for part in parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedSite(Named):
    """A site by name: at some tokens."""

    tokens: Column

    def __str__(self) -> str:
        """The text that names it."""
        return f"{Named.__str__(self)} @ {self.tokens}"

    def places(self) -> Iterator[tuple[int, int | None]]:
        """Its layers and parts, one by one."""
        assert self.layers is not None, "a site of all layers is made into single ones"
        yield from self.within(self.layers)

    def slots(self, pair: TokenPair) -> list[Slot]:
        """The paired tokens of a pair that it names."""
        if self.tokens == ALL:
            return list(pair.slots)
        if isinstance(self.tokens, int):
            named = (self.tokens + (len(pair.clean.tokens) if self.tokens < 0 else 0),)
        else:
            named = pair.clean.named(self.tokens)
        return [slot for slot in pair.slots if slot.clean in named]

    def edits(self, pair: TokenPair, contrast: "Contrast", donor: "Run", *, restores: bool) -> Iterator[Edit]:
        """What is written there: the clean run's activations into the corrupt one, or the other way round."""
        for slot in self.slots(pair):
            for layer, part in self.places():
                yield contrast.edit(self.component, layer, slot, donor, restores=restores, part=part)


Some = TypeVar("Some", bound=Named)


def ranged(numbers: Numbers) -> str:
    """A range as it is written: 3, or 3-5."""
    first, last = numbers
    return f"{first}" if first == last else f"{first}-{last}"


def named_site(text: Any, shown: Any = None) -> NamedSite:
    """The site that a text names, `shown` as this in errors. Raises InvalidOption with the form that is meant."""
    found = FORM.fullmatch(text) if isinstance(text, str) else None
    text = text if shown is None else shown
    if found is None or not (found.group(1) or found.group(3)):
        raise InvalidOption(
            f"{text!r} is no site. Name a component, a layer or a range of them, a head or neuron if it is one, and "
            'where: such as "z 23.4 @ last" or "resid_post 0-9 @ subject"; or "each z @ last" for all heads one by one.'
        )
    each, component, first, last, part, last_part, tokens = found.groups()
    if component not in (*COMPONENTS, *MEDIATORS, *MIXTURE):
        raise InvalidOption(f"{text!r}: there is no component {component!r}. {nearest(component, COMPONENTS)}")
    if part is not None and component not in PARTED:
        raise InvalidOption(f"{text!r}: {component} has no heads, neurons or experts. Leave .{part} out.")
    number = validation.whole_number(tokens)
    return NamedSite(
        component=component,
        layers=some_range(text, "layers", first, last),
        parts=some_range(text, "parts", part, last_part),
        tokens=tokens if number is None else number,
        each=bool(each),
    )


def node_site(text: Any) -> NamedSite:
    """The nodes that a text names, at all tokens, which it need not say. Raises InvalidOption."""
    whole = f"{text} @ {ALL}" if isinstance(text, str) and "@" not in text else text
    form = FORM.fullmatch(whole) if isinstance(whole, str) else None
    found = named_site(whole, text) if form and form.group(3) else None
    if found is None or found.tokens != ALL or found.each:
        raise InvalidOption(
            f'{text!r} is no node: nodes are patched at all tokens. Name it without tokens, such as "z 3.1" or '
            '"mlp_out 0".'
        )
    return found


def some_range(text: str, what: str, first: str | None, last: str | None) -> Numbers | None:
    """The range that a text gives of layers, heads or neurons. Raises InvalidOption where it runs backwards."""
    if first is None:
        return None
    # Before a range is made of it: a slip of the finger would fill the memory.
    if max(len(first), len(last or "")) > DIGITS:
        raise InvalidOption(f"{text!r:.200}: no model has so many {what}.")
    if last is not None and int(last) < int(first):
        raise InvalidOption(f"{text!r}: its {what} run backwards. Write {last}-{first}.")
    return int(first), int(first if last is None else last)


def check_named_sites(values: Any, name: str = "given=") -> None:
    """Raises InvalidOption for what is no list of sites, or names one twice."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise InvalidOption(f'{name} is a list of sites, such as ["z 23.4 @ last"]; it is {values!r}.')
    validation.once("site", [str(named_site(value)) for value in values])


def sites_on(model: "Model", texts: Sequence[str], pairs: Sequence[TokenPair], option: str) -> tuple[NamedSite, ...]:
    """The sites that these texts name on this model, those after `each` one by one; `option` is where they were named.

    Raises InvalidOption, InvalidPair or ComponentNotOffered where the model or a pair has no such site.
    """
    found = tuple(
        one for text in texts for named in _by_token(named_site(text), pairs) for one in singles(model, named)
    )
    for site in found:
        _require(model, site)
    for site in {each.tokens: each for each in found}.values():  # hundreds of heads are at one token
        _require_tokens(site, pairs, option)
    validation.once("site", map(str, found))
    return found


def singles(model: "Model", named: Some) -> Iterator[Some]:
    """What is named as it is; after `each`, one for each layer and part (where none are named, for all there are)."""
    _require_numbers(model, named)
    if not named.each:
        yield named
        return
    layers = model.having(named.component) if named.layers is None else range(named.layers[0], named.layers[1] + 1)
    for layer in layers:
        parts = named.parts
        if parts is None and named.component in PARTED:
            model.anatomy.require_layer(layer, named.component)
            parts = 0, model.parts(named.component, layer) - 1
        for part in [None] if parts is None else [(n, n) for n in range(parts[0], parts[1] + 1)]:
            yield replace(named, layers=(layer, layer), parts=part, each=False)


def _by_token(site: NamedSite, pairs: Sequence[TokenPair]) -> Iterator[NamedSite]:
    """A site at each token that all pairs have, one by one, where it says so; else as it is. Raises InvalidPair."""
    if site.tokens != EACH or any(EACH in pair.clean.spans for pair in pairs):
        yield site
        return
    lengths = {len(pair.clean.tokens): pair.id for pair in pairs}
    if len(lengths) > 1:
        raise InvalidPair(
            f"'{site}' is at each token by itself, and pairs {' and '.join(map(repr, [*lengths.values()][:2]))} have "
            f"{' and '.join(map(str, [*lengths][:2]))} of them. Name roles or spans that every pair has."
        )
    shared = frozenset.intersection(*(frozenset(slot.clean for slot in pair.slots) for pair in pairs))
    yield from (replace(site, tokens=position) for position in sorted(shared))


def _require_numbers(model: "Model", named: Named) -> None:
    """Raises InvalidOption where the model has no such layer or part: before a list is made of them."""
    if named.layers is not None:
        validation.numbered("layer", [named.layers[1]], model.num_layers, model.name)
    if named.parts is not None and named.layers is not None:
        for layer in range(named.layers[0], named.layers[1] + 1):
            # Of a layer without any it is said that it has none.
            count = model.parts(named.component, layer) or model.anatomy.most(named.component)
            place = f"layer {layer} of {model.name} ({named.component})"
            validation.numbered("part", [named.parts[1]], count, place)


def _require(model: "Model", site: NamedSite) -> None:
    """Raises ComponentNotOffered where a layer does not have the component."""
    assert site.layers is not None
    for layer in range(site.layers[0], site.layers[1] + 1):
        model.anatomy.require_layer(layer, site.component)


def _require_tokens(site: NamedSite, pairs: Sequence[TokenPair], option: str) -> None:
    """Raises InvalidPair where a pair has no such token."""
    for pair in pairs:
        if not site.slots(pair):
            raise InvalidPair(
                f"pair {pair.id!r} has no paired token {site.tokens!r}, which {option} names. Use a position, a role "
                "or a span that every pair has."
            )
