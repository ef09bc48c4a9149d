"""Estimates by gradient, and how far they can be believed: attribution patching and integrated gradients.

An estimate is a screen, never an effect (AtP*: Kramar et al. 2024). So the strongest estimates and a random sample of
the rest are always patched for real, and how both agree is part of the result.

- atp: (donor - base) times the metric's gradient at the base run (attribution patching, Nanda 2023): two forwards and
  one backward for everything.
- ig: the gradient averaged at `steps` midpoints of the straight line from the base run's activations to the donor's
  (integrated gradients, Sundararajan et al. 2017), all positions of one layer's component together: as many forwards
  and backwards for each layer and component as steps.

1. Of each pair: what the metric is made of (`_terms`), and the estimate of every cell (`_estimates`).
2. What is known of cells beforehand (cuts, structural zeros), and which of the others are patched (`_chosen`).
3. These are patched, and both go into the same map: `estimated` everywhere, the exact numbers where there are any.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from causal_tracing.engine.backend import Backend, Differentiable, Recording
from causal_tracing.errors import InvalidOption
from causal_tracing.interventions.edits import Edit, From, Run
from causal_tracing.interventions.known import effective
from causal_tracing.interventions.sites import Site
from causal_tracing.interventions.write import Write
from causal_tracing.patching.ablation import check_patterns
from causal_tracing.patching.arrays import Sums, measurements_of
from causal_tracing.patching.cells import Cell, Question, worlds_of
from causal_tracing.patching.columns import patched_together
from causal_tracing.patching.grid import At, Grid
from causal_tracing.patching.job import Job
from causal_tracing.patching.measure import STEPS, Numbers
from causal_tracing.patching.metric import LOG_PROBS, Metric
from causal_tracing.patching.metrics import BUILT_IN
from causal_tracing.patching.options.trace import Progress
from causal_tracing.patching.preview import Preview, check_known, check_length, understood
from causal_tracing.patching.scoring import Scoring, spread, undefined
from causal_tracing.patching.spot_checks import Furthest, SpotChecks
from causal_tracing.prompts.alignment import Slot
from causal_tracing.prompts.pairs import TokenPair
from causal_tracing.prompts.scored import Behind, behind
from causal_tracing.results.arms import Arm
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.storage.join import joined
from causal_tracing.results.units import NEED_FOIL

PROBABILITIES = ("prob", "prob_diff")  # that add up over the texts of a set


@dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """How cells are estimated, and how many are patched of each component: the strongest, and random others."""

    method: str
    steps: int
    verify: int
    sample: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Term:
    """A part of the metric: a text behind the prompt, whose tokens are read, and how much it counts."""

    behind: tuple[int, ...]
    keep: int
    weight: float
    measure: Differentiable

    def longer(self, run: Run) -> Run:
        """The run with the text behind it."""
        return Run((*run.tokens, *self.behind), run.edits)


def screened(job: Job, screen: Screen, progress: Progress | None = None) -> Numbers:
    """A job's maps by estimates, with what was patched of them. All grids have the same single arm.

    Raises InvalidOption, InvalidPair.
    """
    for pair in job.pairs:
        _check_pair(job, pair)
    for pair in job.pairs:
        check_known(job.model, pair)
        check_length(job.model, pair)
    checks, found = SpotChecks(job), []
    for number in range(len(job.pairs)):
        found.append(_Screened(job, screen, job.question(number), _share(progress, number, len(job.pairs))))
    far = max((each.furthest for each in found if each.furthest), key=lambda each: each.tokens, default=None)
    checked = checks.pairs | ({far.number} if far else set())
    clean = {number: found[number].clean for number in checked}
    sums = {number: each.sums for number, each in enumerate(found)}
    unedited = {number: each.unedited for number, each in enumerate(found)}
    return Numbers(
        measurements=joined([each.measurements for each in found], {}),
        worlds=sum(each.worlds for each in found),
        worlds_run=sum(each.worlds_run for each in found),
        spot_checks=checks.run(sums, unedited, clean, far),
    )


def _share(progress: Progress | None, part: int, parts: int) -> Progress:
    """Progress of one of several parts of the work, told as progress of the whole."""

    def report(done: int, total: int) -> None:
        if progress:
            progress(round(STEPS * (part + done / max(1, total)) / parts), STEPS)

    return report


def _check_pair(job: Job, pair: TokenPair) -> None:
    if reason := undefined(job.metrics[0], pair):
        raise InvalidOption(f"pair {pair.id!r} has no {job.metric}: {reason}. Use metric='log_prob'.")
    if job.metric not in PROBABILITIES and any(len(behind(texts)) > 1 for texts in (pair.answers, pair.foils)):
        raise InvalidOption(
            f"pair {pair.id!r} has a set of texts of several tokens, and no estimate of {job.metric}: only their "
            "probabilities add up. Use metric='prob' or 'prob_diff', or texts of one token."
        )
    if pair.several_tokens and job.metrics[0] is not BUILT_IN.get(job.metric):
        raise InvalidOption(
            f"pair {pair.id!r} has texts of several tokens, and no estimate of {job.metric}: no gradient passes what "
            "its function gets of such texts. Use texts of one token, or trace()."
        )
    if any("pattern" in grid.components for grid in job.grids):
        check_patterns(Write(), pair)


class _Screened:
    """One pair: its estimates, what is known beforehand, what was patched."""

    def __init__(self, job: Job, screen: Screen, question: Question, progress: Progress) -> None:
        self.job, self.question, self.progress = job, question, progress
        (preview,), (self.clean,) = understood(job.model, job.backend, [question.pair], [question.contrast])
        terms = _terms(question.pair, job.metrics[0], self.clean)
        self.estimates = _estimates(job, screen, question, terms, _share(progress, 0, 2))
        number = question.number
        self.scoring = Scoring(job.backend, {number: question.pair}, {number: self.clean}, job.metrics)
        self.known = {grid.kind.name: _known(self.scoring, question, grid) for grid in job.grids}
        self.chosen = [
            (grid, at, why)
            for grid in job.grids
            for component in range(len(grid.components))
            for at, why in self._chosen(grid, component, screen)
        ]
        self.sums = {grid.kind.name: Sums(grid, 1, [metric.name for metric in job.metrics]) for grid in job.grids}
        self._patch()
        self.measurements = self._measurements(preview)

    def _chosen(self, grid: Grid, component: int, screen: Screen) -> Iterator[tuple[At, str]]:
        """What is patched of one component: it does not depend on which others were asked for."""
        estimates, known = self.estimates[grid.kind.name], self.known[grid.kind.name]
        cells = [at for at in grid.cells() if at[0] == component and not known[at] and not np.isnan(estimates[at])]
        order = np.argsort([-abs(estimates[at]) for at in cells], kind="stable")
        yield from ((cells[n], "top") for n in order[: screen.verify])
        name = grid.components[component]
        random = np.random.default_rng([self.job.options.seed, *name.encode()])
        yield from ((cells[n], "sample") for n in random.permutation(order[screen.verify :])[: screen.sample])

    def _patch(self) -> None:
        worlds = [
            (grid, Cell(arm=grid.arms[0], draw=0, at=at, world=world))
            for grid, at, _ in self.chosen
            for world in worlds_of(self.question, grid, grid.arms[0], 0, at)
        ]
        unedited = self.question.unedited
        asked = [*unedited, *self.scoring.repeats(unedited), *(cell.world for _, cell in worlds)]
        found = self.scoring.evaluate(asked, progress=_share(self.progress, 1, 2))
        runs = len(asked) - len(worlds)
        self.unedited, self.repeats = found.values[: len(unedited)], found.values[len(unedited) : runs]
        self.worlds, self.worlds_run = found.worlds, found.worlds_run
        self.furthest = None
        if found.furthest and found.furthest[1] >= runs:
            grid, cell = worlds[found.furthest[1] - runs]
            tokens, number = found.furthest[0], self.question.number
            self.furthest = Furthest(tokens=tokens, grid=grid, number=number, cell=cell)
        for (grid, cell), value in zip(worlds, found.values[runs:], strict=True):
            self.sums[grid.kind.name].add(cell, value, zero=False, cut=False)

    def _measurements(self, preview: Preview) -> Measurements:
        maps = {}
        for grid in self.job.grids:
            name, axes = grid.kind.name, grid.kind.axes
            found, known = self.sums[name].map(self.unedited), self.known[name]
            why = {reason: np.zeros(grid.shape, bool) for reason in ("top", "sample")}
            for its, at, reason in self.chosen:
                if its is grid:
                    why[reason][at] = True
            estimated = np.full((len(self.job.metrics), *grid.shape), np.nan)
            estimated[0] = self.estimates[name]
            there = ~np.isnan(self.estimates[name])
            flags = {
                "structural_zero": known == "structural_zero",
                "cut": known == "cut",
                "unpaired": known == "unpaired",
                "not_patched": there & (known == "") & ~why["top"] & ~why["sample"],
                "top": why["top"],
                "sampled": why["sample"],
            }
            maps[name] = found.assign(
                {"estimated": (("metric", *axes), estimated)} | {flag: (axes, each) for flag, each in flags.items()}
            )
        apart = spread(self.unedited, self.repeats)
        return measurements_of(preview, self.unedited, apart, maps, self.job.metrics)


def _known(scoring: Scoring, question: Question, grid: Grid) -> np.ndarray:
    """What is known of each cell beforehand: "structural_zero", "cut", "unpaired", or "" where it can matter.

    Parts of one component, layer and column share it.
    """
    found = np.full(grid.shape, "unpaired", dtype=object)
    for component, layer, column in np.ndindex(len(grid.components), len(grid.layers), len(grid.columns)):
        places = list(grid.places(component, layer, column))
        worlds = list(worlds_of(question, grid, grid.arms[0], 0, places[0])) if places else []
        if worlds:
            open_ = any(effective(world, scoring.rules) for world in worlds)
            cut = any(scoring.is_cut(world) for world in worlds)
            for at in places:
                found[at] = "cut" if cut and open_ else "" if open_ else "structural_zero"
    return found


def _terms(pair: TokenPair, metric: Metric, clean: Float[Tensor, " vocab"]) -> list[_Term]:
    """What the metric is the sum of: one prediction after the prompt, or what scores answers and foils behind it."""
    name = metric.name
    if not pair.several_tokens:
        firsts = tuple([tokens[0] for tokens in texts] for texts in (pair.answers, pair.foils))
        measure = partial(_one_token, name, *firsts)
        if metric is not BUILT_IN.get(name):
            measure = partial(_by_function, metric, clean, *firsts)
        return [_Term(behind=(), keep=1, weight=1.0, measure=measure)]
    texts = {1.0: pair.answers} | ({-1.0: pair.foils} if name in NEED_FOIL else {})
    return [
        _Term(
            behind=each.tokens,
            keep=len(each.tokens) + 1,
            weight=weight,
            measure=partial(_whole_text, name in PROBABILITIES, each),
        )
        for weight, side in texts.items()
        for each in behind(side)
    ]


def _one_token(
    metric: str, answers: list[int], foils: list[int], logits: Float[Tensor, "run 1 vocab"]
) -> Float[Tensor, " run"]:
    """The metric of answers of one token, so that gradients pass."""
    logits = logits[:, -1].to(torch.promote_types(logits.dtype, torch.float32))
    values = logits if metric in ("logit_diff", "logit") else logits.log_softmax(-1)
    answer, foil = values[:, answers].logsumexp(-1), values[:, foils].logsumexp(-1)
    match metric:
        case "logit_diff":
            return answer - foil
        case "logit" | "log_prob":
            return answer
        case "prob":
            return answer.exp()
        case _:
            return answer.exp() - foil.exp()


def _by_function(
    metric: Metric,
    clean: Float[Tensor, " vocab"],
    answers: list[int],
    foils: list[int],
    logits: Float[Tensor, "run 1 vocab"],
) -> Float[Tensor, " run"]:
    """A metric of the user's own, so that gradients pass its function."""
    logits = logits[:, -1].to(torch.promote_types(logits.dtype, torch.float32))
    tokens = (torch.tensor([each], dtype=torch.long, device=logits.device) for each in (answers, foils))
    mine, theirs = (each.expand(len(logits), -1) for each in tokens)
    values = logits.log_softmax(-1) if metric.takes == LOG_PROBS else logits
    return metric.measure(values, clean[None].to(logits), mine, theirs)


