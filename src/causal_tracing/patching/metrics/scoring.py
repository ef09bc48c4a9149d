"""Worlds to numbers: every metric, by the answer and foil of each world's own pair.

An answer or foil of several tokens is scored teacher-forced: each world is run twice, with the answer behind the
prompt and with the foil, with the same edits (which are in the prompt). Then log_prob is the sum over the answer's
tokens, and logit_diff the sum over the answer's minus the sum over the foil's: for single tokens, that is the
difference of their logits. What depends on the prediction right after the prompt (neg_kl, entropy) stays as it is;
a logit or a rank of several tokens is undefined.

A set of such texts has the sum of their probabilities. Each is run behind the prompt, and those that differ in their
last token alone together: that token is read from one run (`behind`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from causal_tracing.engine.backend import Backend
from causal_tracing.interventions.edits import Attending, Edit, From, Mean, Run, Source, Subspace, World
from causal_tracing.interventions.known import is_cut
from causal_tracing.interventions.sites import RESIDUAL
from causal_tracing.patching.contrast import of_clean
from causal_tracing.patching.metrics.built_in import BUILT_IN, NO_TOKEN, measure_readouts, measures_of
from causal_tracing.patching.metrics.metric import Metric
from causal_tracing.patching.preview import log_probs, preferred
from causal_tracing.prompts.pairs import TokenPair
from causal_tracing.prompts.scored import Behind, behind
from causal_tracing.results.effects import NEEDS_FOIL

REPEATS = 3  # of an unedited run
BOTH = 2  # of a pair's unedited runs are repeated: the clean one, and one corrupt one, however many draws there are
RUNS = 1 << 16  # that score the texts of one pair, at most: so are a world's pair and which of its runs one number


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """Worlds' numbers in the order of the metrics, [world, metric]; how many worlds were asked for, and how many run.

    Repeats are in neither count. `furthest` is as an `Evaluation` has it, the world numbered as it was asked for.
    """

    values: Float[np.ndarray, "world metric"]
    structural_zero: Bool[np.ndarray, " world"]
    worlds: int
    worlds_run: int
    furthest: tuple[int, int] | None = None


class Scoring:
    """How the worlds of some pairs are measured on a backend. A world's `pair` is a key of `pairs`.

    `metrics` are what is measured, in this order (default: the built-in ones). `clean` is what the model expects after
    each pair's clean prompt; where it is not given, these prompts are run.
    """

    def __init__(
        self,
        backend: Backend,
        pairs: Mapping[int, TokenPair],
        clean: Mapping[int, Float[Tensor, " vocab"]] | None = None,
        metrics: Sequence[Metric] = tuple(BUILT_IN.values()),
    ) -> None:
        self.backend = backend
        self.metrics = metrics
        self.pairs = pairs
        self.rules = backend.describe().rules
        self.several = frozenset(number for number, pair in pairs.items() if pair.several_tokens)
        if clean is None:
            references = log_probs(backend, [Run(pair.clean.tokens) for pair in pairs.values()])
            clean = dict(zip(pairs, references, strict=True))
        self.clean = clean

    def evaluate(self, worlds: Sequence[World], **options: Any) -> Scored:
        """Each world's numbers; options and errors as `Backend.evaluate` has them."""
        taken = [self._asked_for(world) for world in worlds]
        flat = [world for runs in taken for world in runs]
        found = self.backend.evaluate(flat, _Numbers(self.pairs, self.clean, self.metrics), **options)
        repeats = [world for world in flat if world.again > 0]  # those of equal prompts are run once
        count = {"worlds": len(flat) - len(repeats), "worlds_run": found.worlds_run - len({*repeats})}
        firsts = np.cumsum([0, *(len(runs) for runs in taken[:-1])])
        # Of a world with several runs the first stands for it; the last column is what each text scores.
        values, zero = found.values[firsts, :-1], found.structural_zero[firsts]
        for place, world in enumerate(worlds):
            if world.pair in self.several:
                its = slice(firsts[place], firsts[place] + len(taken[place]))
                values[place] = _of_texts(self.metrics, self.pairs[world.pair], found.values[its])
                zero[place] = found.structural_zero[its].all()
        far = found.furthest and (found.furthest[0], int(np.searchsorted(firsts, found.furthest[1], "right")) - 1)
        return Scored(values=values, structural_zero=zero, **count, furthest=far)

    def is_cut(self, world: World) -> bool:
        """Whether the whole difference must pass the edited sites, in all that is run for a world.

        A window of layers is a cut where one of its layers is: the others write what is there, or what is replaced.
        """
        layers = dict.fromkeys(edit.site.layer for edit in world.edits if edit.site.component in RESIDUAL)
        runs = self._asked_for(world) if layers else ()
        return any(all(is_cut(run, self.rules, layer) for run in runs) for layer in layers)

    def _asked_for(self, world: World) -> tuple[World, ...]:
        """What is run for a world."""
        return asked_for(self.pairs[world.pair], world) if world.pair in self.several else (world,)

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
    metrics: Sequence[Metric]
    function = staticmethod(measure_readouts)

    def __call__(
        self, logits: Float[Tensor, "world readout vocab"], worlds: Sequence[World]
    ) -> Float[Tensor, "world metric"]:
        """All of these read equally many positions, the prompt's last one first."""
        return self.function(logits, *self.data(worlds))

    def words(self, worlds: Sequence[World]) -> tuple[int, ...] | None:
        """The first tokens of answers and foils, where no metric looks at others and no text is scored."""
        pairs = [self.pairs[number] for number in {world.pair for world in worlds} if number >= 0]
        # A text of several tokens is scored by log-probabilities, which need all words.
        whole = any(world.pair < 0 for world in worlds) or any(pair.several_tokens for pair in pairs)
        if whole or not all(metric.few for metric in self.metrics):
            return None
        return tuple(sorted({tokens[0] for pair in pairs for tokens in (*pair.answers, *pair.foils)}))

    def of_words(
        self, logits: Float[Tensor, "world readout word"], worlds: Sequence[World], words: Sequence[int]
    ) -> Float[Tensor, "world metric"]:
        """The numbers, answers and foils by their places among these words."""
        measures, answers, foils, clean, *behind = self.data(worlds)
        there = torch.tensor(words)
        answers, foils = (
            torch.where(tokens == NO_TOKEN, NO_TOKEN, torch.searchsorted(there, tokens)) for tokens in (answers, foils)
        )
        return self.function(logits, measures, answers, foils, clean[:, there.to(clean.device)], *behind)

    def data(self, worlds: Sequence[World]) -> tuple[Any, ...]:
        """The measures, answers, foils, what clean runs expect, what stands behind the prompts, and what may come next.

        The numbers of a world with a text behind the prompt are of that text alone: its `pair` is negative.
        """
        numbers = [_number(world) for world in worlds]
        many, one = len(worlds), len(set(numbers)) == 1  # of one pair its tokens are told once, and repeated
        pairs = [self.pairs[number] for number in (numbers[:1] if one else numbers)]
        plain = all(world.pair >= 0 for world in worlds)
        none = Behind(tokens=(NO_TOKEN,) * (len(worlds[0].readout) - 1), lasts=())
        texts = [none] if plain else [self._text(world) or none for world in worlds]
        answers = _padded([[tokens[0] for tokens in pair.answers] for pair in pairs])
        foils = _padded([[tokens[0] for tokens in pair.foils] if _single(pair.foils) else [] for pair in pairs])
        behind = torch.tensor([each.tokens for each in texts], dtype=torch.long)
        lasts = _padded([each.lasts for each in texts])
        return (
            measures_of(self.metrics),
            answers.repeat(many if one else 1, 1),
            foils.repeat(many if one else 1, 1),
            torch.stack([self.clean[number] for number in (numbers[:1] if one else numbers)]),
            behind.repeat(many if plain else 1, 1),
            lasts.repeat(many if plain else 1, 1),
        )

    def _text(self, world: World) -> Behind | None:
        """What stands behind a world's prompt, if anything does."""
        return None if world.pair >= 0 else _text(self.pairs[_number(world)], world)


