"""Estimates by gradient, and how far they can be believed.

An estimate is a screen, never an effect (AtP*: Kramar et al. 2024). So the strongest estimates and a random sample of
the rest are always patched for real, and how both agree is part of the result.

1. Of each pair the estimate of every cell: of sites (`site_estimates`), or of paths (`path_estimates`).
2. What is known of cells beforehand (cuts, structural zeros), and which of the others are patched (`_chosen`).
3. These are patched, and both go into the same map: `estimated` everywhere, the exact numbers where there are any.
"""

from collections.abc import Iterator

import numpy as np

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
        found.append(_Screened(job, screen, job.question(number), share(progress, number, len(job.pairs))))
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


class _Screened:
    """One pair: its estimates, what is known beforehand, what was patched."""

    def __init__(self, job: Job, screen: Screen, question: Question, progress: Progress) -> None:
        self.job, self.question, self.progress = job, question, progress
        (preview,), (self.clean,) = understood(job.model, job.backend, [question.pair], [question.contrast])
        number = question.number
        self.scoring = Scoring(job.backend, {number: question.pair}, {number: self.clean}, job.metrics)
        self.estimates, self.known = self._estimated(screen, share(progress, 0, 2))
        self.chosen = [
            (grid, at, why)
            for grid in job.grids
            for component in range(len(grid.components))
            for at, why in self._chosen(grid, component, screen)
        ]
        self.sums = {grid.kind.name: Sums(grid, 1, [metric.name for metric in job.metrics]) for grid in job.grids}
        self._patch()
        self.measurements = self._measurements(preview)

    def _estimated(self, screen: Screen, progress: Progress) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The estimates of every kind's cells, and what is known of these beforehand."""
        job, question = self.job, self.question
        terms = terms_of(question.pair, job.metrics[0], self.clean)
        estimates, known = {}, {}
        for grid in job.grids:
            name = grid.kind.name
            if isinstance(grid, PathGrid):
                found = path_estimates(job, screen, question, grid, terms[0], self.scoring, progress)
                estimates[name], known[name] = found
            else:
                known[name] = _known(self.scoring, question, grid)
        sites = [grid for grid in job.grids if not isinstance(grid, PathGrid)]
        return estimates | (site_estimates(job, screen, question, terms, progress) if sites else {}), known

    def _chosen(self, grid: Grid, component: int, screen: Screen) -> Iterator[tuple[At, str]]:
        """What is patched of one component: it does not depend on which others were asked for."""
        estimates, known = self.estimates[grid.kind.name], self.known[grid.kind.name]
        cells = grid.compared(component, (known == "") & ~np.isnan(estimates))
        # Stable: of equal estimates, such as zeros, the same cells are patched each time.
        order = np.argsort(-np.abs(estimates[tuple(cells.T)]), kind="stable")
        top, rest = order[: screen.verify], order[screen.verify :]
        name = grid.components[component]
        random = np.random.default_rng([self.job.options.seed, *name.encode()])
        sample = random.permutation(rest)[: screen.sample]
        yield from ((tuple(at), why) for some, why in ((top, "top"), (sample, "sample")) for at in cells[some].tolist())

    def _patch(self) -> None:
        worlds = [
            (grid, Cell(arm=grid.arms[0], draw=0, at=at, world=world))
            for grid, at, _ in self.chosen
            for world in worlds_of(self.question, grid, grid.arms[0], 0, at)
        ]
        unedited = self.question.unedited
        asked = [*unedited, *self.scoring.repeats(unedited), *(cell.world for _, cell in worlds)]
        found = self.scoring.evaluate(asked, progress=share(self.progress, 1, 2))
        runs = len(asked) - len(worlds)
        self.unedited, self.repeats = found.values[: len(unedited)], found.values[len(unedited) : runs]
        self.worlds, self.worlds_run = found.worlds, found.worlds_run
        self.furthest = None
        if found.furthest and found.furthest[1] >= runs:
            grid, cell = worlds[found.furthest[1] - runs]
            tokens, number = found.furthest[0], self.question.number
            self.furthest = Furthest(tokens=tokens, grid=grid, number=number, cell=cell)
        for (grid, cell), value in zip(worlds, found.values[runs:], strict=True):
            # What is a zero or a cut beforehand was not chosen.
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
            # A gradient is of one metric: the cells that are patched have the others too.
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
