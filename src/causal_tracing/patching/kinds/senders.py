"""Paths from senders to receivers: what of a patched site reaches one reader of the stream, and that reader alone.

A sender is patched in a run of its own, in which all that layers behind it add at its tokens is held: so the stream
there carries the base run's, and what the sender adds to it. What a receiver makes of that (a query, a key, a value, an
MLP's output) is put into the base run, where all behind it is live. The logits read the stream behind the last layer.

A cell with several receivers follows the live rule: each reads what the stream then is, with what the senders add. So
all receivers of a sender together are the sender patched as ever (Goldowsky-Dill et al. 2023, arXiv 2304.05969; of one
receiver it is path patching as in Wang et al. 2022, arXiv 2211.00593, with MLPs frozen).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from causal_tracing.errors import InvalidOption
from causal_tracing.interventions.edits import Edit, From, Run, one_run
from causal_tracing.interventions.sites import Site
from causal_tracing.models.model import Model
from causal_tracing.patching.contrast import Contrast
from causal_tracing.patching.direct_paths import check_layers, check_one_token, more_than_held, refuse
from causal_tracing.patching.grid import At, Grid, arms_of, checked_layers
from causal_tracing.patching.kinds.nodes import each_receiver
from causal_tracing.patching.kinds.receivers import IN_HEADS, LOGITS, WHOLE, Receiver, receivers_on
from causal_tracing.patching.kinds.sets import check_apart
from causal_tracing.patching.named_sites import NamedSite, sites_on
from causal_tracing.patching.options.paths import SENDERS, Named
from causal_tracing.patching.options.trace import Options
from causal_tracing.prompts.pairs import TokenPair
from causal_tracing.results.arms import Arm
from causal_tracing.results.columns import labelled
from causal_tracing.results.site_kinds import PATHS

EVERY = PATHS.margin  # as a receiver: the sender patched as ever, so that what it does in all stands beside its paths
MOST_PATHS = 400_000  # cells that are patched: more take hours, and say little one by one
MOST_ESTIMATED = 4_000_000  # cells: more take gigabytes
BEHIND = -1  # as the layer of a receiver that is in none

SingleReceiver = tuple[str, int, int | None]  # a receiver's component, its layer, and its head (None: all)
Stage = tuple[int, int]  # a layer, and which of its parts: so that stages are in the order of computation


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """What each layer adds to the stream, in order, and how many heads it has (0: none that are told apart).

    `parallel` are layers whose parts read the same: none of these reads what another one adds.
    """

    parts: tuple[tuple[str, ...], ...]
    parallel: frozenset[int]
    heads: tuple[int, ...]

    def part(self, component: str, layer: int) -> str:
        """The part of a layer that a component belongs to: its attention's, or its only one."""
        if component not in (*IN_HEADS, "z"):
            return component
        return "mixer_out" if "mixer_out" in self.parts[layer] else "attn_out"

    def first_behind(self, changed: Sequence[Edit]) -> Stage:
        """The first stage that reads what any of these edits adds."""
        return min(self.behind(*place) for place in {(edit.site.component, edit.site.layer) for edit in changed})

    def behind(self, component: str, layer: int) -> Stage:
        """The first stage that reads what a component of a layer adds."""
        if component == "resid_pre":
            return layer, 0
        part = self.parts[layer].index(self.part(component, layer))
        last = part + 1 == len(self.parts[layer]) or layer in self.parallel
        return (layer + 1, 0) if last else (layer, part + 1)

    @property
    def end(self) -> Stage:
        """Where the logits read: behind all layers."""
        return len(self.parts), 0

    def has(self, component: str, layer: int) -> bool:
        """Whether there is such a receiver in a layer; the logits are behind the last one."""
        return component == LOGITS or self.part(component, layer) in self.parts[layer]

    def readings(self, receivers: Sequence[Receiver]) -> tuple[SingleReceiver, ...]:
        """What these receivers are, one by one, in the layers that have them."""
        found = ((one.component, layer, part) for one in receivers for layer, part in one.places(len(self.parts)))
        return tuple(each for each in found if self.has(*each[:2]))

    def stage(self, receiver: SingleReceiver) -> Stage:
        """Where a receiver reads: the logits at the end of all layers."""
        component, layer, _ = receiver
        return (layer, 0) if component == LOGITS else (layer, self.parts[layer].index(self.part(component, layer)))