def _padded(tokens: Sequence[Sequence[int]]) -> Int[Tensor, "world most"]:
    """Some tokens a world, NO_TOKEN behind the last one."""
    # One column at least: whether there is any token at all is asked of the first.
    most = max(1, *map(len, tokens))
    return torch.tensor([[*each, *[NO_TOKEN] * (most - len(each))] for each in tokens])


def _of_texts(
    metrics: Sequence[Metric], pair: TokenPair, runs: Float[np.ndarray, "run number"]
) -> Float[np.ndarray, " metric"]:
    """A world's numbers, of those of the runs that score its answers and then its foils, the text's own behind them."""
    found, log_probs = runs[0, :-1].copy(), runs[:, -1]
    count = len(behind(pair.answers))
    answers = np.logaddexp.reduce(log_probs[:count])
    foils = np.logaddexp.reduce(log_probs[count:]) if pair.foils else math.nan
    for place, metric in enumerate(metrics):
        if metric.of_texts is not None:
            with np.errstate(invalid="ignore"):
                found[place] = metric.of_texts(answers, foils)
        elif undefined(metric, pair):
            found[place] = math.nan
    return found


def undefined(metric: Metric, pair: TokenPair) -> str:
    """Why a pair has no such metric; empty where it has."""
    if metric.needs_foil and not pair.foils:
        return NEEDS_FOIL
    single = _single(pair.answers) and (_single(pair.foils) or not metric.needs_foil)
    if metric.reads_texts and metric.of_texts is None and not single:
        return f"an answer of several tokens has no single {metric.name.removeprefix('neg_')}"
    return ""


