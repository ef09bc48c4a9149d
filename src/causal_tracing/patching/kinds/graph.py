"""What circuits are sets of: the nodes of a model, or the edges between them. A set is told by numbers of its items."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from causal_tracing import validation
from causal_tracing.errors import InvalidOption, nearest
from causal_tracing.interventions.edits import Edit, Run
from causal_tracing.models.model import Model
from causal_tracing.patching.contrast import Contrast
from causal_tracing.patching.kinds.nodes import INPUT, name_of, node_named, nodes_of, readers_of, weighted_size
from causal_tracing.patching.named_sites import NamedSite
from causal_tracing.prompts.pairs import TokenPair
from causal_tracing.results.arms import Arm

ASKED = "circuit="
Made = dict[Any, dict[NamedSite, tuple[Edit, ...]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """Items by name in computation order, `of` what they are called ("nodes"), and the world of each set of them.

    `sites` are what is written at: the nodes, the embedding first.
    """

    of: str
    names: tuple[str, ...]
    sites: tuple[NamedSite, ...]
    made: Made = field(default_factory=dict, compare=False, repr=False)

    @property
    def needs(self) -> tuple[str, ...]:
        """The components that a backend must offer."""
        return tuple(dict.fromkeys(site.component for site in self.sites))

    def written(self) -> list[tuple[str, int]]:
        """The components and layers of the sites."""
        return list(dict.fromkeys((site.component, site.layers[0]) for site in self.sites if site.layers))

    def weighted(self, kept: Sequence[int]) -> float:
        """The weighted size of a set."""
        raise NotImplementedError

    def edits(
        self, inside: Set[int], pair: TokenPair, contrast: Contrast, arm: Arm, donor: Run, *, embedded: bool
    ) -> tuple[Edit, ...]:
        """What makes the world of a set: what is inside is restored, or what is outside is ablated.

        `embedded` says whether the embedding is inside, where it is no item itself.
        """
        raise NotImplementedError

    def of_sites(
        self, sites: Sequence[NamedSite], pair: TokenPair, contrast: Contrast, arm: Arm, donor: Run
    ) -> tuple[Edit, ...]:
        """What is written at these sites, token by token."""
        key = (contrast, donor, arm.restores)
        if key not in self.made:
            # Of one pair and direction at a time: the edits of all pairs would pile up.
            self.made.clear()
            self.made[key] = {}
        # Thousands of edits a world, and most are in most worlds of a pair: each is made once.
        made = self.made[key]
        for site in sites:
            if site not in made:
                made[site] = tuple(site.edits(pair, contrast, donor, restores=arm.restores))
        return tuple(edit for site in sites for edit in made[site])

    def numbers(self, text: str) -> Sequence[int]:
        """The items that a text names. Raises InvalidOption."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGraph(Graph):
    """Sets of nodes. `readers` says by name which nodes can read a node."""

    readers: Mapping[str, Sequence[str]]

    @property
    def nodes(self) -> tuple[NamedSite, ...]:
        """The nodes."""
        return self.sites[1:]

    def weighted(self, kept: Sequence[int]) -> float:
        """The number of edges among nodes, weighted."""
        return weighted_size([self.nodes[number] for number in kept], self.readers)

    def edits(
        self, inside: Set[int], pair: TokenPair, contrast: Contrast, arm: Arm, donor: Run, *, embedded: bool
    ) -> tuple[Edit, ...]:
        """Nodes inside are restored, or nodes outside are ablated."""
        sites = [node for number, node in enumerate(self.nodes) if (number in inside) == arm.restores]
        at_input = [INPUT] if embedded == arm.restores else []
        return self.of_sites([*sites, *at_input], pair, contrast, arm, donor)

    def numbers(self, text: str) -> Sequence[int]:
        """The nodes that a text names."""
        places = {name: number for number, name in enumerate(self.names)}
        found = [name_of(node) for node in node_named(text)]
        for name in found:
            if name not in places:
                raise InvalidOption(f"{ASKED} names {text!r}, which is no node of this model. {nearest(name, places)}")
        return [places[name] for name in found]


def node_graph(model: Model) -> NodeGraph:
    """All nodes of a model. Raises ComponentNotOffered."""
    nodes = nodes_of(model)
    names = tuple(map(name_of, nodes))
    return NodeGraph(of="nodes", names=names, sites=(INPUT, *nodes), readers=readers_of(nodes, model))


def ranked_items(graph: Graph, ranking: Mapping[str, float] | Sequence[str], by: str) -> tuple[int, ...]:
    """The items of a ranking by number, first to last. Raises InvalidOption for what is none of the graph's.

    Scores are ranked `by` "size", whatever their sign, or by "sign", the most positive first; equal ones are in
    computation order, whatever order they were given in. Names are in the order that they were given in.
    """
    known = {name: (number,) for number, name in enumerate(graph.names)}
    # Full names are looked up, and only what else is named is parsed: rankings of edges have tens of thousands.
    named = [(number, text) for text in ranking for number in known.get(text) or graph.numbers(text)]
    validation.once(graph.of.removesuffix("s"), [graph.names[number] for number, _ in named])
    if isinstance(ranking, Mapping):
        scores = {number: float(ranking[text]) for number, text in named}
        order = {number: -(abs(score) if by == "size" else score) for number, score in scores.items()}
        named = sorted(named, key=lambda each: (order[each[0]], each[0]))
    return tuple(number for number, _ in named)
