"""The edges of a model: from every sender to every reader behind it. A circuit of edges cuts all others.

Of an edge that is cut, the reader reads what the sender adds in the other run, at every token; all that is not cut is
live (Hanna et al. 2024, arXiv 2403.17806). Senders are the embedding, heads by z and MLPs; readers are queries, keys
and values head by head (as many keys and values as the layer has), MLPs, and the logits. Where a layer's heads are not
told apart, or it mixes tokens otherwise, what it adds is one sender, and reads as a whole.
"""

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Int

from causal_tracing.errors import ComponentNotOffered, InvalidOption
from causal_tracing.interventions.edits import Edit, Part, Rewired, Run
from causal_tracing.interventions.sites import WIRING, Site
from causal_tracing.models.model import Model
from causal_tracing.patching.contrast import Contrast
from causal_tracing.patching.direct_paths import refuse
from causal_tracing.patching.kinds.graph import ASKED, Graph
from causal_tracing.patching.kinds.nodes import INPUT, name_of, node_named, nodes_of, readers_in
from causal_tracing.patching.kinds.receivers import IN_HEADS, LOGITS, receiver
from causal_tracing.patching.kinds.senders import stream_of
from causal_tracing.patching.named_sites import NamedSite
from causal_tracing.prompts.pairs import TokenPair
from causal_tracing.results.arms import Arm
from causal_tracing.results.rankings.score_files import ARROW

EXAMPLE = '"z 3.1 -> q 5.0", "mlp_out 4 -> logits" or "resid_pre 0 -> mlp_out 2"'
OPTION = "circuit_of='edges'"


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeGraph(Graph):
    """Sets of edges: `edges` are the sender (of `sites`) and the reader of each; `fed` what each sender is made of.

    `added` is what layers add, by name; `last` is the number of the last layer.
    """

    readers: tuple[Part, ...]
    edges: Int[np.ndarray, "edge 2"] = field(compare=False)  # the names say which edges these are
    fed: tuple[tuple[int, ...], ...]
    added: tuple[str, ...]
    last: int

    @property
    def needs(self) -> tuple[str, ...]:
        """What sends, what reads, what is added, and how a run is told of all that."""
        sent = (site.component for site in self.sites)
        return tuple(dict.fromkeys((*sent, *(name for name, *_ in self._in_runs), *self.added, WIRING)))

    @property
    def _in_runs(self) -> tuple[Part, ...]:
        """The readers as a run is told of them: the logits read what the last layer leaves."""
        return tuple(("resid_post", self.last, None) if each[0] == LOGITS else each for each in self.readers)

    def weighted(self, kept: Sequence[int]) -> float:
        """How many of these edges are on a way from the embedding to the logits, along edges of the set alone."""
        among = self._marked(kept)
        reached, reaching = self._reached(among), self._reaching(among)
        return float((among & reached[:, None] & reaching).sum())

    def _reached(self, among: Bool[np.ndarray, "sender reader"]) -> Bool[np.ndarray, " sender"]:
        """Which senders the embedding reaches."""
        found = np.arange(len(self.sites)) == 0
        # Senders are in computation order, so that all that reaches one is known when its turn comes.
        for sender, readers in enumerate(self.fed):
            found[sender] |= bool((among[:, list(readers)] & found[:, None]).any())
        return found

    def _reaching(self, among: Bool[np.ndarray, "sender reader"]) -> Bool[np.ndarray, " reader"]:
        """Which readers reach the logits."""
        found = np.array([name == LOGITS for name, *_ in self.readers])
        # And from the end on, all that one reaches.
        for sender in reversed(range(len(self.sites))):
            found[list(self.fed[sender])] |= bool((among[sender] & found).any())
        return found

    def _marked(self, numbers: Iterable[int]) -> Bool[np.ndarray, "sender reader"]:
        """These edges, marked among all pairs of a sender and a reader."""
        found = np.zeros((len(self.sites), len(self.readers)), bool)
        senders, readers = self.edges[[*numbers]].T
        found[senders, readers] = True
        return found

    def edits(
        self, inside: Set[int], pair: TokenPair, contrast: Contrast, arm: Arm, donor: Run, *, embedded: bool
    ) -> tuple[Edit, ...]:
        """Edges inside carry what the clean run has, or edges outside what stands for the other one."""
        cut = self._marked(inside) if arm.restores else self._marked({*range(len(self.edges))} - inside)
        if not cut.any():
            return ()
        rewired = Rewired(
            senders=tuple((site.component, *place) for site in self.sites for place in site.places()),
            readers=self._in_runs,
            cut=cut.T.copy(),
            edits=self.of_sites(self.sites, pair, contrast, arm, donor),
        )
        return (Edit(Site(WIRING, 0, 0), rewired),)

    def numbers(self, text: str) -> Sequence[int]:
        """The edges that a text names: from each of its senders to each of its readers that is behind it."""
        sent, arrow, read = text.partition(ARROW.strip())
        if not arrow:
            raise InvalidOption(f"{ASKED} names {text!r}, which is no edge. Name a sender and a reader: {EXAMPLE}.")
        sites = {site: number for number, site in enumerate(self.sites)}
        senders = [sites[node] for node in node_named(sent.strip()) if node in sites]
        named = receiver(read.strip())
        wanted = {(named.component, *place) for place in named.places(self.last + 1)}
        readers = {
            number
            for number, (component, layer, head) in enumerate(self.readers)
            if (component, layer, head) in wanted or (component, layer, None) in wanted
        }
        found = [n for n, (sender, reader) in enumerate(self.edges.tolist()) if sender in senders and reader in readers]
        if not found:
            raise InvalidOption(f"{ASKED} names {text!r}, which is no edge of this model. Edges are such as {EXAMPLE}.")
        return found


