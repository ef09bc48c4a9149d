"""Estimates by gradient of every site or path, checked by patching the strongest and a random sample of the rest."""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial

from causal_tracing.engine.choose import open_backend, plain_backend
from causal_tracing.errors import ComponentNotOffered, EngineNote, warn
from causal_tracing.experiments.attribution_result import Attribution
from causal_tracing.experiments.keywords import Keywords
from causal_tracing.experiments.progress import telling
from causal_tracing.experiments.provenance import provenance
from causal_tracing.experiments.recheck import rechecked
from causal_tracing.models.model import Model, require_model
from causal_tracing.patching.contrast import of_prompts
from causal_tracing.patching.estimates.attribution import screened
from causal_tracing.patching.estimates.reception import SOFTMAX
from causal_tracing.patching.estimates.screen import Screen
from causal_tracing.patching.grid import Grid, plan_blocks, plan_by_layer, plan_heads
from causal_tracing.patching.job import Job, usual_components
from causal_tracing.patching.kinds.nodes import each_sender
from causal_tracing.patching.kinds.senders import MOST_ESTIMATED, path_grids
from causal_tracing.patching.metrics.checks import check_gradient, check_measure
from causal_tracing.patching.metrics.metric import Metric
from causal_tracing.patching.options.estimate import EstimateOptions
from causal_tracing.patching.options.trace import Options
from causal_tracing.prompts.pairs import Pair, TokenPair, as_pairs, named, tokenize_pairs
from causal_tracing.results.site_kinds import KINDS, SINGLE_EXPERTS, SINGLE_NEURONS


@Keywords(EstimateOptions)
def attribute(model: Model, pairs: Pair | Sequence[Pair], options: EstimateOptions) -> Attribution:
    """Estimates of every site's (or path's) effect, with the strongest and a random sample of the rest patched exactly.

    The numbers to verify are for each component, and each pair has its own. Estimates are in the metric's unit, over
    (pair, layer, position, and head or neuron), and positive where a site supports the clean behaviour, in both
    directions (attribution patching: Nanda 2023; integrated gradients: Sundararajan et al. 2017; why estimates are
    checked: Kramar et al. 2024). With `method` "eap", "eap-ig" or "reception" they are of paths, over (pair, sender,
    receiver): Syed et al. 2023 (arXiv 2310.10348), Hanna et al. 2024 (arXiv 2403.17806), and the receiver's own
    arithmetic done exactly. Raises InvalidOption, InvalidPair, ComponentNotOffered.

    model: from `load`.
    pairs: one Pair or several.

    Example:
        found = ct.attribute(model, pair, components=["z", "neurons"], method="ig")
        found.agreement
    """
    require_model(model)
    model.require_as_loaded()
    asked = named(as_pairs(pairs))
    job = _job(model, asked, options)
    if note := job.backend.describe().note:
        warn(note, EngineNote)
    screen = Screen(method=options.method, steps=options.steps, verify=options.verify, sample=options.sample)
    started, clock = datetime.now(UTC), time.perf_counter()
    with telling(options.progress) as progress:
        job, found = rechecked(job, partial(screened, screen=screen, progress=progress))
    record = provenance(
        job,
        started=started,
        seconds=time.perf_counter() - clock,
        worlds=found.worlds,
        worlds_run=found.worlds_run,
        spot_checks=found.spot_checks,
    )
    return Attribution(replace(found.measurements, provenance=record | {"estimates": asdict(screen)}))


def _job(model: Model, asked: list[Pair], options: EstimateOptions) -> Job:
    """Every site, or every path, in one direction. Raises InvalidPair, InvalidOption, ComponentNotOffered."""
    pairs = tokenize_pairs(asked, model.tokenizer, align=options.align)
    if isinstance(options.metric, Metric):
        check_measure(options.metric, pairs[0], model.vocabulary)
        check_gradient(options.metric, pairs[0], model.vocabulary)
    grids = (_paths if options.of_paths else _sites)(model, pairs, options)
    components = list(dict.fromkeys(name for grid in grids for name in grid.needs))
    backend = open_backend(model, components, options.engine, options.budget)
    if not backend.describe().gradients:
        raise ComponentNotOffered(
            f"Estimates need gradients, and the backend of {model.name} ({backend.describe().engine!r}) has none: use "
            "trace()."
        )
    return Job(
        model=model,
        options=options,
        asked=asked,
        pairs=pairs,
        contrasts=[of_prompts(pair) for pair in pairs],
        grids=grids,
        backend=backend,
        plain=plain_backend(model),
        noise=None,
    )


def _paths(model: Model, pairs: Sequence[TokenPair], options: EstimateOptions) -> list[Grid]:
    """Every path from the senders to the receivers; reception by queries and keys looks at what heads give."""
    senders = options.senders or each_sender(model, options.at)
    asked = Options(components=(), senders=senders, receivers=options.receivers)
    (grid,) = path_grids(model, pairs, asked, [options.direction], most=MOST_ESTIMATED)
    if options.method == "reception" and {*SOFTMAX} & {*grid.needs}:
        model.anatomy.require("z")
    return [grid]


def _sites(model: Model, pairs: Sequence[TokenPair], options: EstimateOptions) -> list[Grid]:
    """Every site of the components."""
    components = usual_components(model, options.components)
    for component in components:
        model.anatomy.require(component)
    by_kind = {kind: [name for name in components if name in KINDS[kind].components] for kind in KINDS}
    return [_grid(model, pairs, kind, names, options.direction) for kind, names in by_kind.items() if names]


def _grid(model: Model, pairs: Sequence[TokenPair], kind: str, components: Sequence[str], direction: str) -> Grid:
    common = {"layers": None, "positions": "each", "directions": [direction]}
    if kind in (SINGLE_NEURONS.name, SINGLE_EXPERTS.name):
        return plan_by_layer(KINDS[kind], model, pairs, named=True, **common)
    plan = plan_heads if KINDS[kind].part else plan_blocks
    return plan(model, pairs, components=components, **common)