def stream_of(model: Model) -> Stream:
    """What the layers of a model add. Raises ComponentNotOffered where that is not known."""
    check_layers(model, (), "senders=")
    if model.backend is not None:
        # No layouts are known of it: by its rules (`check_layers`) attention alone brings tokens something of others.
        parts, parallel = (("attn_out", "mlp_out"),) * model.num_layers, frozenset[int]()
    else:
        layouts = [model.layout(layer) for layer in range(model.num_layers)]
        if not all(layout.sums for layout in layouts):
            refuse(model, "senders=", more_than_held(model))
        parts = tuple(layout.parts for layout in layouts)
        parallel = frozenset(n for n, layout in enumerate(layouts) if len(layout.sums) == 1)
    having = model.having("z") if model.anatomy.offers("z") else ()
    heads = tuple(model.parts("z", layer) if layer in having else 0 for layer in range(model.num_layers))
    return Stream(parts=parts, parallel=parallel, heads=heads)


def held(
    stream: Stream, base: Run, changed: tuple[Edit, ...], live: Run, tokens: Iterable[int] = ()
) -> Iterator[tuple[Stage, Edit]]:
    """What holds all that is added behind the first of these edits of a base run as in `live`, stage by stage.

    That is at their tokens, and at `tokens`. Of a part whose heads are among the edits of a token the other heads are
    held there. What the base run writes itself is left to it.
    """
    first = stream.first_behind(changed)
    # Senders of one set may be at several tokens: what one of them writes is held where another one is.
    at = {*tokens, *(edit.site.position for edit in changed)}
    parts = {position: dict[tuple[str, int], set[int | None]]() for position in at}
    for edit in (*changed, *base.edits):
        if (site := edit.site).position in parts:
            parts[site.position].setdefault((site.component, site.layer), set()).add(site.part)
    stages = ((layer, number, part) for layer, each in enumerate(stream.parts) for number, part in enumerate(each))
    for layer, number, part in stages:
        for position in sorted(parts) if first <= (layer, number) else ():
            for site in _free(stream, part, layer, position, parts[position]):
                yield (layer, number), Edit(site, From(live, position))


def _free(
    stream: Stream, part: str, layer: int, position: int, written: Mapping[tuple[str, int], set[int | None]]
) -> Iterator[Site]:
    """A part of a layer at one token, or the heads that it is made of, less what is written there."""
    if (part, layer) in written:
        return
    heads = written.get(("z", layer), set()) if part == stream.part("z", layer) else set()
    if not heads:
        yield Site(part, layer, position)
    elif None not in heads:
        yield from (Site("z", layer, position, head) for head in range(stream.heads[layer]) if head not in heads)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sending:
    """What some senders add to the stream of a base run, as all of their receivers read it.

    `first` is the first stage behind any of them. The runs that carry it are made once: of each live run, each stage
    that it is held up to, and the tokens where it is. So is what holds all behind it, of which these have more or less.
    """

    stream: Stream
    base: Run
    changed: tuple[Edit, ...]
    first: Stage
    runs: dict[tuple[Run, range, Stage], Run] = field(default_factory=dict)
    behind: dict[tuple[Run, range], list[tuple[Stage, Edit]]] = field(default_factory=dict)

    @property
    def positions(self) -> list[int]:
        """The tokens that are written at: each receiver reads there."""
        return sorted({edit.site.position for edit in self.changed})

    @property
    def later(self) -> range:
        """The tokens from the first of these on: what reads as a whole gives something else at any of them."""
        return range(self.positions[0], len(self.base.tokens))

    def seen(self, component: str) -> Sequence[int]:
        """The tokens at which what a receiver makes is another."""
        return self.later if component in WHOLE else self.positions

    def carried(self, component: str, live: Run, stage: Stage) -> Run:
        """The run in which a receiver reads, at its stage, what `live` has and what the senders add."""
        if component in IN_HEADS and live is self.base:
            stage = self.stream.end  # attention is held: all layers' heads read one run
        # Between the senders' tokens attention of other layers may hand on what they add: what reads as a whole would
        # read it there.
        tokens = self.later if component in WHOLE else range(0)
        if (live, tokens, stage) not in self.runs:
            if (live, tokens) not in self.behind:
                self.behind[live, tokens] = list(held(self.stream, self.base, self.changed, live, tokens))
            edits = (edit for at, edit in self.behind[live, tokens] if at < stage)
            self.runs[live, tokens, stage] = one_run(self.base.tokens, (*self.base.edits, *self.changed, *edits))
        return self.runs[live, tokens, stage]

    def received(self, receivers: Sequence[SingleReceiver]) -> tuple[Edit, ...]:
        """The edits of the world in which these receivers (component, layer, head) alone read what the senders add.

        Where none of them is behind a sender these write what is there already: nothing can change.
        """
        made: list[Edit] = []
        for stage, some in groupby(sorted(receivers, key=self.stream.stage), key=self.stream.stage):
            if stage < self.first:
                continue
            live = one_run(self.base.tokens, (*self.base.edits, *made)) if made else self.base
            if stage == self.stream.end:
                if here := self._at_the_end:
                    return (*here, *(edit for _, edit in held(self.stream, self.base, here, live)))
                continue
            made += self._read(list(some), live, stage)
        return tuple(made) or (Edit(self.changed[0].site, From(self.base, self.changed[0].site.position)),)

    @property
    def _at_the_end(self) -> tuple[Edit, ...]:
        """What is written at the last token, which alone the logits read."""
        return tuple(edit for edit in self.changed if edit.site.position == len(self.base.tokens) - 1)

    def _read(self, group: Sequence[SingleReceiver], live: Run, stage: Stage) -> Iterator[Edit]:
        """What these receivers of one stage make of what is carried to it."""
        for component, layer, part in group:
            run = self.carried(component, live, stage)
            for position in self.seen(component):
                yield Edit(Site(component, layer, position, part), From(run, position))