def _single(texts: Sequence[Sequence[int]]) -> bool:
    """Whether each text is one token."""
    return all(len(tokens) == 1 for tokens in texts)


def asked_for(pair: TokenPair, world: World) -> tuple[World, ...]:
    """What is run for a world: itself, or the prompt with what scores its answers and then its foils (if any)."""
    if not pair.several_tokens:
        return (world,)
    texts = _texts(pair)
    assert len(texts) <= RUNS
    # From −1 on: the first run of pair 0 must be negative too.
    return tuple(_continued(world, each, -1 - (world.pair * RUNS + n)) for n, each in enumerate(texts))


def preferences(
    backend: Backend, pairs: Sequence[TokenPair], expected: Sequence[Float[Tensor, " vocab"]]
) -> list[float]:
    """By how much each pair's clean run prefers the answer to the foil, as logit_diff has it; NaN without a foil.

    `expected` is what the model expects after each clean prompt: only texts of several tokens are run again.
    """
    several = {n: pair for n, pair in enumerate(pairs) if pair.foils and pair.several_tokens}
    scored: dict[int, float] = {}
    if several:
        worlds = [World(of_clean(pair), (), (len(pair.clean.tokens) - 1,), n) for n, pair in several.items()]
        found = (
            Scoring(backend, several, dict(enumerate(expected)), [BUILT_IN["logit_diff"]]).evaluate(worlds).values[:, 0]
        )
        scored = dict(zip(several, found.tolist(), strict=True))
    return [
        scored[n] if n in scored else preferred(pair, each) if pair.foils else math.nan
        for n, (pair, each) in enumerate(zip(pairs, expected, strict=True))
    ]


def spread(
    unedited: Float[np.ndarray, "run metric"], repeats: Float[np.ndarray, "repeat metric"]
) -> Float[np.ndarray, " metric"]:
    """How far the numbers of a pair's unedited runs spread, by `Scoring.repeats`: the larger standard deviation of two.

    What remains when nothing changes but the shape of the computation, on the backend that runs the cells: no effect
    can be told from less.
    """
    # Repeats come in the order of `Scoring.repeats`: all of one run, then all of the other.
    both = unedited[:BOTH]
    again = repeats.reshape(len(both), -1, repeats.shape[-1])
    with np.errstate(invalid="ignore"):  # of texts that the model never says
        return np.concatenate([both[:, None], again], axis=1).std(axis=1).max(axis=0)


def _number(world: World) -> int:
    """The pair that a world belongs to: −1 − (n · RUNS + k) is the k-th run that scores texts of pair n."""
    return world.pair if world.pair >= 0 else (-1 - world.pair) // RUNS


def _text(pair: TokenPair, world: World) -> Behind:
    return _texts(pair)[(-1 - world.pair) % RUNS]


def _texts(pair: TokenPair) -> tuple[Behind, ...]:
    return (*behind(pair.answers), *behind(pair.foils))


def _continued(world: World, text: Behind, pair: int) -> World:
    """The same what-if with a text behind the prompt, read where each of its tokens is predicted, and the next one."""
    length = len(world.base.tokens)

    def longer(run: Run) -> Run:
        # A pattern goes over all tokens of a run, so that donors grow with it. One of another length is read as it is:
        # nothing behind its tokens reaches them.
        return Run((*run.tokens, *text.tokens), run.edits) if len(run.tokens) == length else run

    edits = tuple(Edit(edit.site, _with_donors(edit.source, longer), edit.alpha) for edit in world.edits)
    return World(longer(world.base), edits, tuple(range(length - 1, length + len(text.tokens))), pair, world.again)


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
