"""Worlds to numbers: every metric, by the answer and foil of each world's own pair.

An answer or foil of several tokens is scored teacher-forced: each world is run twice, with the answer behind the
prompt and with the foil, with the same edits (which are in the prompt). Then log_prob is the sum over the answer's
tokens, and logit_diff the sum over the answer's minus the sum over the foil's: for single tokens, that is the
difference of their logits. What depends on the prediction right after the prompt (neg_kl, entropy) stays as it is;
a logit or a rank of several tokens is undefined.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from causal_tracing.engine.backend import Backend
from causal_tracing.interventions.edits import Attending, Edit, From, Mean, Run, Source, Subspace, World
from causal_tracing.interventions.known import is_cut
from causal_tracing.interventions.sites import RESIDUAL
from causal_tracing.patching.contrast import of_clean
from causal_tracing.patching.metrics import NO_TOKEN, measure_readouts
from causal_tracing.patching.preview import log_probs
from causal_tracing.prompts.pairs import TokenPair
from causal_tracing.results.units import METRICS

REPEATS = 3  # of an unedited run
BOTH = 2  # of a pair's unedited runs are repeated: the clean one, and one corrupt one, however many draws there are
LOG_PROB, LOGIT_DIFF = METRICS.index("log_prob"), METRICS.index("logit_diff")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """Worlds' numbers in the order of METRICS, [world, metric]; how many worlds were asked for, and how many run.

    Repeats are in neither count. `furthest` is as an `Evaluation` has it, the world numbered as it was asked for.
    """

    values: Float[np.ndarray, "world metric"]
    structural_zero: Bool[np.ndarray, " world"]
    worlds: int
    worlds_run: int
    furthest: tuple[int, int] | None = None


class Scoring:
    """How the worlds of some pairs are measured on a backend. A world's `pair` is a key of `pairs`.

    `clean` is what the model expects after each pair's clean prompt; where it is not given, these prompts are run.
    """

    def __init__(
        self,
        backend: Backend,
        pairs: Mapping[int, TokenPair],
        clean: Mapping[int, Float[Tensor, " vocab"]] | None = None,
    ) -> None:
        self.backend = backend
        self.pairs = pairs
        self.rules = backend.describe().rules
        if clean is None:
            references = log_probs(backend, [Run(pair.clean.tokens) for pair in pairs.values()])
            clean = dict(zip(pairs, references, strict=True))
        self.clean = clean

    def evaluate(self, worlds: Sequence[World], **options: Any) -> Scored:
        """Each world's numbers; options and errors as `Backend.evaluate` has them."""
        taken = [asked_for(self.pairs[world.pair], world) for world in worlds]
        flat = [world for runs in taken for world in runs]
        found = self.backend.evaluate(flat, _Numbers(self.pairs, self.clean), **options)
        repeats = sum(world.again > 0 for world in flat)
        count = {"worlds": len(flat) - repeats, "worlds_run": found.worlds_run - repeats}
        if len(flat) == len(worlds):
            zero = found.structural_zero
            return Scored(values=found.values, structural_zero=zero, **count, furthest=found.furthest)
        firsts = np.cumsum([0, *(len(runs) for runs in taken[:-1])])
        values, zero = found.values[firsts], found.structural_zero[firsts]
        for place, (first, runs) in enumerate(zip(firsts, taken, strict=True)):
            if len(runs) > 1:
                values[place, LOGIT_DIFF] = values[place, LOG_PROB] - found.values[first + 1, LOG_PROB]
                zero[place] &= found.structural_zero[first + 1]
        far = found.furthest and (found.furthest[0], int(np.searchsorted(firsts, found.furthest[1], "right")) - 1)
        return Scored(values=values, structural_zero=zero, **count, furthest=far)

    def is_cut(self, world: World) -> bool:
        """Whether the whole difference must pass the edited sites, in all that is run for a world.

        A window of layers is a cut where one of its layers is: the others write what is there, or what is replaced.
        """
        runs = asked_for(self.pairs[world.pair], world)
        layers = dict.fromkeys(edit.site.layer for edit in world.edits if edit.site.component in RESIDUAL)
        return any(all(is_cut(run, self.rules, layer) for run in runs) for layer in layers)

    def repeats(self, unedited: Sequence[World]) -> list[World]:
        """The first unedited worlds of a pair again (the clean one, and one corrupt one), to ride along with its cells.

        They begin at up to three layers, evenly spread: of fewer layers they have other shapes.
        """
        layers = sorted({self.rules.num_layers * n // REPEATS for n in range(REPEATS)})
        return [replace(world, again=1 + layer) for world in unedited[:BOTH] for layer in layers]


@dataclass(frozen=True, slots=True, eq=False)
class _Numbers:
    """What is measured of worlds' logits: by the answer and foil of each world's pair. A `Portable` measure."""

    pairs: Mapping[int, TokenPair]
    clean: Mapping[int, Float[Tensor, " vocab"]]
    function = staticmethod(measure_readouts)

    def __call__(
        self, logits: Float[Tensor, "world readout vocab"], worlds: Sequence[World]
    ) -> Float[Tensor, "world metric"]:
        """All of these read equally many positions, the prompt's last one first."""
        return self.function(logits, *self.data(worlds))

    def data(self, worlds: Sequence[World]) -> tuple[Tensor, ...]:
        """Answers, foils, what the clean runs expect, and the texts behind the prompts.

        The numbers of a world with an answer or foil behind the prompt are of that text alone: its `pair` is negative.
        """
        numbers = [_number(world) for world in worlds]
        pairs = [self.pairs[number] for number in numbers]
        same = numbers[:1] if len(set(numbers)) == 1 else numbers
        none = (NO_TOKEN,) * len(worlds[0].readout)
        texts = [none if world.pair >= 0 else _text(pair, world) for pair, world in zip(pairs, worlds, strict=True)]
        return (
            torch.tensor([pair.answer for pair in pairs]),
            torch.tensor([NO_TOKEN if pair.foil is None else pair.foil for pair in pairs]),
            torch.stack([self.clean[number] for number in same]),
            torch.tensor(texts),
        )


def asked_for(pair: TokenPair, world: World) -> tuple[World, ...]:
    """What is run for a world: itself, or the prompt with the answer behind it and with the foil (if any)."""
    if not pair.several_tokens:
        return (world,)
    answered = _continued(world, pair.answer_tokens, -1 - 2 * world.pair)
    if not pair.foil_tokens:
        return (answered,)
    return answered, _continued(world, pair.foil_tokens, -2 - 2 * world.pair)


def preferences(
    backend: Backend, pairs: Sequence[TokenPair], expected: Sequence[Float[Tensor, " vocab"]]
) -> list[float]:
    """By how much each pair's clean run prefers the answer to the foil, as logit_diff has it; NaN without a foil.

    `expected` is what the model expects after each clean prompt: only texts of several tokens are run again.
    """
    several = {n: pair for n, pair in enumerate(pairs) if pair.foil_tokens and pair.several_tokens}
    scored: dict[int, float] = {}
    if several:
        worlds = [World(of_clean(pair), (), (len(pair.clean.tokens) - 1,), n) for n, pair in several.items()]
        found = Scoring(backend, several, dict(enumerate(expected))).evaluate(worlds).values[:, LOGIT_DIFF]
        scored = dict(zip(several, found.tolist(), strict=True))
    return [
        scored[n] if n in scored else float(each[pair.answer] - each[pair.foil]) if pair.foil is not None else math.nan
        for n, (pair, each) in enumerate(zip(pairs, expected, strict=True))
    ]


def spread(
    unedited: Float[np.ndarray, "run metric"], repeats: Float[np.ndarray, "repeat metric"]
) -> Float[np.ndarray, " metric"]:
    """How far the numbers of a pair's unedited runs spread, by `Scoring.repeats`: the larger standard deviation of two.

    What remains when nothing changes but the shape of the computation, on the backend that runs the cells: no effect
    can be told from less.
    """
    both = unedited[:BOTH]
    again = repeats.reshape(len(both), -1, repeats.shape[-1])
    return np.concatenate([both[:, None], again], axis=1).std(axis=1).max(axis=0)


def _number(world: World) -> int:
    """The pair that a world belongs to: −1 − 2n is the answer of pair n, −2 − 2n its foil."""
    return world.pair if world.pair >= 0 else (-1 - world.pair) // 2


def _text(pair: TokenPair, world: World) -> tuple[int, ...]:
    return pair.answer_tokens if world.pair % 2 else pair.foil_tokens


def _continued(world: World, text: tuple[int, ...], pair: int) -> World:
    """The same what-if with a text behind the prompt, read where each of its tokens is predicted."""
    length, behind = len(world.base.tokens), text[:-1]

    def longer(run: Run) -> Run:
        return Run((*run.tokens, *behind), run.edits) if len(run.tokens) == length else run

    edits = tuple(Edit(edit.site, _with_donors(edit.source, longer), edit.alpha) for edit in world.edits)
    return World(longer(world.base), edits, tuple(range(length - 1, length - 1 + len(text))), pair, world.again)


def _with_donors(source: Source, change: Callable[[Run], Run]) -> Source:
    """The source with its donors' runs changed."""

    def at(donor: From) -> From:
        return From(change(donor.run), donor.position)

    match source:
        case From():
            return at(source)
        case Mean():
            return Mean(tuple(at(donor) for donor in source.donors))
        case Subspace():
            return Subspace(source.basis, at(source.donor))
        case Attending():
            given = {name: tuple((key, at(donor)) for key, donor in getattr(source, name)) for name in ("q", "k", "v")}
            return replace(source, **given)
        case _:
            return source
