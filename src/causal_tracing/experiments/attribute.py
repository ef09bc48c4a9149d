"""Estimates by gradient of every site, checked by patching the strongest and a random sample of the rest."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime

from causal_tracing import validation
from causal_tracing.engine.checks.agreement import choose
from causal_tracing.engine.checks.check import prove
from causal_tracing.errors import EngineNote
from causal_tracing.experiments.attribution_result import Attribution
from causal_tracing.experiments.provenance import provenance
from causal_tracing.interventions.sites import COMPONENTS, MEDIATORS
from causal_tracing.models.model import Model, require_model
from causal_tracing.patching.attribution import METHODS, SMOOTH, Screen, screened
from causal_tracing.patching.contrast import of_prompts
from causal_tracing.patching.grid import Grid, plan_blocks, plan_heads, plan_neurons
from causal_tracing.patching.job import Job
from causal_tracing.patching.measure import Progress
from causal_tracing.patching.options import ENGINES, Options
from causal_tracing.prompts.pairs import Pair, TokenPair, as_pairs, named, tokenize_pairs
from causal_tracing.results.arms import DIRECTIONS
from causal_tracing.results.site_kinds import KINDS


def attribute(
    model: Model,
    pairs: Pair | Sequence[Pair],
    *,
    components: Sequence[str] = ("resid_post", "attn_out", "mlp_out"),
    method: str = "atp",
    steps: int = 10,
    direction: str = "restoration",
    metric: str | None = None,
    align: str = "strict",
    verify: int = 30,
    sample: int = 100,
    engine: str = "auto",
    seed: int = 0,
    spot_checks: int = 8,
    progress: Progress | None = None,
) -> Attribution:
    """Estimates of every site's effect, with `verify` of the strongest and `sample` of the rest patched exactly.

    `components` are any of resid_pre, attn_out, resid_mid, mlp_out, resid_post, q, k, v, pattern, z, neurons; the
    numbers to verify are for each of them, and each pair has its own. `method` is "atp" (attribution patching) or "ig"
    (integrated gradients, in so many `steps`). Positive estimates support the clean behaviour, in both directions, in
    the metric's unit (logit_diff, log_prob, logit or prob). `align` pairs the tokens as in `trace`. Raises
    InvalidOption, InvalidPair, ComponentNotOffered.

    >>> found = ct.attribute(model, pair, components=["z"])
    >>> found.agreement.pearson["z"], found.top(5)
    """
    require_model(model)
    screen = Screen(method=method, steps=steps, verify=verify, sample=sample)
    _check(components, screen, direction, metric, engine, seed)
    options = Options(metric=metric, align=align, engine=engine, seed=seed, spot_checks=spot_checks)
    asked = named(as_pairs(pairs))
    job = _job(model, asked, tuple(dict.fromkeys(components)), direction, options)
    if job.choice.note:
        warnings.warn(job.choice.note, EngineNote, stacklevel=2)
    started, clock = datetime.now(UTC), time.perf_counter()
    found = screened(job, screen, progress)
    record = provenance(
        job,
        started=started,
        seconds=time.perf_counter() - clock,
        worlds=found.worlds,
        worlds_run=found.worlds_run,
        spot_checks=found.spot_checks,
    )
    said = asdict(screen) | {"components": list(components), "direction": direction}
    return Attribution(replace(found.measurements, provenance=record | {"estimates": said}))


def _job(model: Model, asked: list[Pair], components: Sequence[str], direction: str, options: Options) -> Job:
    """Every site of the components, in one direction. Raises InvalidPair, InvalidOption, ComponentNotOffered."""
    for component in components:
        model.anatomy.require(component)
    mediators = [name for name in components if name in MEDIATORS]
    if mediators:
        model, _ = prove(model, mediators)
    pairs = tokenize_pairs(asked, model.tokenizer, align=options.align)
    by_kind = {kind: [name for name in components if name in KINDS[kind].components] for kind in KINDS}
    return Job(
        model=model,
        options=options,
        asked=asked,
        pairs=pairs,
        contrasts=[of_prompts(pair) for pair in pairs],
        grids=[_grid(model, pairs, kind, names, direction) for kind, names in by_kind.items() if names],
        choice=choose(model, components, options.engine),
        noise=None,
    )


def _grid(model: Model, pairs: Sequence[TokenPair], kind: str, components: Sequence[str], direction: str) -> Grid:
    common = {"layers": None, "positions": "each", "directions": [direction]}
    if kind == "neurons":
        return plan_neurons(model, pairs, neurons=True, **common)
    plan = plan_heads if KINDS[kind].part else plan_blocks
    return plan(model, pairs, components=components, **common)


def _check(
    components: Sequence[str], screen: Screen, direction: str, metric: str | None, engine: str, seed: int
) -> None:
    validation.names("component", components, (*COMPONENTS, *MEDIATORS))
    validation.one_of("direction", direction, tuple(DIRECTIONS))
    validation.one_of("method", screen.method, METHODS)
    validation.one_of("engine", engine, ENGINES)
    if metric is not None:
        validation.one_of("metric", metric, SMOOTH, " that has a gradient")
    validation.whole("steps=", screen.steps, least=1)
    validation.whole("verify= (estimates are always checked)", screen.verify, least=1)
    validation.whole("sample= (estimates are always checked)", screen.sample, least=1)
    validation.whole("seed=", seed, least=0)
