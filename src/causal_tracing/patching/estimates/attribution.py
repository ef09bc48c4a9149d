"""Estimates by gradient, and how far they can be believed.

An estimate is a screen, never an effect (AtP*: Kramar et al. 2024). So the strongest estimates and a random sample of
the rest are always patched for real, and how both agree is part of the result.

1. Of each pair the estimate of every cell: of sites (`site_estimates`), or of paths (`path_estimates`).
2. What is known of cells beforehand (cuts, structural zeros), and which of the others are patched (`_chosen`).
3. These are patched, and both go into the same map: `estimated` everywhere, the exact numbers where there are any.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from causal_tracing.errors import InvalidOption
from causal_tracing.interventions.known import effective
from causal_tracing.interventions.write import Write
from causal_tracing.patching.ablation import check_patterns
from causal_tracing.patching.arrays import Sums, measurements_of
from causal_tracing.patching.cells import Cell, Question, worlds_of
from causal_tracing.patching.estimates.paths import path_estimates
from causal_tracing.patching.estimates.screen import Screen, share
from causal_tracing.patching.estimates.sites import site_estimates
from causal_tracing.patching.grid import At, Grid
from causal_tracing.patching.job import Job
from causal_tracing.patching.kinds.senders import PathGrid
from causal_tracing.patching.measure import Numbers
from causal_tracing.patching.metrics.built_in import BUILT_IN
from causal_tracing.patching.metrics.scoring import Scoring, spread, undefined
from causal_tracing.patching.metrics.terms import PROBABILITIES, terms_of
from causal_tracing.patching.options.trace import Progress
from causal_tracing.patching.preview import Preview, check_known, check_length, understood
from causal_tracing.patching.spot_checks import Furthest, SpotChecks
from causal_tracing.prompts.pairs import TokenPair
from causal_tracing.prompts.scored import behind
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.storage.join import joined


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
        found.append(_screened(job, screen, job.question(number), share(progress, number, len(job.pairs))))
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


def _check_pair(job: Job, pair: TokenPair) -> None:
    if reason := undefined(job.metrics[0], pair):
        raise InvalidOption(f"pair {pair.id!r} has no {job.metric}: {reason}. Use metric='log_prob'.")
    read = (pair.answers, *([pair.foils] if job.metrics[0].needs_foil else []))
    if job.metric not in PROBABILITIES and any(len(behind(texts)) > 1 for texts in read):
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Estimated:
    """One pair before anything is patched: its estimates, what is known beforehand, and what is to be patched.

    Estimates and what is known are by kind of site; what is chosen is a cell of a grid, and why ("top", "sample").
    """

    job: Job
    question: Question
    preview: Preview
    scoring: Scoring
    estimates: Mapping[str, np.ndarray]
    known: Mapping[str, np.ndarray]
    chosen: Sequence[tuple[Grid, At, str]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Screened:
    """One pair with what was patched of it, and its map; `clean` is what the model expects after its clean prompt."""

    clean: Float[Tensor, " vocab"]
    sums: Mapping[str, Sums]
    unedited: Float[np.ndarray, "run metric"]
    measurements: Measurements
    worlds: int
    worlds_run: int
    furthest: Furthest | None


def _screened(job: Job, screen: Screen, question: Question, progress: Progress) -> _Screened:
    """One pair: first the estimates, then what is patched."""
    (preview,), (clean,) = understood(job.model, job.backend, [question.pair], [question.contrast])
    scoring = Scoring(job.backend, {question.number: question.pair}, {question.number: clean}, job.metrics)
    estimates, known = _estimates(job, screen, question, scoring, share(progress, 0, 2))
    chosen = [
        (grid, at, why)
        for grid in job.grids
        for component in range(len(grid.components))
        for at, why in _chosen(job, screen, grid, component, estimates[grid.kind.name], known[grid.kind.name])
    ]
    pair = _Estimated(
        job=job,
        question=question,
        preview=preview,
        scoring=scoring,
        estimates=estimates,
        known=known,
        chosen=chosen,
    )
    return _patched(pair, share(progress, 1, 2))


def _estimates(
    job: Job, screen: Screen, question: Question, scoring: Scoring, progress: Progress
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The estimates of every kind's cells, and what is known of these beforehand."""
    terms = terms_of(question.pair, job.metrics[0], scoring.clean[question.number])
    estimates, known = {}, {}
    for grid in job.grids:
        name = grid.kind.name
        if isinstance(grid, PathGrid):
            estimates[name], known[name] = path_estimates(job, screen, question, grid, terms[0], scoring, progress)
        else:
            known[name] = _known(scoring, question, grid)
    sites = [grid for grid in job.grids if not isinstance(grid, PathGrid)]
    return estimates | (site_estimates(job, screen, question, terms, progress) if sites else {}), known


