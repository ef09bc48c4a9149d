"""Keys that are hidden from a query, in windows of layers or single heads; and how sets of keys are named.

A cell is a set of keys, in a layer (or a window of layers), of all heads together or of one. Unlike other sites, the
tokens of a role are taken together: single keys stand in for one another, so that a mean over them says little.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from causal_tracing.errors import InvalidOption, InvalidPair
from causal_tracing.interventions.edits import Attending, Edit, Run
from causal_tracing.interventions.sites import ATTENTION, Site
from causal_tracing.models.model import Model
from causal_tracing.patching.columns import check_column, from_the_left
from causal_tracing.patching.contrast import Contrast
from causal_tracing.patching.grid import At, Grid, layers_having, window_labels
from causal_tracing.patching.options.attention import OF_KNOCKOUT
from causal_tracing.patching.options.trace import Options
from causal_tracing.patching.windows import Windows, plan_windows
from causal_tracing.prompts.pairs import TokenPair
from causal_tracing.prompts.tokens import Column, TokenPrompt
from causal_tracing.results.arms import DIRECTIONS, Arm
from causal_tracing.results.site_kinds import KNOCKOUT, KNOCKOUT_HEADS

# Keys that are named beside roles and spans. The first token is often a sink: most of the weight goes there, and
# hiding it changes how much all others get (docs/attention.md).
KEY_SETS = ("subject", "subject_but_first", "non_subject", "first")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyGrid(Grid):
    """Sets of keys (`columns`) as a query sees them, by `heads` of each layer; none where all are taken together."""

    heads: Mapping[int, Sequence[int]] = field(default_factory=dict)

    @property
    def needs(self) -> tuple[str, ...]:
        """Whatever the cells are called, attention is what is written at."""
        return (ATTENTION,)

    @property
    def labels(self) -> dict[str, Any]:
        """The numbers of the heads too."""
        labels = super(KeyGrid, self).labels
        return labels | {"head": np.arange(1 + max(map(max, self.heads.values())))} if self.heads else labels

    def places(self, component: int, layer: int, column: int) -> Iterator[At]:
        """One place, or one for each head."""
        if not self.heads:
            yield component, layer, column
        else:
            yield from ((component, layer, head, column) for head in self.heads[self.layers[layer]])

    def head(self, at: At) -> int | None:
        """The head of a cell; None where it is all of them."""
        return at[2] if self.heads else None

    def count(self, pair: TokenPair) -> int:
        """A world for each cell whose keys the pair has."""
        found = [bool(keys_of(pair.clean, column)) for column in self.columns]
        return len(self.arms) * sum(found[at[-1]] for at in self.cells())


@dataclass(frozen=True, slots=True, kw_only=True)
class KnockoutGrid(KeyGrid):
    """Keys that a query of the clean run cannot see, in windows of layers; `zeroed`: their weight is taken instead.

    Of a window those layers count that attend (`attending`): the others have no keys to hide.
    """

    query: Column
    windows: Windows
    attending: tuple[int, ...]
    zeroed: bool = False

    @property
    def labels(self) -> dict[str, Any]:
        """The first and the last layer of each window too."""
        around = [[self.windows.layers(ATTENTION, layer) for layer in self.layers]]
        return super(KnockoutGrid, self).labels | (window_labels(around) if self.windows.wide else {})

    def edits(
        self, at: At, pair: TokenPair, contrast: Contrast, arm: Arm, base: Run, donor: Run
    ) -> Iterator[tuple[Edit, ...]]:
        """One world, in which all of these keys are hidden in the whole window."""
        keys, window = keys_of(pair.clean, self.columns[at[-1]]), self.windows.layers(ATTENTION, self.layers[at[1]])
        how = Attending(zeroed=keys) if self.zeroed else Attending(blocked=keys)
        sites = [
            Site(ATTENTION, layer, query, self.head(at))
            for layer in window
            if layer in self.attending
            for query in queries_of(pair.clean, self.query)
        ]
        if keys and sites:
            yield tuple(Edit(site, how) for site in sites)


def keys_of(prompt: TokenPrompt, column: Column) -> tuple[int, ...]:
    """The positions that a name of keys stands for in a prompt: a position, a role, a span, or one of `KEY_SETS`."""
    if isinstance(column, int):
        return (column,) if 0 <= column < len(prompt.tokens) else ()
    named = prompt.positions(column)
    # A span of the pair's may be called as a set is: then it is the span that is meant.
    if named or column not in KEY_SETS:
        return named
    subject, everything = {*prompt.subject}, range(len(prompt.tokens))
    sets = {
        "subject": prompt.subject,
        "subject_but_first": tuple(sorted(subject - {0})),
        # Without the last token, as in Geva et al. 2023: it is the query itself.
        "non_subject": tuple(position for position in everything[:-1] if position not in subject),
        "first": (0,),
    }
    return tuple(sets[column])


def queries_of(prompt: TokenPrompt, query: Column) -> tuple[int, ...]:
    """The positions of the query: several where a role has several tokens, all of which attend otherwise."""
    if isinstance(query, int):
        position = query + len(prompt.tokens) if query < 0 else query
        return (position,) if 0 <= position < len(prompt.tokens) else ()
    return prompt.positions(query)


def knockout_grids(model: Model, pairs: Sequence[TokenPair], options: Options) -> list[Grid]:
    """What is hidden from queries, kind by kind. Raises InvalidOption, InvalidPair, ComponentNotOffered."""
    if not options.knockout:
        return []
    model.anatomy.require(ATTENTION)
    kinds = ("layers",) if options.knockout is True else tuple(options.knockout)
    return [_knockout(model, pairs, options, heads=kind == "heads") for kind in OF_KNOCKOUT if kind in kinds]


def _knockout(model: Model, pairs: Sequence[TokenPair], options: Options, *, heads: bool) -> KnockoutGrid:
    columns, zeroed = columns_named(pairs, options.knockout_keys), options.knockout_by == "zeroed"
    for pair in pairs:
        check_query(pair, options.knockout_query)
        # Of no key at all a softmax is NaN, or even; weights that are taken away behind it may all be.
        if not zeroed:
            _check_sight(pair, options.knockout_query, columns)
    width = 1 if heads else options.knockout_window
    return KnockoutGrid(
        kind=KNOCKOUT_HEADS if heads else KNOCKOUT,
        components=(ATTENTION,),
        layers=layers_having(model, ATTENTION, options.layers),
        columns=columns,
        # Nothing of another run is put there that could bring something back.
        arms=(DIRECTIONS["disruption"],),
        query=options.knockout_query,
        heads=heads_of(model) if heads else {},
        windows=plan_windows((ATTENTION,), width, model.active, rome=options.knockout_cut),
        attending=model.having(ATTENTION),
        zeroed=zeroed,
    )


def heads_of(model: Model) -> dict[int, Sequence[int]]:
    """All heads of the layers that attend, by layer."""
    return {layer: range(model.parts(ATTENTION, layer)) for layer in model.having(ATTENTION)}


def columns_named(
    pairs: Sequence[TokenPair], named: Column | Sequence[Column], *, what: str = "keys", more: Sequence[str] = KEY_SETS
) -> tuple[Column, ...]:
    """The keys (or queries) that are asked for, as positions from the left and names. Raises InvalidOption."""
    longest = max(len(pair.clean.tokens) for pair in pairs)
    if isinstance(named, str) and named == "each":
        return tuple(range(longest))
    listed = (named,) if isinstance(named, (str, int)) else named
    asked = tuple(column if isinstance(column, str) else int(column) for column in listed)  # of numpy's, say
    # A position from the right is one place only where all prompts are equally long.
    alike = len({len(pair.clean.tokens) for pair in pairs}) == 1
    columns = tuple(from_the_left(column, longest) if alike else column for column in asked)
    for name, column in zip(asked, columns, strict=True):
        from_the_right = isinstance(column, int) and column < 0
        there = keys_of if more else queries_of
        if from_the_right or not any(there(pair.clean, column) for pair in pairs):
            check_column(pairs, name, more)
    if len({str(column) for column in columns}) < len(columns):
        raise InvalidOption(f"The {what} {', '.join(map(str, asked))} name one place twice. Name each once.")
    return columns


def check_query(pair: TokenPair, query: Column) -> None:
    """Raises InvalidPair where a pair has no such token."""
    if not queries_of(pair.clean, query):
        raise InvalidPair(
            f"pair {pair.id!r} has no token {query!r} that could attend: its clean prompt has {len(pair.clean.tokens)} "
            'tokens. Name a position, a role or a span that every pair has, such as "last".'
        )


def _check_sight(pair: TokenPair, query: Column, columns: Sequence[Column]) -> None:
    """Raises InvalidPair where a query would see nothing at all."""
    for column in columns:
        keys = {*keys_of(pair.clean, column)}
        for position in queries_of(pair.clean, query):
            if keys >= {*range(position + 1)}:
                raise InvalidPair(
                    f"pair {pair.id!r}: the query at position {position} sees no other keys than {column!r} "
                    f"(positions 0 to {position}), and one must be left. Name fewer keys, a later query, or "
                    'knockout_by="zeroed", which takes their weight away and gives it to no other.'
                )
