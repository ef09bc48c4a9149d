"""What is patched: the sites of one kind, in which arms, and the edits that patch each of them.

A grid's cells are its components x layers x parts (heads or neurons, where the kind has them) x columns. A kind of site
is a grid of its own: it says which parts a layer has and which edits make a cell; all else is the same for all.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from causal_tracing import validation
from causal_tracing.errors import InvalidOption
from causal_tracing.interventions.edits import Edit, From, Run
from causal_tracing.interventions.sites import RESIDUAL, Site, first_behind
from causal_tracing.models.model import Model
from causal_tracing.patching.columns import patched_together, resolved_columns
from causal_tracing.patching.contrast import Contrast
from causal_tracing.patching.direct_paths import Paths
from causal_tracing.patching.windows import Window, Windows, plan_windows
from causal_tracing.prompts.alignment import Slot
from causal_tracing.prompts.pairs import TokenPair
from causal_tracing.prompts.tokens import Column
from causal_tracing.results.arms import DIRECTIONS, SEVERED, SUMS, Arm
from causal_tracing.results.columns import labelled
from causal_tracing.results.site_kinds import BLOCKS, SINGLE_HEADS, SiteKind

ByLayer = bool | Mapping[int, Sequence[int]]  # True: all parts of all layers
At = tuple[int, ...]  # a cell's place in the arrays of its map: an index along each of the kind's axes


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The cells of one kind's map, over components, layers, parts and columns, in these arms.

    `paths` says what is held behind a patched site, where arms of direct paths are among them.
    """

    kind: SiteKind
    components: tuple[str, ...]
    layers: tuple[int, ...]
    columns: tuple[Column, ...]
    arms: tuple[Arm, ...]
    paths: Paths | None = None

    @property
    def labels(self) -> dict[str, Any]:
        """What stands along each axis of the arrays, and what else is known of the sites."""
        return {
            "component": np.array(self.components, dtype=object),
            "layer": list(self.layers),
            "position": labelled(self.columns),
        }

    @property
    def slices(self) -> int:
        """In how many parts its cells can be handed out: its layers."""
        return len(self.layers)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one arm's array, in the order of the kind's axes."""
        labels = self.labels
        return tuple(len(labels[axis]) for axis in self.kind.axes)

    def cells(self, slices: Sequence[int] | None = None) -> Iterator[At]:
        """The places of all cells, or of those in some layers (by index)."""
        chosen = range(self.slices) if slices is None else slices
        for component, layer, column in product(range(len(self.components)), chosen, range(len(self.columns))):
            yield from self.places(component, layer, column)

    def unreached(self, pair: TokenPair) -> Bool[np.ndarray, "..."] | None:
        """Where nothing arrives of what is patched: exactly zero, and never run. None: no such place is known."""
        return None

    def places(self, component: int, layer: int, column: int) -> Iterator[At]:
        """The places of one component, layer and column: as many as there are parts."""
        yield component, layer, column

    def column(self, at: At) -> Column:
        """The column of a cell."""
        return self.columns[at[-1]]

    def compared(self, component: int, open_: Bool[np.ndarray, "..."]) -> Int[np.ndarray, "cell axis"]:
        """The places of a component's cells that are open and compared with one another, in the order of `cells`."""
        found = [at for at in self.cells() if at[0] == component and open_[at]]
        # Of no cell at all numpy would make one axis, and not two.
        return np.array(found, dtype=int).reshape(-1, open_.ndim)

    def written(self) -> list[tuple[str, int]]:
        """The components and layers at which anything is written."""
        return list(product(self.components, self.layers))

    @property
    def needs(self) -> tuple[str, ...]:
        """The components that a backend must offer for the cells, and for what is held behind them."""
        return (*self.components, *(self.paths.parts if self.paths else ()))

    def alike(self, at: At) -> tuple[At, ...]:
        """The places that the number of a cell belongs to: more than its own where a map says one thing twice."""
        return (at,)

    @property
    def overlaps(self) -> bool:
        """Whether any of its cells may be `held`."""
        return False

    def held(self, at: At, pair: TokenPair) -> bool:
        """Whether a cell is no cell of its own, because its sites are one."""
        return False

    def added_up(self, alone: np.ndarray, joint: np.ndarray, base: np.ndarray) -> np.ndarray:
        """The base run's number and all that each thing in a cell adds to it alone, [metric, draw, the kind's axes].

        `alone` is the mean over these things of the number with one of them, `joint` that with all.
        """
        raise NotImplementedError

    def count(self, pair: TokenPair) -> int:
        """How many worlds one draw of a pair's map takes, if no cell takes more than one for each token."""
        columns = [len(patched_together(pair, column)) for column in self.columns]
        return len(self.arms) * sum(columns[at[-1]] for at in self.cells())

    def edits(
        self, at: At, pair: TokenPair, contrast: Contrast, arm: Arm, base: Run, donor: Run
    ) -> Iterator[tuple[Edit, ...]]:
        """The edits of each world of a cell: none where there is no such cell."""
        for slots in patched_together(pair, self.columns[at[-1]]):
            for made in self.patched(at, slots, contrast, arm, base, donor):
                held = self.paths.behind(arm.direct, base, made) if self.paths and arm.direct else ()
                yield (*made, *held)

    def sweep(
        self, places: Iterable[At], pair: TokenPair, contrast: Contrast, arm: Arm, base: Run, donor: Run
    ) -> Iterator[tuple[At, Iterable[tuple[Edit, ...]]]]:
        """Cells one after the other, each with the edits of its worlds (`edits`): what they share need be made once."""
        yield from ((at, self.edits(at, pair, contrast, arm, base, donor)) for at in places)

    def patched(
        self, at: At, slots: Sequence[Slot], contrast: Contrast, arm: Arm, base: Run, donor: Run
    ) -> Iterator[tuple[Edit, ...]]:
        """The edits of each world that patches a cell at these slots."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockGrid(Grid):
    """Whole components: single layers, or windows of them; with what is behind a restored state severed, if asked.

    `having` are the layers that have each component: elsewhere it has no number.
    """

    windows: Windows
    having: Mapping[str, Sequence[int]]

    def around(self, component: str, layer: int) -> tuple[int, ...]:
        """The layers that a cell patches; none where there is no whole window of layers that have the component."""
        layers = self.windows.layers(component, layer)
        return layers if {*layers} <= {*self.having[component]} else ()

    @property
    def labels(self) -> dict[str, Any]:
        """The first and the last layer of each cell's window too; −1 where there is no whole one."""
        # Named in super(): slots=True makes each dataclass anew, and super() alone would look for the class before
        # that.
        around = [[self.around(name, layer) for layer in self.layers] for name in self.components]
        return super(BlockGrid, self).labels | (window_labels(around) if self.windows.wide else {})

    def written(self) -> list[tuple[str, int]]:
        """Those of all whole windows."""
        centred = product(self.components, self.layers)
        return list(dict.fromkeys((name, one) for name, layer in centred for one in self.around(name, layer)))

    def added_up(self, alone: np.ndarray, joint: np.ndarray, base: np.ndarray) -> np.ndarray:
        """Each layer of a window alone."""
        # `alone` is the mean over a window's layers: their sum is as many times what it adds to the base run.
        count = np.array([[len(self.around(name, layer)) for layer in self.layers] for name in self.components])
        return base + count[..., None] * (alone - base)

    def patched(
        self, at: At, slots: Sequence[Slot], contrast: Contrast, arm: Arm, base: Run, donor: Run
    ) -> Iterator[tuple[Edit, ...]]:
        """One world patches the whole window; where layers are patched alone, each has a world."""
        component = self.components[at[0]]
        layers = self.around(component, self.layers[at[1]])

        def whole(layers: Sequence[int]) -> tuple[Edit, ...]:
            places = product(layers, slots)
            return tuple(contrast.edit(component, layer, slot, donor, restores=arm.restores) for layer, slot in places)

        if arm.alone:
            if len(layers) > 1:
                yield from (whole([one]) for one in layers)
        elif arm.severed:
            if component in RESIDUAL and layers:
                behind = [n for n in self.having[arm.severed] if n >= first_behind(component, layers[-1], arm.severed)]
                # Severing goes with restoration alone, so that the base run is the corrupt one.
                sites = (Site(arm.severed, layer, slot.corrupt) for layer, slot in product(behind, slots))
                yield (*whole(layers), *(Edit(site, From(base, site.position)) for site in sites))
        elif layers:
            yield whole(layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartGrid(Grid):
    """Single heads, neurons or experts: `parts[component][layer]` lists them, `counts` says how many a layer may have.

    `readers` says which query heads read each head of keys or values.
    """

    parts: Mapping[str, Mapping[int, Sequence[int]]]
    counts: Mapping[str, int]
    readers: tuple[tuple[str, ...], ...] = ()

    @property
    def labels(self) -> dict[str, Any]:
        """The numbers of the parts too, and who reads them."""
        assert self.kind.part is not None
        labels = super(PartGrid, self).labels | {self.kind.part: np.arange(max(self.counts.values()))}
        if self.readers:
            labels["readers"] = (("component", self.kind.part), np.array(self.readers, dtype=object))
        return labels

    def places(self, component: int, layer: int, column: int) -> Iterator[At]:
        """A place for each part that is asked for."""
        for part in self.parts[self.components[component]][self.layers[layer]]:
            yield component, layer, part, column

    def patched(
        self, at: At, slots: Sequence[Slot], contrast: Contrast, arm: Arm, base: Run, donor: Run
    ) -> Iterator[tuple[Edit, ...]]:
        """One world, in which the part is patched at all of these slots."""
        component, layer, part = self.components[at[0]], self.layers[at[1]], at[2]
        yield tuple(contrast.edit(component, layer, s, donor, restores=arm.restores, part=part) for s in slots)


def window_labels(around: Sequence[Sequence[Sequence[int]]]) -> dict[str, Any]:
    """The first and the last layer of the windows around each component's layers; −1 where there is none."""
    ends = np.array([[(layers[0], layers[-1]) if layers else (-1, -1) for layers in row] for row in around])
    of_window = ("component", "layer")
    return {"window_first": (of_window, ends[..., 0]), "window_last": (of_window, ends[..., 1])}


def plan_blocks(
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
    paths: Paths | None = None,
    rome: bool = False,
) -> BlockGrid:
    """Whole components, as the options describe them, on this model, for these pairs.

    Raises InvalidOption or ComponentNotOffered, with what is possible.
    """
    components = tuple(components)
    if sever not in ((), []):
        _check_severed(components, directions)
    for component in (*components, *sever):
        model.anatomy.require(component)
    chosen = checked_layers(model, layers)
    # Asked for its refusal: a trace of routers, or of attention, in layers without any would be empty.
    for component in components:
        layers_having(model, component, layers)
    columns = resolved_columns(pairs, positions)
    windows = plan_windows(components, window, model.active, rome=rome)
    arms = arms_of(directions)
    sums = tuple(SUMS[arm.name] for arm in arms) if window_sums and windows.wide else ()
    severed = tuple(SEVERED[part] for part in sever)
    return BlockGrid(
        kind=BLOCKS,
        components=components,
        layers=chosen,
        columns=columns,
        arms=(*arms, *sums, *severed, *(paths.arms([arm.name for arm in arms]) if paths else ())),
        paths=paths,
        windows=windows,
        having={name: model.having(name) for name in (*components, *sever)},
    )


def plan_heads(
    model: Model,
    pairs: Sequence[TokenPair],
    *,
    components: Sequence[str],
    layers: Sequence[int] | None,
    positions: str | Sequence[Column],
    directions: Sequence[str],
    paths: Paths | None = None,
) -> PartGrid:
    """All heads of these components, in the layers that have heads. Raises InvalidOption or ComponentNotOffered."""
    counts = {name: model.anatomy.most(name) for name in components}
    chosen, most = layers_having(model, components[0], layers), max(counts.values())
    return PartGrid(
        kind=SINGLE_HEADS,
        components=tuple(counts),
        layers=chosen,
        columns=resolved_columns(pairs, positions),
        arms=arms_of(directions, paths),
        paths=paths,
        parts={name: {layer: range(model.parts(name, layer)) for layer in chosen} for name in counts},
        counts=counts,
        readers=tuple(tuple(_readers(model, name, head) for head in range(most)) for name in counts),
    )


def plan_by_layer(
    kind: SiteKind,
    model: Model,
    pairs: Sequence[TokenPair],
    *,
    named: ByLayer,
    layers: Sequence[int] | None,
    positions: str | Sequence[Column],
    directions: Sequence[str],
    paths: Paths | None = None,
) -> PartGrid:
    """All neurons (or experts) of the layers that have any, or those of a mapping from layer to neurons (none: all).

    Raises as `plan_heads`.
    """
    (component,), most = kind.components, model.anatomy.most(kind.components[0])
    by_layer = named if isinstance(named, Mapping) else {}
    for layer in by_layer:
        checked_layers(model, [layer])
        model.anatomy.require_layer(layer, component)
    chosen = tuple(sorted(map(int, by_layer))) if by_layer else layers_having(model, component, layers)
    parts: dict[int, Sequence[int]] = {layer: range(model.parts(component, layer)) for layer in chosen}
    for layer, listed in by_layer.items():
        # An empty list means all of a layer; what has no length goes to the check, which says what is wrong with it.
        if not hasattr(listed, "__len__") or len(listed):
            validation.numbered(str(kind.part), listed, model.parts(component, layer), f"layer {layer} of {model.name}")
            parts[layer] = sorted({int(number) for number in listed})
    return PartGrid(
        kind=kind,
        components=kind.components,
        layers=chosen,
        columns=resolved_columns(pairs, positions),
        arms=arms_of(directions, paths),
        paths=paths,
        parts={component: parts},
        counts={component: most},
    )


def layers_having(model: Model, component: str, layers: Sequence[int] | None) -> tuple[int, ...]:
    """Of the layers asked for those that have a component. Raises ComponentNotOffered where none has."""
    asked = checked_layers(model, layers)
    if not (found := tuple(layer for layer in asked if layer in model.having(component))):
        model.anatomy.require_layer(asked[0], component)
    return found


def checked_layers(model: Model, layers: Sequence[int] | None) -> tuple[int, ...]:
    """The layers asked for, in order (None: all that a text passes). Raises InvalidOption, ComponentNotOffered."""
    if layers is None:
        return model.active
    validation.numbered("layer", layers, model.num_layers, model.name)
    for layer in layers:
        model.anatomy.require_layer(layer)
    return tuple(sorted({int(layer) for layer in layers}))


def named_heads(heads: bool | Sequence[str]) -> tuple[str, ...]:
    """The heads' components that an option names: z for True."""
    return ("z",) if heads is True else tuple(heads or ())


def arms_of(directions: Sequence[str], paths: Paths | None = None) -> tuple[Arm, ...]:
    """The arms that measure these directions, and direct paths in them where some are asked for."""
    both = tuple(arm for name, arm in DIRECTIONS.items() if name in directions)
    return (*both, *(paths.arms([arm.name for arm in both]) if paths else ()))


def _check_severed(components: Sequence[str], directions: Sequence[str]) -> None:
    if "restoration" not in directions or not {*components} & {*RESIDUAL}:
        raise InvalidOption(
            "A severed effect is a restoration of the residual stream: keep restoration among the directions, and one "
            f"of {', '.join(RESIDUAL)} among the components."
        )


def _readers(model: Model, component: str, head: int) -> str:
    """The query heads that read a head of keys or values, as text; "" where none do, or others in each layer."""
    alike = component in ("k", "v") and not {"q", component} & {*dict(model.anatomy.uneven)}
    if not alike or "q" not in model.anatomy.mediators or head >= model.parts(component):
        return ""
    each = model.parts("q") // model.parts(component)
    return ", ".join(str(reader) for reader in range(head * each, (head + 1) * each))
