"""What need not be run, and how much is run at once.

1. Edits that write what is already there, and edits that cannot reach the readout, are dropped: a world
   without edits is its base run, so its effect is exactly zero (method: structural zeros).
2. Worlds that are now the same are run once.
3. The rest is cut into batches of equal length that fit a memory budget.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from causal_tracing.interventions.edits import Edit, From, Run, World
from causal_tracing.interventions.sites import ORDER, RESIDUAL
from causal_tracing.models.model import Model

# What these hold in layer 0 follows from the token and its position alone.
TOKENWISE = ("resid_pre", "q", "k", "v")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The distinct worlds to run, and for each world that was asked for, which of them it is."""

    worlds: tuple[World, ...]
    index: tuple[int, ...]
    structural_zero: tuple[bool, ...]


def plan(model: Model, worlds: Sequence[World], *, prune: bool = True) -> Plan:
    """Which worlds to run. With `prune=False` every world is run as it stands, even twice."""
    if not prune:
        return Plan(worlds=tuple(worlds), index=tuple(range(len(worlds))), structural_zero=(False,) * len(worlds))
    numbers: dict[World, int] = {}
    index, zero = [], []
    for world in worlds:
        edits = effective(world, model.num_layers)
        zero.append(bool(world.edits) and not edits)
        index.append(numbers.setdefault(replace(world, edits=edits), len(numbers)))
    return Plan(worlds=tuple(numbers), index=tuple(index), structural_zero=tuple(zero))


def effective(world: World, num_layers: int) -> tuple[Edit, ...]:
    """The world's edits that can change what is read, in computation order."""
    kept: list[Edit] = []
    for edit in sorted(world.edits, key=_computation_order):
        untouched = all(other.site.position > edit.site.position for other in kept)
        if _reaches(edit, world.readout, num_layers) and not (untouched and _writes_what_is_there(edit, world.base)):
            kept.append(edit)
    return tuple(kept)


def _computation_order(edit: Edit) -> tuple[int, int, int]:
    return edit.site.layer, ORDER.index(edit.site.component), edit.site.position


def _reaches(edit: Edit, readout: Sequence[int], num_layers: int) -> bool:
    """Later tokens read a token through attention only: what is written behind the last layer's stays where it is."""
    site = edit.site
    if site.layer == num_layers - 1 and site.component not in ("resid_pre", "k", "v"):
        return site.position in readout
    return site.position <= max(readout)


def _writes_what_is_there(edit: Edit, base: Run) -> bool:
    """Whether base and donor are known to agree at the site, by their tokens alone."""
    source, site = edit.source, edit.site
    if edit.alpha == 0:
        return True
    if not isinstance(source, From) or source.position != site.position:
        return False
    if source.run == base:
        return True
    alone = (site.position,)
    if site.layer == 0 and site.component in TOKENWISE and not differing(source.run, base, alone):
        return True
    return not differing(source.run, base, range(site.position + 1))


def differing(one: Run, other: Run, positions: Iterable[int]) -> list[int]:
    """The positions at which two runs may differ: other tokens, or other edits of their own."""
    return [position for position in positions if _at(one, position) != _at(other, position)]


def _at(run: Run, position: int) -> tuple[int, frozenset[Edit]]:
    return run.tokens[position], frozenset(edit for edit in run.edits if edit.site.position == position)


def is_cut(model: Model, world: World, layer: int | None = None) -> bool:
    """Whether the whole difference between base and donor must pass the edited sites, by their tokens alone.

    Such a world gives the donor's logits by construction: its effect is the total effect. All edits (or those
    of one layer, if it is named) must be whole (alpha 1), in one place of the residual stream, from one donor, each to
    its own position. The runs' own edits may be noise only.
    """
    edits = [edit for edit in world.edits if layer in (None, edit.site.layer)]
    first = edits[0] if edits else None
    if _moves_the_readout(model, world, edits):
        return True
    if first is None or first.site.component not in RESIDUAL or not isinstance(first.source, From):
        return False
    donor, component, layer = first.source.run, first.site.component, first.site.layer
    for edit in edits:
        whole = edit.source == From(donor, edit.site.position) and edit.alpha == 1
        if not whole or (edit.site.component, edit.site.layer) != (component, layer):
            return False
    elsewhere = [edit for run in (donor, world.base) for edit in run.edits if edit.site.component != "embed"]
    if elsewhere or len(donor.tokens) != len(world.base.tokens):
        return False
    behind_the_last = layer == model.num_layers - 1 and component == "resid_post"
    if not (model.anatomy.cut or behind_the_last):
        return False
    must = _must_pass(world, donor, component, layer, model.num_layers)
    return must <= {edit.site.position for edit in edits}


def _moves_the_readout(model: Model, world: World, edits: Sequence[Edit]) -> bool:
    """Whether the last thing that is read is the donor's: its last token's, from another position than the base's."""
    last, (*others, readout) = model.num_layers - 1, world.readout
    for edit in edits:
        site, source = edit.site, edit.source
        here = (site.layer, site.position) == (last, readout) and site.component in ("resid_mid", "resid_post")
        read_alone = site.component == "resid_post" or model.anatomy.cut
        if here and read_alone and not others and isinstance(source, From) and edit.alpha == 1:
            return source.position == len(source.run.tokens) - 1 != site.position
    return False


def _must_pass(world: World, donor: Run, component: str, layer: int, num_layers: int) -> set[int]:
    """The positions at which the two runs can differ in that place, so far as the readout depends on it."""
    apart = differing(world.base, donor, range(len(donor.tokens)))
    if not apart:
        return set()
    if layer == num_layers - 1 and component != "resid_pre":
        return {position for position in world.readout if position >= apart[0]}
    if layer == 0 and component == "resid_pre":
        return set(apart)
    return set(range(apart[0], max(world.readout) + 1))
