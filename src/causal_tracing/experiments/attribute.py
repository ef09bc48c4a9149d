"""Estimates by gradient of every site, checked by patching."""

import warnings

from causal_tracing.engine.checks.agreement import choose
from causal_tracing.engine.checks.check import prove
from causal_tracing.errors import EngineNote
from causal_tracing.experiments.attribution_result import Attribution
from causal_tracing.experiments.keywords import Keywords
from causal_tracing.experiments.progress import telling
from causal_tracing.interventions.sites import MEDIATORS
from causal_tracing.models.model import Model, require_model
from causal_tracing.patching.attribution import _asked, _checked, _estimates, _sites
from causal_tracing.patching.metrics import UNITS
from causal_tracing.patching.options import EstimateOptions, Progress
from causal_tracing.prompts.pairs import Pair


@Keywords(EstimateOptions)
def attribute(model: Model, pair: Pair, options: EstimateOptions) -> Attribution:
    """Estimates of every site's effect by gradient, with the strongest and a random sample of the rest patched exactly.

    In units of the metric (logits for logit_diff), by component [layer, position] or [layer, position, head or neuron].
    Positive estimates support the clean behaviour, in both directions. Raises InvalidOption, InvalidPair,
    ComponentNotOffered.

    model: from `load`.
    pair: one Pair, whose answer and foil are one token each.

    Example:
        found = ct.attribute(model, pair, components=["z", "neurons"], method="ig")
        found.agreement
    """
    require_model(model)
    components = tuple(dict.fromkeys(options.components))
    for component in components:
        model.anatomy.require(component)
    mediators = [name for name in components if name in MEDIATORS]
    if mediators:
        model, _ = prove(model, mediators)
    question = _asked(model, pair, options.direction, options.metric)
    choice = choose(model, components, options.engine)
    if choice.note:
        warnings.warn(choice.note, EngineNote, stacklevel=3)
    with telling(options.progress) as progress:
        estimates = _estimates(question, components, options.method, options.steps, _part(progress, 0))
        sites = {name: list(_sites(question, name, found.shape)) for name, found in estimates.items()}
        total, checked = _checked(
            question, estimates, sites, options.verify, options.sample, choice.engine, options.seed, _part(progress, 1)
        )
    record = {
        "model": model.name,
        "method": options.method,
        "steps": options.steps if options.method == "ig" else None,
        "direction": options.direction,
        "metric": question.metric,
        "unit": UNITS[question.metric],
        "total_effect": total,
        "engine": choice.engine,
        "engine_note": choice.note,
        "verify": options.verify,
        "sample": options.sample,
        "seed": options.seed,
        "sites": {name: len(each) for name, each in sites.items()},
        **{name: getattr(question.pair.pair, name) for name in ("clean", "corrupt", "answer", "foil")},
    }
    strings = question.pair.clean.strings
    return Attribution(estimates=estimates, checked=checked, tokens=strings, provenance=record)


def _part(progress: Progress | None, part: int) -> Progress | None:
    """Progress of the estimates (0) or of the patches (1), told as progress of both."""
    if progress is None:
        return None
    return lambda done, total: progress(round(500 * (part + done / max(1, total))), 1000)
