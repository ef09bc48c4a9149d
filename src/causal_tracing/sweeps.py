"""From a pair to worlds: every cell of the map, as the what-if that measures it.

A cell is (direction, component, layer, column). A column is a token position, a role, or all positions together;
a role's cell is the mean over one world for each of its tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from causal_tracing.edits import Edit, From, Run, World
from causal_tracing.errors import InvalidOption, InvalidPair, nearest
from causal_tracing.model import Model
from causal_tracing.prompts import ROLES, TokenPair
from causal_tracing.sites import COMPONENTS, Site

DIRECTIONS = ("restoration", "disruption")
Column = int | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What is patched: components, layers, columns (positions, roles, or "together"), in which directions."""

    components: tuple[str, ...]
    layers: tuple[int, ...]
    columns: tuple[Column, ...]
    directions: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One world of the map, and where its number belongs (indices into the sweep)."""

    direction: str
    component: int
    layer: int
    column: int
    world: World

    @property
    def at(self) -> tuple[int, int, int]:
        """Where the number belongs in the map of its direction: component, layer, column."""
        return self.component, self.layer, self.column


def plan_sweep(
    model: Model,
    pairs: Sequence[TokenPair],
    *,
    components: Sequence[str],
    layers: Sequence[int] | None,
    positions: str | Sequence[Column],
    directions: Sequence[str],
) -> Sweep:
    """The sweep that the options describe, on this model, for these pairs.

    Raises InvalidOption or ComponentNotOffered, with what is possible.
    """
    check_names("component", components, COMPONENTS)
    check_names("direction", directions, DIRECTIONS)
    for component in components:
        model.anatomy.require(component)
    return Sweep(
        components=tuple(dict.fromkeys(components)),
        layers=checked_layers(model, layers),
        columns=resolved_columns(pairs, positions),
        directions=tuple(name for name in DIRECTIONS if name in directions),
    )


def cells(pair: TokenPair, sweep: Sweep, number: int) -> Iterator[Cell]:
    """Every world of the pair's map; `number` is the pair's, by which its logits are measured."""
    clean, corrupt = Run(pair.clean.tokens), Run(pair.corrupt.tokens)
    last = (len(clean.tokens) - 1,)
    for direction in sweep.directions:
        base, donor = (corrupt, clean) if direction == "restoration" else (clean, corrupt)
        for c, component in enumerate(sweep.components):
            for n, layer in enumerate(sweep.layers):
                for k, column in enumerate(sweep.columns):
                    for patched in patched_together(pair, column):
                        edits = tuple(Edit(Site(component, layer, p), From(donor, p)) for p in patched)
                        world = World(base, edits, last, number)
                        yield Cell(direction=direction, component=c, layer=n, column=k, world=world)


def worlds_of(pair: TokenPair, sweep: Sweep, number: int) -> tuple[list[World], list[Cell]]:
    """The pair's two unedited runs, clean first, and the cells of its map."""
    last = (len(pair.clean.tokens) - 1,)
    unedited = [World(Run(prompt.tokens), (), last, number) for prompt in (pair.clean, pair.corrupt)]
    return unedited, list(cells(pair, sweep, number))


def patched_together(pair: TokenPair, column: Column) -> list[tuple[int, ...]]:
    """The worlds of a column: for each, the positions that it patches. Empty where the pair has no such token."""
    length = len(pair.clean.tokens)
    if column == "together":
        return [tuple(range(length))]
    if isinstance(column, int):
        return [(column,)] if 0 <= column < length else []
    return [(position,) for position in pair.clean.positions(column)]


def checked_layers(model: Model, layers: Sequence[int] | None) -> tuple[int, ...]:
    """The layers asked for, in order (None: all). Raises InvalidOption."""
    layers = range(model.num_layers) if layers is None else layers
    for layer in layers:
        if not 0 <= layer < model.num_layers:
            raise InvalidOption(f"There is no layer {layer}: {model.name} has layers 0 to {model.num_layers - 1}.")
    return tuple(sorted(set(layers)))


def resolved_columns(pairs: Sequence[TokenPair], positions: str | Sequence[Column]) -> tuple[Column, ...]:
    """The columns that `positions` asks for, as positions from the left, roles, or "together". Raises InvalidOption."""
    if positions == "each":
        return tuple(range(max(len(pair.clean.tokens) for pair in pairs)))
    columns: tuple[Column, ...] = (positions,) if isinstance(positions, str) else tuple(dict.fromkeys(positions))
    if not columns:
        raise InvalidOption('positions= is empty. Use "each", "together", token positions, or roles.')
    lengths = {len(pair.clean.tokens) for pair in pairs}
    if len(lengths) == 1:  # positions from the right mean the same token in every pair
        columns = tuple(
            column + min(lengths) if isinstance(column, int) and column < 0 else column for column in columns
        )
    for column in columns:
        if isinstance(column, str):
            _check_role(pairs, column)
        elif not any(patched_together(pair, column) for pair in pairs):
            hint = ' Prompts of different lengths share no positions from the right but "last".' if column < 0 else ""
            raise InvalidOption(f"There is no position {column}: the longest prompt has {max(lengths)} tokens.{hint}")
    return columns


def _check_role(pairs: Sequence[TokenPair], column: str) -> None:
    spans = {name for pair in pairs for name in pair.clean.spans}
    if column == "together":
        return
    if column not in (*ROLES, *spans):
        raise InvalidOption(f"There is no position {column!r}. {nearest(column, ('each', 'together', *ROLES, *spans))}")
    if not any(pair.clean.positions(column) for pair in pairs):
        hint = " Give the pairs a subject=." if "subject" in column or column in ("next", "further") else ""
        raise InvalidOption(f"No pair has a token in the role {column!r}.{hint}")
    for pair in pairs:
        here, there = pair.clean.positions(column), pair.corrupt.positions(column)
        if there and here != there:
            raise InvalidPair(
                f"pair {pair.id!r}: the role {column!r} is at {_listed(here)} in the clean prompt and at "
                f"{_listed(there)} in the corrupt one, but tokens are patched position by position. "
                "Ask for positions by number, or word the prompts alike."
            )


def _listed(positions: tuple[int, ...]) -> str:
    return "position " + ", ".join(map(str, positions)) if positions else "no position"


def check_names(what: str, names: Sequence[str], valid: Sequence[str]) -> None:
    """Raises InvalidOption where the names are none, or not a list of valid ones."""
    if isinstance(names, str):
        raise InvalidOption(f"Give the {what}s as a list, such as [{names!r}].")
    if not names:
        raise InvalidOption(f"No {what} was asked for. Valid: {', '.join(valid)}.")
    for name in names:
        if name not in valid:
            raise InvalidOption(f"There is no {what} {name!r}. {nearest(name, valid)}")