def sending(stream: Stream, base: Run, changed: tuple[Edit, ...]) -> Sending:
    """What these edits of a base run send; there is at least one."""
    return Sending(stream=stream, base=base, changed=changed, first=stream.first_behind(changed))


@dataclass(frozen=True, slots=True, kw_only=True)
class PathGrid(Grid):
    """A cell for each sender (or set of them) with each receiver (or set of them), at the senders' tokens."""

    stream: Stream
    senders: tuple[tuple[str, tuple[NamedSite, ...]], ...]
    receivers: tuple[tuple[str, tuple[SingleReceiver, ...]], ...]  # nothing is read by EVERY

    @property
    def labels(self) -> dict[str, Any]:
        """The senders and receivers by name, and the layers that they begin in."""
        senders = [min(site.layers[0] for site in sites if site.layers) for _, sites in self.senders]
        receivers = [min((layer for _, layer, _ in places), default=BEHIND) for _, places in self.receivers]
        return {
            "component": labelled(self.components),
            "sender": labelled([name for name, _ in self.senders]),
            "sender_layer": ("sender", senders),
            "receiver": labelled([name for name, _ in self.receivers]),
            "receiver_layer": ("receiver", [BEHIND if n == len(self.stream.parts) else n for n in receivers]),
        }

    @property
    def slices(self) -> int:
        """Its senders."""
        return len(self.senders)

    def cells(self, slices: Sequence[int] | None = None) -> Iterator[At]:
        """Each sender with each receiver."""
        chosen = range(self.slices) if slices is None else slices
        yield from ((0, sender, receiver) for sender in chosen for receiver in range(len(self.receivers)))

    def compared(self, component: int, open_: Bool[np.ndarray, "..."]) -> Int[np.ndarray, "cell axis"]:
        """All that are open but the sender patched as ever, which is no path: of a million cells in one go."""
        return np.argwhere(open_ & np.array([name != EVERY for name, _ in self.receivers]))

    def written(self) -> list[tuple[str, int]]:
        """The components and layers of the senders."""
        sites = (site for _, sites in self.senders for site in sites)
        return list(dict.fromkeys((site.component, layer) for site in sites for layer, _ in site.places()))

    @property
    def needs(self) -> tuple[str, ...]:
        """What is patched, what is held behind it, and what receives."""
        sent = (component for component, _ in self.written())
        parts = (part for parts in self.stream.parts for part in parts)
        read = (component for _, places in self.receivers for component, *_ in places if component != LOGITS)
        return tuple(dict.fromkeys((*sent, *parts, *read)))

    def unreached(self, pair: TokenPair) -> Bool[np.ndarray, "..."]:
        """Where no receiver is behind a sender: layers in front of it, or the logits, which read the last token."""
        last = {len(pair.clean.tokens) - 1, len(pair.corrupt.tokens) - 1}
        read = [[self.stream.stage(each) for each in places] for _, places in self.receivers]
        behind, end = [max(stages, default=self.stream.end) for stages in read], self.stream.end
        only_end = np.array([bool(stages) and {*stages} == {end} for stages in read])
        found = np.zeros(self.shape, dtype=bool)
        for number, (_, sites) in enumerate(self.senders):
            first = min(self.stream.behind(site.component, layer) for site in sites for layer, _ in site.places())
            found[0, number] = [stage < first for stage in behind]
            if not any(last & {*slot} for site in sites for slot in site.slots(pair)):
                found[0, number] |= only_end
        return found

    def count(self, pair: TokenPair) -> int:
        """A world for each cell that something can arrive at."""
        return len(self.arms) * int((~self.unreached(pair)).sum())

    def sweep(
        self, places: Iterable[At], pair: TokenPair, contrast: Contrast, arm: Arm, base: Run, donor: Run
    ) -> Iterator[tuple[At, Iterable[tuple[Edit, ...]]]]:
        """The cells of a sender lie together, and what it sends is made out once for all of them."""
        for sender, cells in groupby(places, key=itemgetter(1)):
            changed = self.sent(sender, pair, contrast, arm, donor)
            sent = sending(self.stream, base, changed) if changed else None
            for at in cells:
                name, receivers = self.receivers[at[2]]
                yield at, (changed if name == EVERY else sent.received(receivers),) if sent else ()

    def sent(self, sender: int, pair: TokenPair, contrast: Contrast, arm: Arm, donor: Run) -> tuple[Edit, ...]:
        """What patches a sender; nothing where the pair has no such token."""
        sites = self.senders[sender][1]
        return tuple(edit for site in sites for edit in site.edits(pair, contrast, donor, restores=arm.restores))


