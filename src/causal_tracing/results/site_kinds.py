"""The kinds of site that a map can be of: the one list of them. All that differs between them in tables and words.

Whatever makes, keeps, averages, compares, draws or tells a map takes its numbers and its kind; nothing else names one.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import xarray as xr

from causal_tracing.errors import InvalidOption, nearest
from causal_tracing.interventions.sites import ATTENTION, HEADS, WHOLE


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteKind:
    """A kind of site, and what its maps look like.

    `axes` is the order of every array, table and document: the component first, and last what a column is ("position",
    or what takes its place). `drawn` are the axes that go down and across in a picture; where there is none, the cells
    are ranked. `figure` is what a page shows of it, by its name there (`report/page/sections.py`). `columns` is the
    option that says which columns there are. `called`, `address` and `named` are how a strongest cell, its place and a
    row of a table are called, with {component}, {layer}, {part} (along the kind's own axis), {query} and {column};
    `restores` and `loses` say what its effects do. `shown` ends the names of the effects that come first, where those
    of a direction alone do not. `patches`: something of another run is put there, so that both directions can be asked
    for. `mirrored`: (A, B) is (B, A). `few`: its cells are many, and measured by the metrics that are shown alone,
    unless more are asked for. `asked`: how a trace is asked for it, where that is not its name. `margin`: the column
    that stands beside the others for comparison, and is not ranked with them. `ends`: its first cell is nothing and its
    last one everything, and each is told as a share of the way between these. `large`: a cell is patched at thousands
    of places. `told_by`: words with which columns begin that are told of together where it is said how far estimates
    agree; no words: all columns are.
    """

    name: str
    components: tuple[str, ...]
    axes: tuple[str, ...]
    drawn: tuple[str, str] | None
    figure: str
    columns: str
    called: str
    address: str
    named: str
    restores: str = "restoring it brings back"
    loses: str = "disrupting it takes away"
    shown: str = ""
    patches: bool = True
    mirrored: bool = False
    few: bool = False
    asked: str = ""
    margin: str = ""
    ends: bool = False
    large: bool = False
    told_by: tuple[str, ...] = ()

    @property
    def of_keys(self) -> bool:
        """Whether its positions are keys that a query sees, and names stand for all of their tokens together."""
        return self.columns.endswith("_keys")

    @property
    def option(self) -> str:
        """How a trace is asked for it."""
        return self.asked or f"{self.name}=True"

    @property
    def part(self) -> str | None:
        """The axis of a component's parts, "head", "neuron" or "expert"; None for whole components."""
        return next((axis for axis in self.axes[1:-1] if axis != "layer"), None)

    @property
    def column(self) -> str:
        """The axis of its columns: "position", or what stands in its place."""
        return self.axes[-1]

    @property
    def ranked_axes(self) -> list[str]:
        """The axes in the order in which equal cells are ranked: the parts of one place lie together."""
        return [
            *(axis for axis in self.axes[:-1] if axis != self.part),
            self.column,
            *([self.part] if self.part else []),
        ]

    @property
    def layered(self) -> bool:
        """Whether a cell is of one layer, and layers are an axis."""
        return "layer" in self.axes

    @property
    def by_query(self) -> bool:
        """Whether each part has a map of its own, of the tokens that attend by those that they see."""
        return "query" in self.axes

    @property
    def noun(self) -> str:
        """What its cells are called, whichever component they are of."""
        return self.called.format(component=" or ".join(self.components))

    @property
    def title(self) -> str:
        """What a section about it is called: `Single heads`, `Knockout heads`."""
        single = self.part is not None and self.name == plural(self.part)
        return f"single {self.name}".capitalize() if single else self.name.replace("_", " ").capitalize()


BLOCKS = SiteKind(
    name="blocks",
    components=WHOLE,
    axes=("component", "layer", "position"),
    drawn=("position", "layer"),
    figure="tokens",
    columns="positions",
    called="{component} site",
    address="layer {layer}",
    named="{component} layer {layer}",
    asked='components=["resid_post"]',
)
SINGLE_HEADS = SiteKind(
    name="heads",
    components=HEADS,
    axes=("component", "layer", "head", "position"),
    drawn=("head", "layer"),
    figure="parts",
    columns="head_positions",
    called="head by its {component}",
    address="head {part} of layer {layer}",
    named="{component} layer {layer} head {part}",
    few=True,
)
SINGLE_NEURONS = SiteKind(
    name="neurons",
    components=("neurons",),
    axes=("component", "layer", "neuron", "position"),
    drawn=None,
    figure="ranked",
    columns="neuron_positions",
    called="neuron",
    address="neuron {part} of layer {layer}",
    named="neuron {part} of layer {layer}",
    few=True,
)
SINGLE_EXPERTS = SiteKind(
    name="experts",
    components=("experts",),
    axes=("component", "layer", "expert", "position"),
    drawn=("expert", "layer"),
    figure="parts",
    columns="expert_positions",
    called="expert",
    address="expert {part} of layer {layer}",
    named="expert {part} of layer {layer}",
    few=True,
)
KNOCKOUT = SiteKind(
    name="knockout",
    components=(ATTENTION,),
    axes=("component", "layer", "position"),
    drawn=("position", "layer"),
    figure="tokens",
    columns="knockout_keys",
    called="key to hide",
    address="layer {layer}",
    named="{component} layer {layer}",
    loses="hiding it takes away",
    patches=False,
)
KNOCKOUT_HEADS = SiteKind(
    name="knockout_heads",
    components=(ATTENTION,),
    axes=("component", "layer", "head", "position"),
    drawn=("head", "layer"),
    figure="parts",
    columns="knockout_keys",
    called="key to hide from one head",
    asked='knockout=["heads"]',
    address="head {part} of layer {layer}",
    named="{component} layer {layer} head {part}",
    loses="hiding it takes away",
    patches=False,
)
EDGES_BY_QUERY = SiteKind(
    name="edges_by_query",
    components=("q_edge", "k_edge", "v_edge"),
    axes=("component", "head", "query", "position"),
    drawn=("position", "query"),
    figure="queries",
    columns="edge_keys",
    called="{component} of a head",
    address="head {part}, from {query}, key",
    named="{component} head {part}, from {query}, key",
    asked='edges=["v"], edge_query="each"',
    few=True,
)
EDGES = SiteKind(
    name="edges",
    components=("q_edge", "k_edge", "v_edge"),
    axes=("component", "layer", "head", "position"),
    drawn=("head", "layer"),
    figure="parts",
    columns="edge_keys",
    called="{component} of a head",
    address="head {part} of layer {layer}, key",
    named="{component} layer {layer} head {part}, key",
    few=True,
)
SETS = SiteKind(
    name="sets",
    components=("set",),
    axes=("component", "set"),
    drawn=None,
    figure="table",
    columns="sets",
    called="set",
    address="{column}",
    named="set {column}",
    asked='sets={"name": ["z 3.1 @ last", …]}',
)
GROWING = SiteKind(
    name="growing",
    components=("growing_set",),
    axes=("component", "set", "size"),
    drawn=None,
    figure="table",
    columns="growing",
    called="growing set",
    address="the first {column} of {part}",
    named="the first {column} of {part}",
)
INTERACTIONS = SiteKind(
    name="interactions",
    components=("pair_of_sites",),
    axes=("component", "site", "partner"),
    drawn=("partner", "site"),
    figure="table",
    columns="interactions",
    called="pair of sites",
    address="{part} with {column}",
    named="{part} with {column}",
    restores="restoring both brings back",
    loses="disrupting both takes away",
    shown="_beyond_sum",
    mirrored=True,
    few=True,
)
PATHS = SiteKind(
    name="paths",
    components=("path",),
    axes=("component", "sender", "receiver"),
    drawn=("receiver", "sender"),
    figure="matrix",
    columns="receivers",
    called="path",
    address="{part} → {column}",
    named="{part} → {column}",
    restores="restoring what it sends there brings back",
    loses="disrupting what it sends there takes away",
    few=True,
    asked='senders=["each z @ last"]',
    margin="every path",
    told_by=("q", "k", "v", "attn_out", "mixer_out", "mlp_out", "logits"),
)
CIRCUITS = SiteKind(
    name="circuits",
    components=("nodes", "edges"),
    axes=("component", "size"),
    drawn=None,
    figure="curve",
    columns="circuit_sizes",
    called="set of {component}",
    address="{column} {component}",
    named="the first {column} {component}",
    restores="restoring them brings back",
    loses="ablating all else takes away",
    shown="_beyond_empty",
    asked='circuit=["z 3.1", "mlp_out 0", …]',
    ends=True,
    large=True,
)
CIRCUIT_TESTS = SiteKind(
    name="circuit_tests",
    components=("circuit", "model"),
    axes=("component", "removal"),
    drawn=None,
    figure="table",
    columns="circuit_tested",
    called="{component} with some removed",
    address="without {column}",
    named="{component} without {column}",
    loses="ablating them takes away",
    asked="circuit_tested=10, circuit=[…]",
    large=True,
)
# In the order in which they stand in tables, documents and pages.
KINDS = {
    kind.name: kind
    for kind in (
        BLOCKS,
        SINGLE_HEADS,
        SINGLE_NEURONS,
        SINGLE_EXPERTS,
        SETS,
        GROWING,
        INTERACTIONS,
        PATHS,
        KNOCKOUT,
        KNOCKOUT_HEADS,
        EDGES,
        EDGES_BY_QUERY,
        CIRCUITS,
        CIRCUIT_TESTS,
    )
}
PLURALS = {"query": "queries"}


def plural(axis: str) -> str:
    """What the labels along an axis are called."""
    return PLURALS.get(axis, f"{axis}s")


def kind_named(name: str) -> SiteKind:
    """The kind of this name. Raises InvalidOption with the nearest."""
    if name not in KINDS:
        raise InvalidOption(f"There is nothing called {name!r} in a trace. {nearest(str(name), KINDS)}")
    return KINDS[name]


def kind_of(found: xr.Dataset) -> SiteKind:
    """The kind that a map of effects is of: it says so itself."""
    return KINDS[found.kind.item()]


def kind_of_component(component: str) -> SiteKind:
    """The kind whose sites a component has."""
    return next(kind for kind in KINDS.values() if component in kind.components)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """The kinds that are named, in the order of the list."""
    named = {*names}
    return tuple(name for name in KINDS if name in named)