def _whole_text(probability: bool, text: Behind, logits: Float[Tensor, "run token vocab"]) -> Float[Tensor, " run"]:
    """The log-probability of what stands behind the prompt and any of what may come next, or its probability."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    tokens = torch.tensor(text.tokens, dtype=torch.long, device=logits.device).expand(len(logits), -1)
    log_probs = logits.log_softmax(-1)
    given = log_probs[:, :-1].gather(-1, tokens[..., None]).squeeze(-1).sum(-1)
    total = given + log_probs[:, -1, list(text.lasts)].logsumexp(-1)
    return total.exp() if probability else total


def _estimates(
    job: Job, screen: Screen, question: Question, terms: Sequence[_Term], progress: Progress
) -> dict[str, np.ndarray]:
    """The estimated effects of every cell by kind, each of a position of its own; NaN where it is paired with none."""
    arm, pair = job.grids[0].arms[0], question.pair
    slots = {n: one[0] for n, column in enumerate(job.grids[0].columns) for one in patched_together(pair, column)}
    places = [(name, layer) for grid in job.grids for name in grid.components for layer in grid.layers]
    moved = [
        _moved(job.backend, screen, term, question, arm, places, list(slots.values()), _share(progress, n, len(terms)))
        for n, term in enumerate(terms)
    ]
    weights = [(1.0 if arm.restores else -1.0) * term.weight for term in terms]
    found = {}
    for grid in job.grids:
        found[grid.kind.name] = into = np.full(grid.shape, np.nan)
        for (c, component), (n, layer) in product(enumerate(grid.components), enumerate(grid.layers)):
            both = zip(weights, moved, strict=True)
            values = np.sum([weight * each[component, layer] for weight, each in both], axis=0)  # [slot, part]
            target = into[c, n] if grid.kind.part else into[c, n][None]  # [part, column]
            target[: values.shape[1], list(slots)] = values.T
    return found


def _moved(
    backend: Backend,
    screen: Screen,
    term: _Term,
    question: Question,
    arm: Arm,
    places: Sequence[tuple[str, int]],
    slots: Sequence[Slot],
    progress: Progress,
) -> dict[tuple[str, int], np.ndarray]:
    """How far the term moves with what is put in at each slot [slot, part]."""
    base, donor = map(term.longer, question.contrast.sides(0, restores=arm.restores))
    here = [slot.corrupt if arm.restores else slot.clean for slot in slots]
    there = [slot.clean if arm.restores else slot.corrupt for slot in slots]
    donors = backend.record([donor], places)
    given = donors[donor].activations
    if screen.method == "atp":
        (found,) = backend.gradients([base], places, term.measure, keep=term.keep)
        held, slopes = ({place: each[place][0] for place in places} for each in found)
    else:
        held = backend.record([base], places)[base].activations
        slopes = {}
        for done, (component, layer) in enumerate(places):
            progress(done, len(places))
            sites = [Site(component, layer, position) for position in here]
            mean = integrated(
                backend, base, donor, sites, term.measure, screen.steps, there=there, donors=donors, keep=term.keep
            )
            slopes[component, layer] = torch.zeros_like(held[component, layer], dtype=mean.dtype)
            slopes[component, layer][here] = mean
    progress(1, 1)
    described, moved = backend.describe(), {}
    for place in places:
        apart = (given[place][there] - held[place][here]).double() * slopes[place][here].double()
        moved[place] = apart.unflatten(1, (described.parts(place[0]), -1)).sum(-1).cpu().numpy()
    return moved


def integrated(
    backend: Backend,
    base: Run,
    donor: Run,
    sites: Sequence[Site],
    measure: Differentiable,
    steps: int,
    *,
    there: Sequence[int] | None = None,
    donors: Mapping[Run, Recording] | None = None,
    keep: int = 1,
) -> Float[Tensor, "site width"]:
    """The gradient at sites of one component and layer, averaged over the way of all of them from base to donor.

    All sites move together and at the same pace, to what the donor has at the positions `there` (default: the same);
    what lies before them is the base run's, what lies behind them follows. Over them all, Σ (donor − base) · this tends
    to metric(patched) − metric(base) as steps grow.
    """
    component, layer = sites[0].component, sites[0].layer
    read = [site.position for site in sites] if there is None else there
    both = list(zip(sites, read, strict=True))
    runs = [
        Run(base.tokens, tuple(Edit(site, From(donor, at), (step + 0.5) / steps) for site, at in both))
        for step in range(steps)
    ]
    found = backend.gradients(runs, [(component, layer)], measure, donors=donors, keep=keep)
    parts = [part.gradients[component, layer].double().sum(0) for part in found]
    mean = torch.stack(parts).sum(0) / steps
    return mean[[site.position for site in sites]]
