"""The fast engine: never computes what a patch cannot change, and packs what is left into a few large products.

1. Record every base run once: the stream before each layer, and each layer's keys and values (`base_runs.py`).
2. Plan where each world joins, and with which tokens (`schedule.py`).
3. Walk the layers once (`layer_loop.py`). The tokens of all worlds lie in one sequence [1, token, d_model], so that the
   model's own layers run as long matrix products without padding. Only attention looks at worlds: each sees the keys
   and values of its base run before its first edit, and its own from there on.
4. In the last layer only what is read is computed, and the head is applied to that alone (`unembed.py`); where a
   measure looks at few words, to those.

Layers are called as they are, with what they were called with in the base run; no model code is written again.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial

from jaxtyping import Float
from torch import Tensor

from causal_tracing.engine.backend import Donor, Measure, Sparing, whole
from causal_tracing.engine.checks.words import spares_words
from causal_tracing.engine.hooks.apply import Write, rewritten
from causal_tracing.engine.hooks.attending import require_sight, visible
from causal_tracing.engine.hooks.forward import check_layers
from causal_tracing.engine.memory import Sizes, in_batches, sizes
from causal_tracing.engine.packed.base_runs import Tape, Tapes
from causal_tracing.engine.packed.donors import behind_bases, recorded_behind
from causal_tracing.engine.packed.layer_loop import Wave
from causal_tracing.engine.packed.schedule import groups
from causal_tracing.engine.packed.unembed import logits_of
from causal_tracing.engine.progress import Tick, never
from causal_tracing.interventions.donors import Kept, in_levels, read_by
from causal_tracing.interventions.edits import Attending, Edit, Run, World
from causal_tracing.interventions.sites import FINAL_SCALE
from causal_tracing.models.model import Model

STATES = 4096  # whose few words are computed at once


class Packed:
    """Worlds on the packed engine: batches of them (waves), and a wave's logits."""

    def __init__(
        self,
        model: Model,
        worlds: Sequence[World],
        budget: int,
        known: Tapes | None = None,
        call: int | None = None,
    ) -> None:
        self.model = model
        self.worlds = worlds
        self.sizes = sizes(model, budget, call)
        bases, runs = ([getattr(world, name) for world in worlds] for name in ("base", "run"))
        self.tapes, self.donors = recorded(model, bases, read_by(runs), runs, known or Tapes(model), self.sizes)
        _check_sight(worlds, self.tapes)
        self.furthest = (0, -1)  # as a wave has it

    def batches(self, rows: int | None = None) -> Iterator[list[int]]:
        """The worlds' numbers, in waves that fit the memory; `rows` caps their number."""
        # Counted as if each had all of its tokens: the plan, which knows better, is made for a whole batch.
        yield from in_batches((len(world.base.tokens) for world in self.worlds), self.sizes.wave, rows)

    def logits(self, batch: Sequence[int]) -> Iterator[tuple[list[int], Float[Tensor, "world readout vocab"]]]:
        """The worlds' logits at their readouts, some worlds at a time."""
        yield from self.numbers(batch, whole)

    def numbers(
        self, batch: Sequence[int], measure: Measure, tick: Tick = never
    ) -> Iterator[tuple[list[int], Float[Tensor, "world *metric"]]]:
        """What a measure makes of the worlds' logits, some worlds at a time; `tick` is told of every layer."""
        order = {tape: number for number, tape in enumerate(dict.fromkeys(self.tapes.values()))}
        by_run = {run: order[tape] for run, tape in self.tapes.items()}
        planned = groups(self.worlds, batch, by_run, self.model.num_layers, self.model.anatomy.added_from)
        with self.model.at_rest():
            wave = Wave(self.model, [*order], planned, self.donors, self.sizes.call)
            ends = wave.run(tick)
        self.furthest = max(self.furthest, wave.furthest)
        tuples = next(iter(order)).calls[-1].tuples
        for numbers, states in ends:
            for some, words in self._parts(numbers, states.shape[1], measure):
                worlds = [self.worlds[number] for number in numbers[some]]
                yield numbers[some], self._measured(states[some], worlds, measure, words, tuples)

    def _parts(
        self, numbers: Sequence[int], readout: int, measure: Measure
    ) -> Iterator[tuple[slice, tuple[int, ...] | None]]:
        """Worlds in parts whose logits fit the memory, and the words that are looked at there; None: all."""
        # Few words' logits are a fraction of the vocabulary's, so that many more states fit.
        size = max(1, (STATES if isinstance(measure, Sparing) else self.sizes.head) // readout)
        for start in range(0, len(numbers), size):
            some = slice(start, min(start + size, len(numbers)))
            worlds = [self.worlds[number] for number in numbers[some]]
            words = measure.words(worlds) if isinstance(measure, Sparing) else None
            if words is not None:
                yield some, words
                continue
            fit = max(1, self.sizes.head // readout)
            yield from ((slice(at, min(at + fit, some.stop)), None) for at in range(start, some.stop, fit))

    def _measured(
        self,
        states: Float[Tensor, "world readout d_model"],
        worlds: Sequence[World],
        measure: Measure,
        words: Sequence[int] | None,
        tuples: bool,
    ) -> Float[Tensor, "world *metric"]:
        flat, how = states.flatten(0, 1), {"token": worlds[0].base.tokens[0], "tuples": tuples}
        with self.model.at_rest():
            # The head's rows are tried once on the network; else the whole head is asked, and few of its words are
            # read.
            spared = words is not None and spares_words(self.model, flat, words, **how)
            rows = words if spared else None
            logits = logits_of(self.model, flat, words=rows, scales=self._scales(worlds), **how)
        logits = logits.view(*states.shape[:2], -1)
        if spared and isinstance(measure, Sparing) and words is not None:
            return measure.of_words(logits, worlds, words)
        return measure(logits, worlds)

    def _scales(self, worlds: Sequence[World]) -> Callable[[Tensor], Tensor] | None:
        """What the final norm divides these worlds' states by, where that is written; None where it is not."""
        writes: list[Write] = []
        for number, world in enumerate(worlds):
            for edit in world.run.edits:
                if edit.site.component == FINAL_SCALE and edit.site.position in world.readout:
                    row = number * len(world.readout) + world.readout.index(edit.site.position)
                    writes.append((row, edit))
        return partial(rewritten, writes=writes, donors=self.donors) if writes else None


def read(
    model: Model, base: Run, wanted: Mapping[Run, Collection[Kept]], budget: int, known: Tapes, call: int | None
) -> Mapping[Run, Donor]:
    """Single activations of runs that are mostly the base run with more edits: what these cannot change is its own."""
    # What these runs' own edits read is kept of theirs in turn.
    kept = read_by(wanted)
    for run, each in wanted.items():
        kept[run] = kept.get(run, {}) | dict.fromkeys(each)
    return recorded(model, [base], kept, wanted, known, sizes(model, budget, call))[1]


def recorded(
    model: Model,
    bases: Collection[Run],
    kept: Mapping[Run, Collection[Kept]],
    runs: Collection[Run],
    known: Tapes,
    limits: Sizes,
) -> tuple[dict[Run, Tape], dict[Run, Donor]]:
    """A tape of every base run, and what is `kept` of donors; those come behind the ones that they read themselves.

    `runs` are those whose edits are made.
    """
    # Before anything is recorded at a layer that is not there.
    check_layers(model, (edit for run in dict.fromkeys(runs) for edit in run.edits))
    bases = dict.fromkeys(bases)
    behind = behind_bases(bases, kept)
    places = {run: {each[:2] for each in wanted} for run, wanted in kept.items()}
    whole = [run for run in kept if run not in behind]
    of_whole = {place for run in whole for place in places[run]}
    of_bases = {place for run in behind for place in places[run]}  # what their edits do not change is their base run's
    found = known.of(list(dict.fromkeys([*bases, *whole])), of_whole | of_bases)
    donors: dict[Run, Donor] = {run: found[run].recordings[run] for run in found}
    tapes = {base: found[base] for base in bases}
    # A level reads of those before it alone: what its edits need is among the donors by then.
    for level in in_levels(kept):
        some = {run: behind[run] for run in level if run in behind}
        donors |= recorded_behind(model, some, kept, tapes, donors, limits)
    return tapes, donors


def _check_sight(worlds: Sequence[World], tapes: Mapping[Run, Tape]) -> None:
    """Raises InvalidEdit where a query would see no key at all. Asked here: in a wave a device would be waited for."""
    told: dict[tuple[Tape, int], list[tuple[int, Edit]]] = {}
    for world in worlds:
        tape = tapes[world.base]
        for edit in world.run.edits:
            if isinstance(edit.source, Attending) and edit.source.blocked:
                told.setdefault((tape, edit.site.layer), []).append((tape.rows[world.base], edit))
    for (tape, layer), edits in told.items():
        require_sight(visible(tape.attended[layer].mask), edits)
