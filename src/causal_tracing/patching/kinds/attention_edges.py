"""Single edges of attention: what a query of one head sees at a key, as the other run has it.

1. Of one query: cells are (layer, head) x key.
2. Of several queries: each head has a map of its own, query x key. A query before the token that is read acts through
   what later tokens read of it alone, and keys behind a query are structural zeros.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from causal_tracing import validation
from causal_tracing.errors import InvalidOption
from causal_tracing.interventions.edits import Attending, Edit, From, Run
from causal_tracing.interventions.sites import ATTENTION, Site
from causal_tracing.models.model import Model
from causal_tracing.patching.contrast import Contrast
from causal_tracing.patching.grid import At, arms_of, layers_having
from causal_tracing.patching.kinds.attending import KeyGrid, check_query, columns_named, heads_of, keys_of, queries_of
from causal_tracing.patching.options.attention import heads_named
from causal_tracing.patching.options.trace import Options
from causal_tracing.prompts.pairs import TokenPair
from causal_tracing.prompts.tokens import Column
from causal_tracing.results.arms import Arm
from causal_tracing.results.columns import labelled
from causal_tracing.results.site_kinds import EDGES, EDGES_BY_QUERY

MOST_CELLS = 200_000  # of a map by query: more take hours, and say little one by one

Heads = Mapping[int, Sequence[int]]  # by layer


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeGrid(KeyGrid):
    """Keys, values, or a query's scores with these keys, as the donor has them, for this query and one head alone."""

    queries: tuple[Column, ...]
    chosen: Heads

    def places(self, component: int, layer: int, column: int) -> Iterator[At]:
        """One for each head that is asked for."""
        yield from ((component, layer, head, column) for head in self.chosen[self.layers[layer]])

    def asked(self, at: At) -> tuple[int, int, Column]:
        """The layer, the head and the query of a cell."""
        return self.layers[at[1]], at[2], self.queries[0]

    def edits(
        self, at: At, pair: TokenPair, contrast: Contrast, arm: Arm, base: Run, donor: Run
    ) -> Iterator[tuple[Edit, ...]]:
        """One world, in which the query sees what the donor has at all of these keys."""
        layer, head, asks = self.asked(at)
        part = self.components[at[0]].removesuffix("_edge")
        keys = _paired(pair, keys_of(pair.clean, self.columns[at[-1]]), arm)
        edits = []
        for query, query_there in _paired(pair, queries_of(pair.clean, asks), arm):
            # A score by the donor's query is read where that query is, a key or a value where the key is.
            seen = tuple((key, From(donor, query_there if part == "q" else there)) for key, there in keys)
            edits.append(Edit(Site(ATTENTION, layer, query, head), replace(Attending(), **{part: seen})))
        if keys and edits:
            yield tuple(edits)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryGrid(EdgeGrid):
    """A map of queries by keys for each head, of those that are `listed` by layer and number."""

    listed: tuple[tuple[int, int], ...]

    @property
    def labels(self) -> dict[str, Any]:
        """The heads by name, and the queries."""
        names = labelled([f"{layer}.{head}" for layer, head in self.listed])
        return {
            "component": labelled(self.components),
            "head": names,
            "query": labelled(self.queries),
            "position": labelled(self.columns),
        }

    @property
    def slices(self) -> int:
        """Its heads."""
        return len(self.listed)

    def cells(self, slices: Sequence[int] | None = None) -> Iterator[At]:
        """All queries and keys of each head."""
        heads = range(self.slices) if slices is None else slices
        yield from product(range(len(self.components)), heads, range(len(self.queries)), range(len(self.columns)))

    def count(self, pair: TokenPair) -> int:
        """A world for each query and key that the pair has."""
        queries = sum(bool(queries_of(pair.clean, query)) for query in self.queries)
        keys = sum(bool(keys_of(pair.clean, column)) for column in self.columns)
        return len(self.arms) * len(self.components) * self.slices * queries * keys

    def asked(self, at: At) -> tuple[int, int, Column]:
        """The layer, the head and the query of a cell."""
        return (*self.listed[at[1]], self.queries[at[2]])


def edge_grids(
    model: Model, pairs: Sequence[TokenPair], options: Options, directions: Sequence[str]
) -> Iterator[EdgeGrid]:
    """The edges that are asked for, if any. Raises InvalidOption, InvalidPair, ComponentNotOffered."""
    if not options.edges:
        return
    model.anatomy.require(ATTENTION)
    parts = ("v",) if options.edges is True else tuple(options.edges)
    chosen, asked = _heads(model, options), options.edge_query
    common: dict[str, Any] = {
        "components": tuple(f"{part}_edge" for part in parts),
        "layers": tuple(chosen),
        "columns": columns_named(pairs, options.edge_keys),
        "arms": arms_of(directions),
        "heads": heads_of(model),
        "chosen": chosen,
    }
    if isinstance(asked, (int, str)) and asked != "each":
        for pair in pairs:
            check_query(pair, asked)
        yield EdgeGrid(kind=EDGES, queries=(asked,), **common)
        return
    queries = columns_named(pairs, asked, what="queries", more=())
    listed = tuple((layer, head) for layer, heads in chosen.items() for head in heads)
    grid = QueryGrid(kind=EDGES_BY_QUERY, queries=queries, listed=listed, **common)
    _check_size(grid)
    yield grid


def _heads(model: Model, options: Options) -> dict[int, Sequence[int]]:
    """The heads that are asked for, by layer: those that are named, else all of the layers. Raises InvalidOption."""
    there = heads_of(model)
    if options.edge_heads is None:
        return {layer: there[layer] for layer in layers_having(model, ATTENTION, options.layers)}
    found: dict[int, list[int]] = {}
    for text in options.edge_heads:
        (first, last), heads = heads_named(text)
        validation.numbered("layer", [last], model.num_layers, model.name)
        for layer in range(first, last + 1):
            model.anatomy.require_layer(layer, ATTENTION)
            first_head, last_head = heads or (0, len(there[layer]) - 1)
            validation.numbered("head", [last_head], len(there[layer]), f"layer {layer} of {model.name}")
            found.setdefault(layer, []).extend(range(first_head, last_head + 1))
    validation.once("head", [f"{layer}.{head}" for layer, heads in found.items() for head in heads])
    return {layer: sorted(found[layer]) for layer in sorted(found)}


def _check_size(grid: QueryGrid) -> None:
    """Raises InvalidOption where a map by query is too large."""
    cells = grid.slices * len(grid.components) * len(grid.queries) * len(grid.columns)
    if cells > MOST_CELLS:
        raise InvalidOption(
            f"edges= of {grid.slices:,} heads by {len(grid.components)} of q, k, v, from {len(grid.queries):,} queries "
            f"to {len(grid.columns):,} keys are {cells:,} cells: more than {MOST_CELLS:,} take hours. Name fewer heads "
            '(edge_heads=["23.4", …], or layers=), queries (edge_query=) or keys (edge_keys=).'
        )


def _paired(pair: TokenPair, positions: Sequence[int], arm: Arm) -> list[tuple[int, int]]:
    """Positions of the clean prompt as those of the base run and of the donor, where they are paired."""
    slots = [slot for slot in pair.slots if slot.clean in positions]
    return [(slot.corrupt, slot.clean) if arm.restores else (slot.clean, slot.corrupt) for slot in slots]
