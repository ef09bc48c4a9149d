"""Circuits: sets of growing size that are kept while all else is ablated, and sets with some of them taken out.

1. Nodes or edges (`graph.py`, `edge_graph.py`) are ranked; a cell is the set of the first k of them, at all tokens. The
   first cell is the empty set, embedding ablated and all; the last one is everything, which is the unedited run.
2. "kept": in the clean run all outside the set is ablated, and what is inside computes live from what it gets.
   "restored": in the corrupt run what is inside is put as it is in the clean run.
3. Of one set, some K are taken out of it and out of the whole model (Wang et al. 2022, arXiv 2211.00593): completeness
   and minimality follow from these cells (`results/circuits.py`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from causal_tracing.errors import InvalidOption, InvalidPair
from causal_tracing.interventions.edits import Edit, Run
from causal_tracing.models.model import Model
from causal_tracing.patching.contrast import Contrast
from causal_tracing.patching.grid import At, Grid
from causal_tracing.patching.kinds.edge_graph import edge_graph
from causal_tracing.patching.kinds.graph import Graph, node_graph, ranked_items
from causal_tracing.patching.options.together import direction_of_circuit
from causal_tracing.patching.options.trace import Options
from causal_tracing.prompts.pairs import TokenPair
from causal_tracing.results.arms import DIRECTIONS, Arm
from causal_tracing.results.circuits import MIB_SHARES, NOTHING, size_of, subsets_of
from causal_tracing.results.columns import labelled
from causal_tracing.results.site_kinds import CIRCUIT_TESTS, CIRCUITS

GRAPHS = {"nodes": node_graph, "edges": edge_graph}


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemGrid(Grid):
    """Cells that are sets of a graph's items: `members` says which are inside, and whether the embedding is too."""

    graph: Graph

    @property
    def needs(self) -> tuple[str, ...]:
        """What the graph needs."""
        return self.graph.needs

    def written(self) -> list[tuple[str, int]]:
        """All nodes, and the embedding."""
        return self.graph.written()

    def members(self, at: At) -> tuple[frozenset[int], bool]:
        """The items inside a cell's set, and whether the embedding is."""
        raise NotImplementedError

    def count(self, pair: TokenPair) -> int:
        """A world for each cell."""
        return sum(1 for _ in self.cells())

    def edits(
        self, at: At, pair: TokenPair, contrast: Contrast, arm: Arm, base: Run, donor: Run
    ) -> Iterator[tuple[Edit, ...]]:
        """One world."""
        inside, embedded = self.members(at)
        yield self.graph.edits(inside, pair, contrast, arm, donor, embedded=embedded)


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitGrid(ItemGrid):
    """A cell for each size: the first so many of `ranked`; none, and all, at the ends.

    `keep_input`: every set but the empty one has the embedding. `weights` are the weighted sizes, and `added` says what
    each size adds to those before it: known beforehand, for labels are asked for often, and edges are many.
    """

    ranked: tuple[int, ...]
    sizes: tuple[int, ...]
    keep_input: bool
    weights: tuple[float, ...]
    added: tuple[str, ...]

    @property
    def labels(self) -> dict[str, Any]:
        """How many items there are, their weighted size, and which ones each size adds."""
        return {
            "component": labelled(self.components),
            "size": list(self.sizes),
            "weighted_size": ("size", np.array(self.weights)),
            "added": ("size", np.array(self.added, dtype=object)),
        }

    @property
    def slices(self) -> int:
        """Its sizes."""
        return len(self.sizes)

    def cells(self, slices: Sequence[int] | None = None) -> Iterator[At]:
        """One for each size."""
        yield from ((0, n) for n in (range(self.slices) if slices is None else slices))

    def members(self, at: At) -> tuple[frozenset[int], bool]:
        """The first ones; with everything goes the embedding."""
        size = self.sizes[at[1]]
        # With everything kept nothing is ablated: the last cell is the unedited run, whatever is said of the input.
        everything = size == len(self.graph.names)
        return frozenset(_first(self.graph, self.ranked, size)), everything or (self.keep_input and size > 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovalGrid(ItemGrid):
    """A cell for each K that is taken out of a set (`circuit`) and out of everything (`model`).

    `removed` holds these K by what they are called; those behind the first `of_both` are taken out of the set alone.
    """

    circuit: tuple[int, ...]
    removed: dict[str, tuple[int, ...]]
    of_both: int
    keep_input: bool

    @property
    def labels(self) -> dict[str, Any]:
        """What was taken out, by name and one by one."""
        nodes = ["; ".join(self.graph.names[number] for number in each) for each in self.removed.values()]
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

    def members(self, at: At) -> tuple[frozenset[int], bool]:
        """What is left of the set, or of the model; the model has the embedding, whatever the set has."""
        whole = self.circuit if at[0] == 0 else range(len(self.graph.names))
        return frozenset(whole).difference([*self.removed.values()][at[1]]), self.keep_input or at[0] == 1


def circuit_grids(model: Model, pairs: Sequence[TokenPair], options: Options) -> Iterator[Grid]:
    """What the options ask for. Raises InvalidOption, InvalidPair, ComponentNotOffered."""
    if not options.circuit:
        return
    graph = GRAPHS[options.circuit_of](model)
    ranked = ranked_items(graph, options.circuit, options.circuit_by)
    for pair in pairs:
        check_one_to_one(pair)
    common = {
        "layers": model.active,
        "columns": (),
        "arms": (DIRECTIONS[direction_of_circuit(options.circuit_how)],),
        "graph": graph,
        # Restored with the embedding every set would be the clean run, whatever is in it.
        "keep_input": options.circuit_input and options.circuit_how == "kept",
    }
    sizes = _sizes(options.circuit_sizes, len(ranked), graph)
    yield CircuitGrid(
        kind=CIRCUITS,
        components=(graph.of,),
        ranked=ranked,
        sizes=sizes,
        weights=tuple(graph.weighted(_first(graph, ranked, size)) for size in sizes),
        added=_added(graph, ranked, sizes),
        **common,
    )
    if options.circuit_tested is not None:
        circuit = ranked[: _tested_size(options.circuit_tested, len(ranked), graph)]
        removed, of_both = _removed(graph, circuit, options.circuit_subsets, options.seed)
        kind = CIRCUIT_TESTS
        tested = {"circuit": circuit, "removed": removed, "of_both": of_both}
        yield RemovalGrid(kind=kind, components=kind.components, **tested, **common)


def _first(graph: Graph, ranked: Sequence[int], size: int) -> Sequence[int]:
    """The first so many: all there are, whether they were ranked or not, or the first of the ranking."""
    every = range(len(graph.names))
    return every if size == len(every) else ranked[:size]


def _added(graph: Graph, ranked: Sequence[int], sizes: Sequence[int]) -> tuple[str, ...]:
    """What each size adds to those before it; nothing is said of what was not ranked."""
    ends = zip((0, *sizes), sizes, strict=False)
    added = (ranked[start:size] if size <= len(ranked) else () for start, size in ends)
    return tuple("; ".join(graph.names[number] for number in each) for each in added)


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


def _sizes(asked: Sequence[int | float] | None, ranked: int, graph: Graph) -> tuple[int, ...]:
    """The sizes that are measured, with both ends; by default those of MIB's shares that the ranking reaches."""
    every = len(graph.names)
    if asked is None:
        found = [size for share in MIB_SHARES if (size := size_of(share, every)) <= ranked] + [ranked]
    else:
        found = [_one_size(size, ranked, graph, "circuit_sizes=") for size in asked]
    return tuple(sorted({0, *found, every}))


def _one_size(size: int | float, ranked: int, graph: Graph, option: str) -> int:
    """How many items a size is: so many of the ranking, or all there are. Raises InvalidOption for others."""
    every = len(graph.names)
    found = size_of(size, every)
    if found > ranked and found != every:
        raise InvalidOption(
            f"{option} asks for {found} {graph.of}, and circuit= ranks {ranked} of the model's {every}: which come "
            "next is not said. Rank more, or ask for fewer."
        )
    return found


def _tested_size(asked: int | float, ranked: int, graph: Graph) -> int:
    """The size of the set that is tested, whose items are taken out one by one: all of them must be ranked."""
    size = _one_size(asked, ranked, graph, "circuit_tested=")
    if size > ranked:
        raise InvalidOption(
            f"circuit_tested= asks for all {size} {graph.of}, and circuit= names {ranked}: rank all of them."
        )
    return size


def _removed(graph: Graph, circuit: Sequence[int], subsets: int, seed: int) -> tuple[dict[str, tuple[int, ...]], int]:
    """What is taken out: nothing, each item, random subsets; then those again with each other item beside them."""
    names = graph.names
    found: dict[str, tuple[int, ...]] = {NOTHING: ()} | {names[number]: (number,) for number in circuit}
    drawn = {f"random {n}": some for n, some in enumerate(_subsets(circuit, subsets, seed), start=1)}
    found |= drawn
    beside = {
        f"{name} and {names[number]}": (*some, number)
        for name, some in drawn.items()
        for number in circuit
        if number not in some
    }
    return found | beside, len(found)


def _subsets(circuit: Sequence[int], count: int, seed: int) -> list[tuple[int, ...]]:
    """So many random subsets, none of them twice; all that there are, where these are fewer.

    Of two items at least, since single ones are all measured, and never of all of them.
    """
    random, drawn = np.random.default_rng(seed), dict[tuple[int, ...], None]()
    while len(drawn) < min(count, subsets_of(len(circuit))):
        inside = random.permutation(len(circuit))[: random.integers(2, len(circuit))]
        drawn[tuple(circuit[place] for place in sorted(inside))] = None
    return [*drawn]
