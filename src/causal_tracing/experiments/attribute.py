"""Estimates by gradient of every site, checked by patching."""

import warnings
from collections.abc import Sequence

from causal_tracing import validation
from causal_tracing.engine.checks.agreement import choose
from causal_tracing.engine.checks.check import prove
from causal_tracing.errors import EngineNote
from causal_tracing.experiments.attribution_result import Attribution
from causal_tracing.interventions.sites import COMPONENTS, MEDIATORS
from causal_tracing.models.model import Model, require_model
from causal_tracing.patching.attribution import METHODS, SMOOTH, _asked, _checked, _estimates, _sites
from causal_tracing.patching.metrics import UNITS
from causal_tracing.patching.options import ENGINES
from causal_tracing.prompts.pairs import Pair
from causal_tracing.results.arms import DIRECTIONS


def attribute(
    model: Model,
    pair: Pair,
    *,
    components: Sequence[str] = ("resid_post", "attn_out", "mlp_out"),
    method: str = "atp",
    steps: int = 10,
    direction: str = "restoration",
    metric: str | None = None,
    verify: int = 30,
    sample: int = 100,
    engine: str = "auto",
    seed: int = 0,
) -> Attribution:
    """Estimates of every site's effect, with `verify` of the strongest and `sample` of the rest patched exactly.

    `components` are any of resid_pre, attn_out, resid_mid, mlp_out, resid_post, q, k, v, pattern, z, neurons; the
    numbers to verify are for each of them. Positive estimates support the clean behaviour, in both directions. Raises
    InvalidOption, InvalidPair, ComponentNotOffered.
    """
    require_model(model)
    _check(components, method, steps, direction, metric, verify, sample, engine, seed)
    components = tuple(dict.fromkeys(components))
    for component in components:
        model.anatomy.require(component)
    mediators = [name for name in components if name in MEDIATORS]
    if mediators:
        model, _ = prove(model, mediators)
    question = _asked(model, pair, direction, metric)
    choice = choose(model, components, engine)
    if choice.note:
        warnings.warn(choice.note, EngineNote, stacklevel=2)
    estimates = _estimates(question, components, method, steps)
    sites = {name: list(_sites(question, name, found.shape)) for name, found in estimates.items()}
    total, checked = _checked(question, estimates, sites, verify, sample, choice.engine, seed)
    record = {
        "model": model.name,
        "method": method,
        "steps": steps if method == "ig" else None,
        "direction": direction,
        "metric": question.metric,
        "unit": UNITS[question.metric],
        "total_effect": total,
        "engine": choice.engine,
        "engine_note": choice.note,
        "verify": verify,
        "sample": sample,
        "seed": seed,
        "sites": {name: len(each) for name, each in sites.items()},
        **{name: getattr(question.pair.pair, name) for name in ("clean", "corrupt", "answer", "foil")},
    }
    strings = question.pair.clean.strings
    return Attribution(estimates=estimates, checked=checked, tokens=strings, provenance=record)


def _check(
    components: Sequence[str],
    method: str,
    steps: int,
    direction: str,
    metric: str | None,
    verify: int,
    sample: int,
    engine: str,
    seed: int,
) -> None:
    validation.names("component", components, (*COMPONENTS, *MEDIATORS))
    validation.one_of("direction", direction, tuple(DIRECTIONS))
    validation.one_of("method", method, METHODS)
    validation.one_of("engine", engine, ENGINES)
    if metric is not None:
        validation.one_of("metric", metric, SMOOTH, " that has a gradient")
    validation.whole("steps=", steps, least=1)
    validation.whole("verify= (estimates are always checked)", verify, least=1)
    validation.whole("sample= (estimates are always checked)", sample, least=1)
    validation.whole("seed=", seed, least=0)
