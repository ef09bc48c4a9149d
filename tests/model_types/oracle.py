"""What patching a network must give: one bare forward a cell, the whole vocabulary at the last token.

Whole components are written where `anatomy.find` found them. Heads and neurons are slices of what the last projection
takes in; queries, keys, values and patterns are written inside the attention function (`attention.py`), experts in the
module that is called with a router's choice (`mixture.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model_types.anatomy import Found, Layer, Term, call_of, has_matrix
from model_types.attention import NAMES, Attention, Cell, NotFound, visiting
from model_types.mixture import MIXTURE, Mixture
from model_types.prompts import ANSWER, FOIL, Prompts
from model_types.spots import Change, Spot, changing, look, put, record, run, unchanged

WHOLE = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "mixer_out", "resid_post")
METRICS = ("logit", "log_prob", "logit_diff")
Answers = dict[tuple[str, str, Cell], np.ndarray | str]  # prompts, direction, cell -> metrics, or why there are none


def metrics(logits: Tensor) -> np.ndarray:
    """`METRICS` at the last token."""
    last = logits[-1].double()
    logit = last[ANSWER]
    return np.array([logit, last.log_softmax(-1)[ANSWER], logit - last[FOIL]])


def spots_of(layer: Layer, component: str) -> tuple[Spot, ...]:
    """Where a component is read and written. Raises NotFound."""
    parts = {
        "resid_pre": (layer.before,),
        "resid_post": (layer.after,),
        "attn_out": tuple(term.spot for term in layer.attn),
        "mlp_out": tuple(term.spot for term in layer.mlp),
        "mixer_out": tuple(term.spot for term in (*layer.attn, *layer.mlp)),
        "z": tuple(spot for spot in [layer.z] if spot),
        "neurons": tuple(spot for spot in [layer.neurons] if spot),
    }[component]
    if not parts:
        raise NotFound(f"no {component} in {layer.call}")
    return parts


def _short(layer: Layer, term: Term) -> str:
    """A module's path inside its layer."""
    return term.spot.path.removeprefix(f"{layer.call}.")


def _only(layer: Layer, side: str, name: str) -> Layer:
    """The layer with one module alone as this side; as it is where it has no such module."""
    alone = tuple(term for term in getattr(layer, side) if _short(layer, term) == name)
    return replace(layer, **{side: alone}) if alone else layer


@dataclass(frozen=True, eq=False)
class Side:
    """The unedited run of one prompt, and what has been read in it."""

    network: nn.Module
    found: Found
    tokens: tuple[int, ...]
    seen: dict[Spot, Tensor] = field(default_factory=dict)
    projections: dict[int, Spot] = field(default_factory=dict)  # by layer

    @cached_property
    def logits(self) -> Tensor:
        return run(self.network, self.tokens, {})

    def at(self, spot: Spot) -> Tensor:
        if spot not in self.seen:
            self.seen.update(look(self.network, self.tokens, [spot]))
        return self.seen[spot]

    @cached_property
    def attention(self) -> Attention:
        return Attention.of_run(self.network, self.found, self.tokens)

    @cached_property
    def mixture(self) -> Mixture:
        return Mixture.of_run(self.network, self.found, self.tokens)

    def heads(self, layer: int) -> tuple[Spot, ...]:
        """Where heads' outputs go in: the first matrix of the layer that takes in nothing where values are nothing.

        Not the last one of what is added: in some layers attention feeds another mixer of tokens, or stands beside one.
        Where the layer's values are not seen, or more than once, that last one is all that is known. Raises NotFound.
        """
        try:
            seen = (layer, "v") in self.attention.seen
        except NotFound:
            seen = False
        if not seen:
            return spots_of(self.found.layers[layer], "z")
        if layer not in self.projections:
            self.projections[layer] = reader_of_heads(self.network, self.found, self.tokens, layer)
        return (self.projections[layer],)


def reader_of_heads(network: nn.Module, found: Found, tokens: tuple[int, ...], layer: int) -> Spot:
    """What the first matrix takes in that has nothing to read once a layer's values are zero. Raises NotFound."""

    def without(number: int, name: str, value: Tensor) -> Tensor:
        return torch.zeros_like(value) if (number, name) == (layer, "v") else value

    calls = record(network, tokens)
    whole = call_of(calls, found.layers[layer].before)
    inside = [each for each in calls if whole.holds(each) and has_matrix(network.get_submodule(each.path))]
    with visiting(network, found, without):
        emptied = {(each.path, each.turn): each.inputs for each in record(network, tokens)}
    for call in sorted(inside, key=lambda each: each.begin):
        for place, taken in call.inputs.items():
            left = emptied.get((call.path, call.turn), {}).get(place)
            if taken.any() and left is not None and not left.any():
                return call.spot("in", place)
    raise NotFound(f"no matrix of {found.layers[layer].call} takes in what attention gives alone")


