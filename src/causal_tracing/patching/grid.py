"""From a pair to worlds: every cell of the map, as the what-if that measures it.

A cell is (arm, component, layer, column). A column is a token position, a role, or all positions together; a role's
cell is the mean over one world for each of its tokens. The arms: restoration and disruption; for windows of layers
the sum of what each of their layers does alone (`_sum`); and restoration of the stream with the MLPs or the attention
behind it severed. Where noise corrupts, or donors are drawn, every cell has a world for each draw.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from causal_tracing import validation
from causal_tracing.errors import InvalidOption
from causal_tracing.interventions.edits import Edit, From, Run, World
from causal_tracing.interventions.sites import COMPONENTS, RESIDUAL, Site
from causal_tracing.models.model import Model
from causal_tracing.patching.columns import Column, patched_together, resolved_columns
from causal_tracing.patching.contrast import Contrast
from causal_tracing.patching.windows import Window, Windows, plan_windows
from causal_tracing.prompts.alignment import Slot
from causal_tracing.prompts.pairs import TokenPair

DIRECTIONS = ("restoration", "disruption")


SEVERABLE = ("attn_out", "mlp_out")


# What comes after a site in its own layer.
BEFORE = (("resid_pre", "attn_out"), ("resid_pre", "mlp_out"), ("resid_mid", "mlp_out"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What is patched: components, layers, columns (positions, roles, or "together"), in which directions."""

    components: tuple[str, ...]
    layers: tuple[int, ...]
    columns: tuple[Column, ...]
    directions: tuple[str, ...]
    windows: Windows
    sums: bool = True
    severed: tuple[str, ...] = ()

    @property
    def arms(self) -> tuple[str, ...]:
        """What is measured in each cell, as names of effects."""
        wide = self.sums and self.windows.wide
        sums = tuple(f"{direction}_sum" for direction in self.directions) if wide else ()
        return (*self.directions, *sums, *(f"severed_{part}" for part in self.severed))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One world of the map, and where its number belongs (indices into the sweep, and the draw)."""

    arm: str
    draw: int
    component: int
    layer: int
    column: int
    world: World

    @property
    def at(self) -> tuple[int, int, int]:
        """Where the number belongs in the map of its arm: component, layer, column."""
        return self.component, self.layer, self.column


def plan_sweep(
    model: Model,
    pairs: Sequence[TokenPair],
    *,
    components: Sequence[str],
    layers: Sequence[int] | None,
    positions: str | Sequence[Column],
    directions: Sequence[str],
    window: Window = 1,
    window_sums: bool = True,
    sever: Sequence[str] = (),
    rome: bool = False,
) -> Sweep:
    """The sweep that the options describe, on this model, for these pairs.

    Raises InvalidOption or ComponentNotOffered, with what is possible.
    """
    validation.names("component", components, COMPONENTS)
    validation.names("direction", directions, DIRECTIONS)
    components = tuple(dict.fromkeys(components))
    if sever not in ((), []):
        _check_severed(components, directions, sever)
    for component in (*components, *sever):
        model.anatomy.require(component)
    return Sweep(
        components=components,
        layers=checked_layers(model, layers),
        columns=resolved_columns(pairs, positions),
        directions=tuple(name for name in DIRECTIONS if name in directions),
        windows=plan_windows(components, window, model.num_layers, rome=rome),
        sums=window_sums,
        severed=tuple(dict.fromkeys(sever)),
    )


def _check_severed(components: Sequence[str], directions: Sequence[str], sever: Sequence[str]) -> None:
    validation.names("part to sever", sever, SEVERABLE)
    if "restoration" not in directions or not {*components} & {*RESIDUAL}:
        raise InvalidOption(
            "A severed effect is a restoration of the residual stream: keep restoration among the directions, and one "
            f"of {', '.join(RESIDUAL)} among the components."
        )


def cells(
    pair: TokenPair, contrast: Contrast, sweep: Sweep, number: int, arms: Sequence[str] | None = None
) -> Iterator[Cell]:
    """Every world of the pair's map (of these arms); `number` is the pair's, by which its logits are measured."""
    for draw in range(contrast.draws):
        for arm in sweep.arms if arms is None else arms:
            base, donor = contrast.sides(draw, restores=restores(arm))
            for c, component in enumerate(sweep.components):
                for n, layer in enumerate(sweep.layers):
                    for k, column in enumerate(sweep.columns):
                        for slots in patched_together(pair, column):
                            for edits in _edits(sweep, contrast, arm, component, layer, slots, base, donor):
                                world = World(base, edits, last_of(base), number)
                                yield Cell(arm=arm, draw=draw, component=c, layer=n, column=k, world=world)


def _edits(
    sweep: Sweep,
    contrast: Contrast,
    arm: str,
    component: str,
    layer: int,
    slots: Sequence[Slot],
    base: Run,
    donor: Run,
) -> Iterator[tuple[Edit, ...]]:
    """The edits of each world of a cell: none where there is no such cell."""
    layers = sweep.windows.layers(component, layer)

    def patched(layers: Sequence[int]) -> tuple[Edit, ...]:
        places = product(layers, slots)
        return tuple(contrast.edit(component, at, slot, donor, restores=restores(arm)) for at, slot in places)

    if arm.endswith("_sum"):
        if len(layers) > 1:
            yield from (patched([one]) for one in layers)
    elif arm.startswith("severed_"):
        part = arm.removeprefix("severed_")
        if component in RESIDUAL and layers:
            behind = range(_first_behind(component, layers[-1], part), sweep.windows.num_layers)
            sites = (Site(part, at, slot.corrupt) for at, slot in product(behind, slots))
            frozen = (Edit(site, From(base, site.position)) for site in sites)
            yield (*patched(layers), *frozen)
    elif layers:
        yield patched(layers)


def restores(arm: str) -> bool:
    """Whether an arm writes into the corrupt run, or into the clean one."""
    return not arm.startswith("disruption")


def last_of(run: Run) -> tuple[int]:
    """Where a run is read: at its last token."""
    return (len(run.tokens) - 1,)


def _first_behind(component: str, layer: int, part: str) -> int:
    """The first layer whose attention or MLP comes after this site."""
    return layer if (component, part) in BEFORE else layer + 1


def worlds_of(pair: TokenPair, contrast: Contrast, sweep: Sweep, number: int) -> tuple[list[World], list[Cell]]:
    """The pair's unedited runs, clean first, and the cells of its map."""
    unedited = [World(run, (), last_of(run), number) for run in (contrast.clean, *contrast.corrupt)]
    return unedited, list(cells(pair, contrast, sweep, number))


def checked_layers(model: Model, layers: Sequence[int] | None) -> tuple[int, ...]:
    """The layers asked for, in order (None: all). Raises InvalidOption."""
    if layers is None:
        return tuple(range(model.num_layers))
    validation.numbered("layer", layers, model.num_layers, model.name)
    return tuple(sorted({int(layer) for layer in layers}))
