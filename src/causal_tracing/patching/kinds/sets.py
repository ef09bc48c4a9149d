"""What is patched together: sets of sites, sets that grow site by site, and pairs of sites.

A cell is a list of named sites. Beside what they do jointly stands what each of them does alone, added up: the
difference is what they do beyond that sum, of two sites their interaction I(A,B) = e(AB) − e(A) − e(B).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np

from causal_tracing.errors import InvalidOption, InvalidPair, nearest
from causal_tracing.interventions.edits import Edit, Run
from causal_tracing.interventions.write import TENSORED, checked_write
from causal_tracing.models.model import Model
from causal_tracing.patching.contrast import Contrast
from causal_tracing.patching.grid import At, Grid, arms_of, checked_layers
from causal_tracing.patching.named_sites import NamedSite, sites_on
from causal_tracing.patching.options.sets import listed
from causal_tracing.patching.options.trace import Options
from causal_tracing.prompts.pairs import TokenPair
from causal_tracing.results.arms import MEMBERS, Arm
from causal_tracing.results.columns import labelled
from causal_tracing.results.site_kinds import GROWING, INTERACTIONS, SETS, SiteKind

NONE = -1  # as a layer
ALONE = "alone"  # as a partner: none, so that the margins of a map of pairs hold what single sites do
MOST_PAIRS = 200_000  # cells of a map of pairs: more take hours, and say little one by one

Members = Mapping[str, Sequence[NamedSite]]


@dataclass(frozen=True, slots=True, kw_only=True)
class JointGrid(Grid):
    """Cells that are lists of sites, patched together: `members` says which, and is all that differs between kinds."""

    @property
    def sites(self) -> Sequence[NamedSite]:
        """All sites of all cells."""
        raise NotImplementedError

    def members(self, at: At) -> Sequence[NamedSite]:
        """The sites of a cell; none where there is no such cell."""
        raise NotImplementedError

    @property
    def needs(self) -> tuple[str, ...]:
        """The components of the sites."""
        return tuple(dict.fromkeys(site.component for site in self.sites))

    def written(self) -> list[tuple[str, int]]:
        """The components and layers of the sites."""
        return list(dict.fromkeys((site.component, layer) for site in self.sites for layer, _ in site.places()))

    def count(self, pair: TokenPair) -> int:
        """A world for each cell, and for each site that is patched alone."""
        alone = sum(arm.alone for arm in self.arms)
        joint = len(self.arms) - alone
        return sum(joint + alone * len(self.alone(at)) for at in self.cells() if self.members(at))

    def alone(self, at: At) -> Sequence[NamedSite]:
        """The sites that are patched one by one for a cell."""
        return self.members(at)

    def sweep(
        self, places: Iterable[At], pair: TokenPair, contrast: Contrast, arm: Arm, base: Run, donor: Run
    ) -> Iterator[tuple[At, Iterable[tuple[Edit, ...]]]]:
        """Cells one after the other; what a site writes is made out once for all cells that it is in."""

        # Of one sweep, which is of one pair and direction: the edits of all pairs would pile up.
        @cache
        def written(site: NamedSite) -> tuple[Edit, ...]:
            return tuple(site.edits(pair, contrast, donor, restores=arm.restores))

        for at in places:
            together = [[site] for site in self.alone(at)] if arm.alone else [self.members(at)]
            if not together or self.held(at, pair):
                yield at, ()
                continue
            made = (tuple(edit for site in sites for edit in written(site)) for sites in together)
            yield at, [edits for edits in made if edits]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetGrid(JointGrid):
    """A cell for each set."""

    sets: Members

    @property
    def sites(self) -> Sequence[NamedSite]:
        """Those of all sets."""
        return [site for sites in self.sets.values() for site in sites]

    @property
    def labels(self) -> dict[str, Any]:
        """The names of the sets."""
        return {"component": labelled(self.components), "set": labelled([*self.sets])}

    @property
    def slices(self) -> int:
        """Its sets."""
        return len(self.sets)

    def cells(self, slices: Sequence[int] | None = None) -> Iterator[At]:
        """One for each set."""
        yield from ((0, n) for n in (range(self.slices) if slices is None else slices))

    def members(self, at: At) -> Sequence[NamedSite]:
        """The sites of the set."""
        return [*self.sets.values()][at[1]]

    def added_up(self, alone: np.ndarray, joint: np.ndarray, base: np.ndarray) -> np.ndarray:
        """Each site of a set alone."""
        return base + np.array([[len(sites) for sites in self.sets.values()]]) * (alone - base)


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowingGrid(SetGrid):
    """A cell for the first site of each set, for the first two, and so on."""

    @property
    def labels(self) -> dict[str, Any]:
        """How many sites there are."""
        return super(GrowingGrid, self).labels | {"size": list(range(1, self._most + 1))}

    @property
    def _most(self) -> int:
        return max(map(len, self.sets.values()))

    def cells(self, slices: Sequence[int] | None = None) -> Iterator[At]:
        """One for each size of each set."""
        for n in range(self.slices) if slices is None else slices:
            yield from ((0, n, size) for size in range(len([*self.sets.values()][n])))

    def members(self, at: At) -> Sequence[NamedSite]:
        """The first sites of the set, in the order that they were named."""
        return [*self.sets.values()][at[1]][: at[2] + 1]

    def alone(self, at: At) -> Sequence[NamedSite]:
        """The last one: those before it are patched alone for the smaller sets."""
        return self.members(at)[-1:]

    def added_up(self, alone: np.ndarray, joint: np.ndarray, base: np.ndarray) -> np.ndarray:
        """Each site alone, up to this one."""
        return base + np.cumsum(alone - base, axis=-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairGrid(JointGrid):
    """A cell for each site of `first` with each of `second`, and in the margins for each of them alone.

    Where both are one list, each pair is measured once and stands in two places.
    """

    first: Sequence[NamedSite]
    second: Sequence[NamedSite]

    @property
    def sites(self) -> Sequence[NamedSite]:
        """Those of both lists."""
        return [*dict.fromkeys([*self.first, *self.second])]

    @property
    def labels(self) -> dict[str, Any]:
        """The sites by name, and that there is none."""
        found: dict[str, Any] = {"component": labelled(self.components)}
        for axis, sites in (("site", self.first), ("partner", self.second)):
            layers = [site.layers[0] if site.layers else NONE for site in sites]
            found |= {axis: labelled([*map(str, sites), ALONE]), f"{axis}_layer": (axis, [*layers, NONE])}
        return found

    @property
    def slices(self) -> int:
        """The sites of the first list, and none."""
        return len(self.first) + 1

    @property
    def _mirrored(self) -> bool:
        return self.first is self.second or self.first == self.second  # asked for every cell

    def cells(self, slices: Sequence[int] | None = None) -> Iterator[At]:
        """Each pair once."""
        for one in range(self.slices) if slices is None else slices:
            start = one if self._mirrored else 0  # a site with itself is a cell too: one that is held
            yield from ((0, one, other) for other in range(start, len(self.second) + 1))

    def alike(self, at: At) -> tuple[At, ...]:
        """Where both lists are one, (A, B) is (B, A)."""
        return (at, (0, at[2], at[1])) if self._mirrored and at[1] != at[2] else (at,)

    def members(self, at: At) -> Sequence[NamedSite]:
        """The two sites; one of them in the margins, and none where both are one."""
        sites = (*self.first[at[1] : at[1] + 1], *self.second[at[2] : at[2] + 1])
        return () if len(sites) > 1 and sites[0] == sites[1] else sites

    def alone(self, at: At) -> Sequence[NamedSite]:
        """None: the margins are what each site does alone."""
        return ()

    @property
    def overlaps(self) -> bool:
        """Two sites may be one."""
        return True

    def held(self, at: At, pair: TokenPair) -> bool:
        """Whether both sites are one, whole or in part."""
        one, other = self.first[at[1] : at[1] + 1], self.second[at[2] : at[2] + 1]
        return bool(one and other) and meet(one[0], other[0], pair)

    def added_up(self, alone: np.ndarray, joint: np.ndarray, base: np.ndarray) -> np.ndarray:
        """The two margins."""
        return joint[..., :, -1:] + joint[..., -1:, :] - base


def joint_grids(
    model: Model, pairs: Sequence[TokenPair], options: Options, directions: Sequence[str]
) -> Iterator[Grid]:
    """What is patched together, kind by kind. Raises InvalidOption, InvalidPair, ComponentNotOffered."""
    if not (options.sets or options.growing or options.interactions):
        return
    if checked_write(options.write).kind in TENSORED:
        raise InvalidOption(f"sets= and interactions= cannot be patched with write={options.write!r}: leave one out.")
    common = {
        "layers": checked_layers(model, options.layers),
        "columns": (),
        "arms": (*arms_of(directions), *(MEMBERS[name] for name in directions)),
    }
    sets = {name: sites_on(model, sites, pairs, f"the set {name!r}") for name, sites in (options.sets or {}).items()}
    for name, sites in sets.items():
        check_apart(f"the set {name!r}", sites, pairs)
    if sets:
        yield SetGrid(kind=SETS, components=SETS.components, sets=sets, **common)
    if options.growing:
        chosen = {name: sets[name] for name in _growing(options)}
        yield GrowingGrid(kind=GROWING, components=GROWING.components, sets=chosen, **common)
    if options.interactions:
        lists = [sites_on(model, each, pairs, "interactions=") for each in listed(options.interactions)]
        yield _of_pairs(INTERACTIONS, lists, common)


def _of_pairs(kind: SiteKind, lists: Sequence[Sequence[NamedSite]], common: Mapping[str, Any]) -> PairGrid:
    first, second = lists[0], lists[-1]
    if min(len(first), len(second)) < (2 if len(lists) == 1 else 1):
        raise InvalidOption("interactions= has no pair to measure: name two sites, or one in each of two lists.")
    if len(first) * len(second) > MOST_PAIRS:
        raise InvalidOption(
            f"interactions= names {len(first):,} sites with {len(second):,}: a map of more than {MOST_PAIRS:,} cells "
            "takes hours. Name fewer."
        )
    return PairGrid(kind=kind, components=kind.components, first=first, second=second, **common)


def _growing(options: Options) -> Sequence[str]:
    """The names of the sets that grow. Raises InvalidOption for one that there is not."""
    there = [*(options.sets or {})]
    named = there if options.growing is True else [*(options.growing or ())]
    for name in named:
        if name not in there:
            raise InvalidOption(f"growing= names a set {name!r} that sets= has not. {nearest(name, there)}")
    return named


def check_apart(called: str, sites: Sequence[NamedSite], pairs: Sequence[TokenPair]) -> None:
    """Raises InvalidPair where two sites of a set are one place in a pair."""
    # Of all heads there are tens of thousands of pairs, and of a file thousands of prompts: few of the former may meet.
    close = [both for both in combinations(sites, 2) if _may_meet(*both)]
    for one, other in close:
        for pair in pairs:
            if _at_one_token(one, other, pair):
                raise InvalidPair(
                    f"pair {pair.id!r}: of {called}, '{one}' and '{other}' are one place, whole or in part. "
                    "Name each place once."
                )


def meet(one: NamedSite, other: NamedSite, pair: TokenPair) -> bool:
    """Whether two sites share a place in a pair."""
    return _may_meet(one, other) and _at_one_token(one, other, pair)


def _may_meet(one: NamedSite, other: NamedSite) -> bool:
    """Whether they share a component, a layer and a part: then it is for the tokens to say."""
    if not _overlap(_component_and_layers(one), _component_and_layers(other)):
        return False
    return not (one.parts and other.parts) or _ranges_meet(one.parts, other.parts)


def _at_one_token(one: NamedSite, other: NamedSite, pair: TokenPair) -> bool:
    return bool({slot.clean for slot in one.slots(pair)} & {slot.clean for slot in other.slots(pair)})


def _component_and_layers(site: NamedSite) -> tuple[str, tuple[int, int]]:
    """A site's component and layers under one name: resid_post of a layer is resid_pre of the next."""
    assert site.layers is not None
    first, last = site.layers
    return ("resid_pre", (first + 1, last + 1)) if site.component == "resid_post" else (site.component, (first, last))


def _overlap(one: tuple[str, tuple[int, int]], other: tuple[str, tuple[int, int]]) -> bool:
    return one[0] == other[0] and _ranges_meet(one[1], other[1])


def _ranges_meet(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]