def path_grids(
    model: Model,
    pairs: Sequence[TokenPair],
    options: Options,
    directions: Sequence[str],
    most: int = MOST_PATHS,
) -> Iterator[Grid]:
    """The map of paths from senders to receivers, where one is asked for: of `most` cells at most.

    Raises InvalidOption, InvalidPair, ComponentNotOffered.
    """
    if not options.senders:
        return
    check_one_token(pairs, "senders=")
    stream = stream_of(model)
    senders = _by_name(options.senders, lambda texts: sites_on(model, texts, pairs, "senders="))
    named = _by_name(options.receivers or each_receiver(model), partial(receivers_on, model))
    _check_senders(stream, senders)
    for name, sites in senders.items():
        check_apart(f"the senders {name!r}", sites, pairs)
    grid = PathGrid(
        kind=PATHS,
        components=PATHS.components,
        layers=checked_layers(model, options.layers),
        columns=(),
        arms=arms_of(directions),
        stream=stream,
        senders=tuple((name, tuple(sites)) for name, sites in senders.items()),
        receivers=(*((name, _apart(stream, name, each)) for name, each in named.items()), (EVERY, ())),
    )
    if grid.slices * len(grid.receivers) > most:
        less = "" if most == MOST_ESTIMATED else ", or estimate them and patch the strongest: attribute(method='eap')"
        raise InvalidOption(
            f"senders= and receivers= name {grid.slices:,} and {len(named):,}: a map of more than {most:,} cells is "
            f"too large. Name fewer{less}."
        )
    yield grid


def _by_name(asked: Named, found: Callable[[Sequence[str]], Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """What is asked for by name: sets as they are called, single ones as they are written."""
    if isinstance(asked, Mapping):
        return {name: found(texts) for name, texts in asked.items()}
    return {str(each): (each,) for each in found(asked)}


def _apart(stream: Stream, name: str, receivers: Sequence[Receiver]) -> tuple[SingleReceiver, ...]:
    """What receivers under one name are, one by one. Raises InvalidOption where two are one place, whole or in part."""
    found = stream.readings(receivers)
    parts: dict[tuple[str, int], list[int | None]] = {}
    for component, layer, part in found:
        parts.setdefault((component, layer), []).append(part)
    for (component, layer), named in parts.items():
        inside = component in IN_HEADS and (stream.part(component, layer), layer) in parts
        if len({*named}) < len(named) or (None in named and len(named) > 1) or inside:
            raise InvalidOption(
                f"The receivers {name!r} name {component} {layer} twice, whole or in part. Name each place once."
            )
    return found


def _check_senders(stream: Stream, senders: Mapping[str, Sequence[NamedSite]]) -> None:
    """Raises InvalidOption where what a site adds to the stream is not told apart from what comes before it."""
    for site in dict.fromkeys(site for sites in senders.values() for site in sites):
        valid = site.component in SENDERS and (site.component != "resid_pre" or site.layers == (0, 0))
        if not valid:
            raise InvalidOption(
                f"'{site}' is no sender: heads by z, attn_out, mlp_out, mixer_out and the embedding (resid_pre 0) are "
                "what adds to the stream."
            )
        for layer, _ in site.places():
            part = stream.part(site.component, layer)
            if part != "resid_pre" and part not in stream.parts[layer]:
                raise InvalidOption(f"'{site}' is no sender: layer {layer} adds {' and '.join(stream.parts[layer])}.")