def edge_graph(model: Model) -> EdgeGraph:
    """All edges of a model. Raises ComponentNotOffered where senders or readers are not told apart."""
    nodes, stream = nodes_of(model), stream_of(model)
    _check(model, nodes)
    sites, readers = (INPUT, *nodes), (*readers_in(nodes, model), (LOGITS, model.num_layers, None))
    stages = [stream.stage(each) for each in readers]
    behind = [stream.behind(site.component, site.layers[0]) for site in sites if site.layers]
    edges = tuple((s, r) for s, first in enumerate(behind) for r, stage in enumerate(stages) if first <= stage)
    sent, read = [name_of(site) for site in sites], [_reader_name(each) for each in readers]
    return EdgeGraph(
        of="edges",
        names=tuple(f"{sent[sender]}{ARROW}{read[reader]}" for sender, reader in edges),
        sites=sites,
        readers=readers,
        edges=np.array(edges),
        fed=tuple(tuple(n for n, each in enumerate(readers) if _feeds(model, each, site)) for site in sites),
        added=tuple(dict.fromkeys(part for layer in stream.parts for part in layer)),
        last=model.num_layers - 1,
    )


def _check(model: Model, nodes: Sequence[NamedSite]) -> None:
    """Raises ComponentNotOffered."""
    if model.backend is not None:
        raise ComponentNotOffered(f"{OPTION} needs a model that runs here, and {model.name} is run elsewhere.")
    # Heads that do not show what they read by: it is not known which of them would read otherwise.
    for component in IN_HEADS if any(node.component == "z" for node in nodes) else ():
        model.anatomy.require(component)
    # What a sender adds would come out of the norm as something that depends on all others.
    for layer in model.active:
        if not all(each.plain for each in model.layout(layer).sums):
            refuse(model, OPTION, f"in layer {layer} a norm stands between the sums, so that edges do not add up.")


def _reader_name(reader: Part) -> str:
    component, layer, head = reader
    return component if component == LOGITS else f"{component} {layer}" + ("" if head is None else f".{head}")


def _feeds(model: Model, reader: Part, site: NamedSite) -> bool:
    """Whether a sender is made of what a reader reads: a head of its queries, and of the keys and values it shares."""
    component, layer, head = reader
    if component == LOGITS or site.layers != (layer, layer):
        return False
    if head is None or site.parts is None:
        return component == site.component
    return head == site.parts[0] * model.parts(component, layer) // model.parts("z", layer)