@dataclass(frozen=True, eq=False)
class Oracle:
    """One network and one pair of prompts."""

    network: Any
    found: Found
    prompts: Prompts
    answers: Answers = field(default_factory=dict)  # what was worked out before

    @cached_property
    def sides(self) -> Mapping[str, Side]:
        both = {"clean": self.prompts.clean, "corrupt": self.prompts.corrupt}
        return {name: Side(self.network, self.found, tokens) for name, tokens in both.items()}

    @cached_property
    def largest_logit(self) -> float:
        return max(float(side.logits[-1].abs().max()) for side in self.sides.values())

    def readings(self, component: str) -> "list[Oracle]":
        """Itself, and where several modules share a side, itself with each of them alone as that side.

        By behaviour they cannot be told apart (two that mix tokens, two that do not): names say which of them is
        called attention or the MLP, and the oracle reads no names.
        """
        side = {"attn_out": "attn", "mlp_out": "mlp"}.get(component)
        if side is None:
            return [self]
        names = {_short(layer, term) for layer in self.found.layers for term in getattr(layer, side)}
        if all(len(getattr(layer, side)) < 2 for layer in self.found.layers):
            return [self]
        alone = []
        for name in sorted(names):
            layers = tuple(_only(layer, side, name) for layer in self.found.layers)
            alone.append(Oracle(self.network, replace(self.found, layers=layers), self.prompts))
        return [self, *alone]

    def unedited(self, side: str) -> np.ndarray:
        return metrics(self.sides[side].logits)

    def patched(self, direction: str, cell: Cell) -> np.ndarray:
        """`METRICS` after the donor's activation was written at one site. Raises NotFound.

        direction: "restored" (clean into corrupt) or "disrupted" (corrupt into clean).
        """
        key = (self.prompts.name, direction, cell)
        if key not in self.answers:
            try:
                self.answers[key] = self._patched(direction, cell)
            except NotFound as error:
                self.answers[key] = str(error)
        answer = self.answers[key]
        if isinstance(answer, str):
            raise NotFound(answer)
        return answer

    def _patched(self, direction: str, cell: Cell, then: Change = unchanged) -> np.ndarray:
        """The same; `then` changes all that is written once more."""
        names = ("clean", "corrupt") if direction == "restored" else ("corrupt", "clean")
        donor, into = (self.sides[name] for name in names)
        if cell.component in NAMES:
            return metrics(donor.attention.patched(self.network, self.found, into.tokens, cell))
        if cell.component in MIXTURE:
            return metrics(into.mixture.patched(self.network, into.tokens, donor.mixture, cell, then))
        changes = {spot: partial(_both, change, then) for spot, change in self.changes(donor, into, cell).items()}
        return metrics(run(self.network, into.tokens, changes) if changes else into.logits)

    def last_place(self, direction: str, cell: Cell) -> float:
        """By how much `METRICS` move where what is written is changed in the last place of float32, at random, 5 times.

        What float32 cannot tell: a norm of a stream near zero, or two experts that are chosen nearly alike, make it
        large. What one expert adds is made by hand, so that what layers read is changed there too. 0 for heads and for
        what is not written.
        """
        if cell.component in NAMES:
            return 0.0
        plain = self._patched(direction, cell)
        jolted = partial(_in_the_last_place, torch.Generator().manual_seed(0))
        read = {layer.before: jolted for layer in self.found.layers} if cell.component in MIXTURE else {}
        moved = []
        for _ in range(5):
            with changing(self.network, read):
                moved.append(float(np.abs(self._patched(direction, cell, jolted) - plain).max()))
        return max(moved)

    def changes(self, donor: Side, into: Side, cell: Cell) -> dict[Spot, Change]:
        """What is written where; nothing where the donor holds the same."""
        layer = self.found.layers[cell.layer]
        if cell.component == "resid_mid":
            return self._middle(donor, into, layer, cell.position)
        changes: dict[Spot, Change] = {}
        spots = into.heads(cell.layer) if cell.component == "z" else spots_of(layer, cell.component)
        for spot in spots:
            given, own = donor.at(spot), into.at(spot)
            change = put(only(given, own, cell), cell.position, self.prompts.length)
            if not torch.equal(change(own), own):
                changes[spot] = change
        return changes

    def _middle(self, donor: Side, into: Side, layer: Layer, position: int) -> dict[Spot, Change]:
        """Attention's output as it must be for input + attention to be the donor's."""
        if not layer.middle or len(layer.attn) != 1 or isinstance(layer.attn[0].factor, str) or layer.kept is None:
            raise NotFound(f"no resid_mid in {layer.call}")
        term = layer.attn[0]
        moved = (donor.at(layer.before) - into.at(layer.before)).reshape(donor.at(term.spot).shape)
        value = donor.at(term.spot) + layer.kept * moved / float(term.factor)
        return {term.spot: put(value, position, self.prompts.length)}


def _both(change: Change, then: Change, value: Tensor) -> Tensor:
    return then(change(value))


def _in_the_last_place(random: torch.Generator, value: Tensor) -> Tensor:
    up = torch.rand(value.shape, generator=random) < 0.5
    return torch.nextafter(value, torch.where(up, torch.inf, -torch.inf))


def only(given: Tensor, own: Tensor, cell: Cell) -> Tensor:
    """The run's own activation with one head's or neuron's share from the donor; the donor's where there is one."""
    size = given.shape[-1] // cell.parts
    mine = slice(cell.part * size, (cell.part + 1) * size)
    mixed = own.clone()
    mixed[..., mine] = given[..., mine]
    return mixed if cell.parts > 1 else given
