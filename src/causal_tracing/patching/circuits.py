"""Circuits of nodes: sets of growing size that are kept while all else is ablated, and sets with nodes taken out.

1. Nodes (`nodes.py`) are ranked; a cell is the set of the first k of them, at all tokens. The first cell is the empty
   set, embedding ablated and all; the last one is everything, which is the unedited run.
2. "kept": in the clean run every node outside the set is overwritten, and those inside compute live from what they get.
   "restored": in the corrupt run those inside are overwritten with what they are in the clean run.
3. Of one set, nodes K are taken out of it and out of the whole model (Wang et al. 2022, arXiv 2211.00593): completeness
   and minimality follow from these cells (`results/circuits.py`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from causal_tracing.errors import InvalidOption, InvalidPair
from causal_tracing.interventions.edits import Edit, Run
from causal_tracing.models.model import Model
from causal_tracing.patching.contrast import Contrast
from causal_tracing.patching.grid import At, Grid
from causal_tracing.patching.named_sites import ALL, NamedSite
from causal_tracing.patching.nodes import name_of, nodes_of, ranked_nodes, readers_of, weighted_size
from causal_tracing.patching.options.together import direction_of_circuit
from causal_tracing.patching.options.trace import Options
from causal_tracing.prompts.pairs import TokenPair
from causal_tracing.results.arms import DIRECTIONS, Arm
from causal_tracing.results.circuits import MIB_SHARES, NOTHING, size_of
from causal_tracing.results.columns import labelled
from causal_tracing.results.site_kinds import CIRCUIT_TESTS, CIRCUITS

INPUT = NamedSite(component="resid_pre", layers=(0, 0), parts=None, tokens=ALL)
Nodes = frozenset[NamedSite]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGrid(Grid):
    """Cells that are sets of nodes: `members` says which of `nodes` are inside, and whether the embedding is too."""

    nodes: tuple[NamedSite, ...]
    made: dict[Any, dict[NamedSite, tuple[Edit, ...]]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def needs(self) -> tuple[str, ...]:
        """The components of the nodes, and the embedding."""
        return tuple(dict.fromkeys([INPUT.component, *(node.component for node in self.nodes)]))

    def written(self) -> list[tuple[str, int]]:
        """All nodes, and the embedding."""
        return list(dict.fromkeys((site.component, site.layers[0]) for site in (INPUT, *self.nodes) if site.layers))

    def members(self, at: At) -> tuple[Nodes, bool]:
        """The nodes inside a cell's set, and whether the embedding is."""
        raise NotImplementedError

    def count(self, pair: TokenPair) -> int:
        """A world for each cell."""
        return sum(1 for _ in self.cells())

    def edits(
        self, at: At, pair: TokenPair, contrast: Contrast, arm: Arm, base: Run, donor: Run
    ) -> Iterator[tuple[Edit, ...]]:
        """One world: what is inside is restored, or what is outside is ablated."""
        inside, embedded = self.members(at)
        if arm.restores:
            sites = [node for node in self.nodes if node in inside] + ([INPUT] if embedded else [])
        else:
            sites = [node for node in self.nodes if node not in inside] + ([] if embedded else [INPUT])
        key = (contrast, donor, arm.restores)
        if key not in self.made:
            self.made.clear()
            self.made[key] = {}
        # Thousands of edits a world, and most are in most worlds of a pair: each is made once.
        made = self.made[key]
        for site in sites:
            if site not in made:
                made[site] = tuple(site.edits(pair, contrast, donor, restores=arm.restores))
        yield tuple(edit for site in sites for edit in made[site])


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitGrid(NodeGrid):
    """A cell for each size: the first so many of `ranked`; none, and all, at the ends.

    `keep_input`: every set but the empty one has the embedding. `readers` says by name which nodes can read a node.
    """

    ranked: tuple[NamedSite, ...]
    sizes: tuple[int, ...]
    keep_input: bool
    readers: Mapping[str, Sequence[str]]

    @property
    def labels(self) -> dict[str, Any]:
        """How many nodes there are, and how many edges among them, weighted."""
        return {
            "component": labelled(self.components),
            "size": list(self.sizes),
            "weighted_size": (
                "size",
                np.array([weighted_size(self._first(size), self.readers) for size in self.sizes]),
            ),
            "added": ("size", np.array(self._added(), dtype=object)),
        }

    def _added(self) -> list[str]:
        """The nodes that each size adds to those before it; nothing is said of what was not ranked."""
        ends = zip((0, *self.sizes), self.sizes, strict=False)
        added = (self.ranked[start:size] if size <= len(self.ranked) else () for start, size in ends)
        return ["; ".join(map(name_of, nodes)) for nodes in added]

    @property
    def slices(self) -> int:
        """Its sizes."""
        return len(self.sizes)

    def cells(self, slices: Sequence[int] | None = None) -> Iterator[At]:
        """One for each size."""
        yield from ((0, n) for n in (range(self.slices) if slices is None else slices))

    def members(self, at: At) -> tuple[Nodes, bool]:
        """The first nodes; with everything goes the embedding."""
        size = self.sizes[at[1]]
        return frozenset(self._first(size)), size == len(self.nodes) or (self.keep_input and size > 0)

    def _first(self, size: int) -> tuple[NamedSite, ...]:
        """The first so many nodes: all of them, whether they were ranked or not, or the first of the ranking."""
        return self.nodes if size == len(self.nodes) else self.ranked[:size]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovalGrid(NodeGrid):
    """A cell for each K that is taken out of a set (`circuit`) and out of all nodes (`model`).

    `removed` holds these K by what they are called; those behind the first `of_both` are taken out of the set alone.
    """

    circuit: tuple[NamedSite, ...]
    removed: dict[str, tuple[NamedSite, ...]]
    of_both: int
    keep_input: bool

    @property
    def labels(self) -> dict[str, Any]:
        """What was taken out, by name and node by node."""
        nodes = ["; ".join(map(name_of, each)) for each in self.removed.values()]
        return {
            "component": labelled(self.components),
            "removal": labelled([*self.removed]),
            "removed_nodes": ("removal", np.array(nodes, dtype=object)),
        }

    @property
    def slices(self) -> int:
        """What is taken out."""
        return len(self.removed)

    def cells(self, slices: Sequence[int] | None = None) -> Iterator[At]:
        """Each K out of the set, and the first ones out of the model."""
        for n in range(self.slices) if slices is None else slices:
            yield (0, n)
            if n < self.of_both:
                yield (1, n)

    def members(self, at: At) -> tuple[Nodes, bool]:
        """What is left of the set, or of the model; the model has the embedding, whatever the set has."""
        whole = self.circuit if at[0] == 0 else self.nodes
        return frozenset(whole).difference([*self.removed.values()][at[1]]), self.keep_input or at[0] == 1