def _chosen(
    job: Job, screen: Screen, grid: Grid, component: int, estimates: np.ndarray, known: np.ndarray
) -> Iterator[tuple[At, str]]:
    """What is patched of one component: it does not depend on which others were asked for."""
    cells = grid.compared(component, (known == "") & ~np.isnan(estimates))
    # Stable: of equal estimates, such as zeros, the same cells are patched each time.
    order = np.argsort(-np.abs(estimates[tuple(cells.T)]), kind="stable")
    top, rest = order[: screen.verify], order[screen.verify :]
    name = grid.components[component]
    random = np.random.default_rng([job.options.seed, *name.encode()])
    sample = random.permutation(rest)[: screen.sample]
    yield from ((tuple(at), why) for some, why in ((top, "top"), (sample, "sample")) for at in cells[some].tolist())


def _patched(pair: _Estimated, progress: Progress) -> _Screened:
    """The pair with what was chosen patched for real, in one go with its unedited runs and their repeats."""
    question, scoring = pair.question, pair.scoring
    worlds = [
        (grid, Cell(arm=grid.arms[0], draw=0, at=at, world=world))
        for grid, at, _ in pair.chosen
        for world in worlds_of(question, grid, grid.arms[0], 0, at)
    ]
    asked = [*question.unedited, *scoring.repeats(question.unedited), *(cell.world for _, cell in worlds)]
    found = scoring.evaluate(asked, progress=progress)
    runs = len(asked) - len(worlds)
    unedited, repeats = found.values[: len(question.unedited)], found.values[len(question.unedited) : runs]
    furthest = None
    if found.furthest and found.furthest[1] >= runs:
        grid, cell = worlds[found.furthest[1] - runs]
        furthest = Furthest(tokens=found.furthest[0], grid=grid, number=question.number, cell=cell)
    metrics = [metric.name for metric in pair.job.metrics]
    sums = {grid.kind.name: Sums(grid, 1, metrics) for grid in pair.job.grids}
    for (grid, cell), value in zip(worlds, found.values[runs:], strict=True):
        # What is a zero or a cut beforehand was not chosen.
        sums[grid.kind.name].add(cell, value, zero=False, cut=False)
    maps = {grid.kind.name: _map(pair, grid, sums[grid.kind.name].map(unedited)) for grid in pair.job.grids}
    return _Screened(
        clean=scoring.clean[question.number],
        sums=sums,
        unedited=unedited,
        measurements=measurements_of(pair.preview, unedited, spread(unedited, repeats), maps, pair.job.metrics),
        worlds=found.worlds,
        worlds_run=found.worlds_run,
        furthest=furthest,
    )


def _map(pair: _Estimated, grid: Grid, exact: xr.Dataset) -> xr.Dataset:
    """A grid's map: the exact numbers of what was patched, every estimate, and what became of each cell."""
    name, axes = grid.kind.name, grid.kind.axes
    estimates, known = pair.estimates[name], pair.known[name]
    why = {reason: np.zeros(grid.shape, bool) for reason in ("top", "sample")}
    for its, at, reason in pair.chosen:
        if its is grid:
            why[reason][at] = True
    # A gradient is of one metric: the cells that are patched have the others too.
    estimated = np.full((len(pair.job.metrics), *grid.shape), np.nan)
    estimated[0] = estimates
    flags = {
        "structural_zero": known == "structural_zero",
        "cut": known == "cut",
        "unpaired": known == "unpaired",
        "not_patched": ~np.isnan(estimates) & (known == "") & ~why["top"] & ~why["sample"],
        "top": why["top"],
        "sampled": why["sample"],
    }
    return exact.assign(
        {"estimated": (("metric", *axes), estimated)} | {flag: (axes, each) for flag, each in flags.items()}
    )


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
