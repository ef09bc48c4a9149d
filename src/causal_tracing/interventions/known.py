"""What is known of a world without running it, by its tokens and by what was proved of the model.

(Of experts also by which of them the tokens go to: that is looked up, and handed on as `Silent`.)

1. Edits that write what is already there, and edits that cannot reach the readout, are dropped: a world
   without edits is its base run, so its effect is exactly zero (method: structural zeros).
2. Worlds that are now the same are run once (`plan`).
3. Where all that brings a token something from other tokens is overwritten there, edits at others do not reach it.
4. A world through whose sites the whole difference must pass gives the donor's logits (`is_cut`).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from causal_tracing.interventions.edits import Attending, Edit, From, Mean, Plus, Run, Subspace, World, Zero, donors_of
from causal_tracing.interventions.sites import ORDER, RESIDUAL, WIRING, Site

Silent = Callable[[Site, Run, int], bool]  # whether a part of a site adds exactly nothing in a run, at a position


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What was proved of a model: all that is assumed of it here.

    `mixing` are the components whose edits reach later tokens within their own layer; every other component's edits
    reach them in the next layer. `tokenwise` are those that in layer 0 follow from the token and its position alone.
    Both defaults say that only attention mixes tokens, which reads a token's keys and values. `cut` is False where
    layers read something besides the residual stream, `anywhere` where what follows the last layer counts tokens.
    `gathers` are the components through which alone a token gets anything from other tokens in a layer: none where
    something else brings it too.
    """

    num_layers: int
    cut: bool = True
    anywhere: bool = True
    mixing: tuple[str, ...] = ("resid_pre", "k", "v")
    tokenwise: tuple[str, ...] = ("resid_pre", "q", "k", "v")
    gathers: tuple[str, ...] = ("attn_out", "mixer_out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The distinct worlds to run, and for each world that was asked for, which of them it is."""

    worlds: tuple[World, ...]
    index: tuple[int, ...]
    structural_zero: tuple[bool, ...]


def plan(worlds: Sequence[World], rules: Rules, *, prune: bool = True, silent: Silent | None = None) -> Plan:
    """Which worlds to run. With `prune=False` every world is run as it stands, even twice.

    `silent` says which experts add nothing (None: that is not known).
    """
    if not prune:
        return Plan(worlds=tuple(worlds), index=tuple(range(len(worlds))), structural_zero=(False,) * len(worlds))
    numbers: dict[World, int] = {}
    index, zero = [], []
    for world in worlds:
        edits = effective(world, rules, silent)
        zero.append(bool(world.edits) and not edits)
        left = world if edits == world.edits else replace(world, edits=edits)
        index.append(numbers.setdefault(left, len(numbers)))
    return Plan(worlds=tuple(numbers), index=tuple(index), structural_zero=tuple(zero))


def effective(world: World, rules: Rules, silent: Silent | None = None) -> tuple[Edit, ...]:
    """The world's edits that can change what is read, in computation order."""
    kept: list[Edit] = []
    sealed, first = _sealed_from(world, rules), len(world.base.tokens)  # the first token that something kept is at
    for edit in sorted(world.edits, key=_computation_order):
        # What the base run has at a token is there only as long as nothing that is kept lies at that token or before
        # it.
        there = edit.site.position < first and (
            _writes_what_is_there(edit, world.base, rules) or _writes_nothing(edit, world.base, silent)
        )
        if not there and _reaches(edit, world.readout, rules, sealed):
            kept.append(edit)
            first = min(first, edit.site.position)
    return tuple(kept)


def _computation_order(edit: Edit) -> tuple[int, int, int]:
    return edit.site.layer, ORDER.index(edit.site.component), edit.site.position


def _reaches(edit: Edit, readout: Sequence[int], rules: Rules, sealed: int) -> bool:
    """Whether a token that is read can depend on the edit: what no layer mixes any more stays where it is."""
    site = edit.site
    # It is told at layer 0 and position 0, which says nothing of where it acts.
    if site.component == WIRING:
        return True
    mixed_from = site.layer if site.component in rules.mixing else site.layer + 1
    return site.position in readout or (site.position < max(readout) and mixed_from < sealed)


def _sealed_from(world: World, rules: Rules) -> int:
    """The layer from which on nothing arrives from other tokens at those that are read."""
    written = {
        (edit.site.layer, edit.site.position)
        for edit in world.edits
        # What keeps a share of what is there keeps what came from other tokens too.
        if edit.site.component in rules.gathers and edit.alpha == 1 and not isinstance(edit.source, (Plus, Subspace))
    }
    sealed = rules.num_layers
    while sealed and all((sealed - 1, position) in written for position in world.readout):
        sealed -= 1
    return sealed


def _writes_what_is_there(edit: Edit, base: Run, rules: Rules) -> bool:
    """Whether base and donor are known to agree at the site, by their tokens alone."""
    source, site = edit.source, edit.site
    if edit.alpha == 0:
        return True
    if isinstance(source, Attending):
        return _attends_as_it_does(source, site, base, rules)
    # An activation from another position has another prefix behind it, whatever the tokens are.
    if not isinstance(source, From) or source.position != site.position:
        return False
    if source.run == base:
        return True
    alone = (site.position,)
    if site.layer == 0 and site.component in rules.tokenwise and not differing(source.run, base, alone):
        return True
    # Attention is causal: where all tokens up to here agree, so does everything at this one.
    return not differing(source.run, base, range(site.position + 1))


def _writes_nothing(edit: Edit, base: Run, silent: Silent | None) -> bool:
    """Whether an expert adds nothing in the base run, and nothing is written there."""
    site, source = edit.site, edit.source
    if silent is None or site.component != "experts" or site.part is None or not isinstance(source, From | Mean | Zero):
        return False
    donors = all(silent(site, donor.run, donor.position) for donor in donors_of(source))
    return donors and silent(site, base, site.position)


def _attends_as_it_does(source: Attending, site: Site, base: Run, rules: Rules) -> bool:
    """Whether nothing is taken from a query's sight, and all that it is given is there already."""
    seen = source.up_to(site.position)
    # A key may have no weight at all, but only a run could tell.
    if seen.blocked or seen.zeroed:
        return False
    given = [Edit(Site("q", site.layer, site.position), donor) for _, donor in seen.q]
    for component in ("k", "v"):
        given += [Edit(Site(component, site.layer, key), donor) for key, donor in getattr(seen, component)]
    return all(_writes_what_is_there(edit, base, rules) for edit in given)


def differing(one: Run, other: Run, positions: Iterable[int]) -> list[int]:
    """The positions at which two runs may differ: other tokens, or other edits of their own."""
    apart = _apart(one, other)
    return [position for position in positions if position in apart]


@lru_cache(maxsize=256)  # the worlds that read from a donor lie together
def _apart(one: Run, other: Run) -> frozenset[int]:
    """All positions at which two runs may differ, of those that both have."""
    tokens = (n for n, both in enumerate(zip(one.tokens, other.tokens, strict=False)) if both[0] != both[1])
    edited = {edit.site.position for edit in {*one.edits} ^ {*other.edits}}
    return frozenset((*tokens, *edited))


def is_cut(world: World, rules: Rules, layer: int | None = None) -> bool:
    """Whether the whole difference between base and donor must pass the edited sites, by their tokens alone.

    Such a world gives the donor's logits by construction: its effect is the total effect. All edits (or those
    of one layer, if it is named) must be whole (alpha 1), in one place of the residual stream, from one donor, each to
    its own position. The runs' own edits may be noise only.
    """
    edits = [edit for edit in world.edits if layer in (None, edit.site.layer)]
    first = edits[0] if edits else None
    # Below each state must stand at its own position; one that was moved to the readout is a cut all the same.
    if _moves_the_readout(world, edits, rules):
        return True
    if first is None or first.site.component not in RESIDUAL or not isinstance(first.source, From):
        return False
    donor, component, at = first.source.run, first.site.component, first.site.layer
    for edit in edits:
        whole = edit.source == From(donor, edit.site.position) and edit.alpha == 1
        if not whole or (edit.site.component, edit.site.layer) != (component, at):
            return False
    # An edit of the runs' own acts behind the cut in one of them and not in the other, and would part their logits.
    elsewhere = [edit for run in (donor, world.base) for edit in run.edits if edit.site.component != "embed"]
    if elsewhere or len(donor.tokens) != len(world.base.tokens):
        return False
    # Behind the last layer nothing but norm and head follows, which read the stream alone on every model.
    behind_the_last = at == rules.num_layers - 1 and component == "resid_post"
    if not (rules.cut or behind_the_last):
        return False
    must = _must_pass(world, donor, component, at, rules)
    return must <= {edit.site.position for edit in edits}


def _moves_the_readout(world: World, edits: Sequence[Edit], rules: Rules) -> bool:
    """Whether the last thing that is read is the donor's: its last token's, from another position than the base's."""
    last, (*others, readout) = rules.num_layers - 1, world.readout
    for edit in edits:
        site, source = edit.site, edit.source
        behind = site.component in RESIDUAL and site.component not in rules.mixing
        here = behind and (site.layer, site.position) == (last, readout)
        read_alone = site.component == "resid_post" or rules.cut
        moved = here and read_alone and rules.anywhere and not others
        if moved and isinstance(source, From) and edit.alpha == 1:
            # Norm and head know of no positions: a last state gives its own logits wherever it is put.
            return source.position == len(source.run.tokens) - 1 != site.position
    return False


def _must_pass(world: World, donor: Run, component: str, layer: int, rules: Rules) -> set[int]:
    """The positions at which the two runs can differ in that place, so far as the readout depends on it."""
    apart = differing(world.base, donor, range(len(donor.tokens)))
    if not apart:
        return set()
    # No token passes anything on to another from here: those that are not read may differ.
    if layer == rules.num_layers - 1 and component not in rules.mixing:
        return {position for position in world.readout if position >= apart[0]}
    # Equal tokens have equal states there, wherever the prompts part.
    if layer == 0 and component in rules.tokenwise:
        return set(apart)
    # From the first difference on each later token may have taken some of it up.
    return set(range(apart[0], max(world.readout) + 1))