def circuit_grids(model: Model, pairs: Sequence[TokenPair], options: Options) -> Iterator[Grid]:
    """What the options ask for. Raises InvalidOption, InvalidPair, ComponentNotOffered."""
    if not options.circuit:
        return
    nodes = nodes_of(model)
    ranked = ranked_nodes(nodes, options.circuit, options.circuit_by)
    for pair in pairs:
        check_one_to_one(pair)
    common = {
        "layers": model.active,
        "columns": (),
        "arms": (DIRECTIONS[direction_of_circuit(options.circuit_how)],),
        "nodes": nodes,
        "keep_input": options.circuit_input and options.circuit_how == "kept",
    }
    sizes = _sizes(options.circuit_sizes, len(ranked), len(nodes))
    yield CircuitGrid(
        kind=CIRCUITS,
        components=CIRCUITS.components,
        ranked=ranked,
        sizes=sizes,
        readers=readers_of(nodes, model),
        **common,
    )
    if options.circuit_tested is not None:
        circuit = ranked[: _one_size(options.circuit_tested, len(ranked), len(nodes), "circuit_tested=")]
        removed, of_both = _removed(circuit, options.circuit_subsets, options.seed)
        kind = CIRCUIT_TESTS
        tested = {"circuit": circuit, "removed": removed, "of_both": of_both}
        yield RemovalGrid(kind=kind, components=kind.components, **tested, **common)


def check_one_to_one(pair: TokenPair) -> None:
    """Raises InvalidPair where nodes cannot be patched at all tokens of a pair."""
    lengths = [len(prompt.tokens) for prompt in (pair.clean, pair.corrupt)]
    paired = [tuple(slot) for slot in pair.slots]
    if lengths[0] != lengths[1] or paired != [(n, n) for n in range(lengths[0])]:
        raise InvalidPair(
            f"pair {pair.id!r}: circuits are of nodes at all tokens, and those of the two prompts ({lengths[0]} and "
            f"{lengths[1]}, {len(paired)} of them paired) do not go together one by one. Give prompts of equal length."
        )
    if pair.several_tokens:
        raise InvalidPair(
            f"pair {pair.id!r}: circuits are read behind the prompt, and an answer or a foil of several tokens is read "
            "further on too, where nothing would be ablated. Give such of one token."
        )


def _sizes(asked: Sequence[int | float] | None, ranked: int, nodes: int) -> tuple[int, ...]:
    """The sizes that are measured, with both ends; by default those of MIB's shares that the ranking reaches."""
    if asked is None:
        found = [size for share in MIB_SHARES if (size := size_of(share, nodes)) <= ranked] + [ranked]
    else:
        found = [_one_size(size, ranked, nodes, "circuit_sizes=") for size in asked]
    return tuple(sorted({0, *found, nodes}))


def _one_size(size: int | float, ranked: int, nodes: int, option: str) -> int:
    found = size_of(size, nodes)
    if found > ranked and found != nodes:
        raise InvalidOption(
            f"{option} asks for {found} nodes, and circuit= ranks {ranked} of the model's {nodes}: which come next is "
            "not said. Rank more, or ask for fewer."
        )
    if option == "circuit_tested=" and found > ranked:
        raise InvalidOption(f"{option} asks for all {nodes} nodes, and circuit= names {ranked}: rank all of them.")
    return found


def _removed(circuit: Sequence[NamedSite], subsets: int, seed: int) -> tuple[dict[str, tuple[NamedSite, ...]], int]:
    """What is taken out: nothing, each node, random subsets; then those again with each other node beside them."""
    found: dict[str, tuple[NamedSite, ...]] = {NOTHING: ()} | {name_of(node): (node,) for node in circuit}
    random, drawn = np.random.default_rng(seed), {}
    for n in range(1, subsets + 1 if len(circuit) > 2 else 1):
        inside = random.permutation(len(circuit))[: random.integers(2, len(circuit))]
        drawn[f"random {n}"] = tuple(circuit[place] for place in sorted(inside))
    found |= drawn
    beside = {
        f"{name} and {name_of(node)}": (*nodes, node)
        for name, nodes in drawn.items()
        for node in circuit
        if node not in nodes
    }
    return found | beside, len(found)
