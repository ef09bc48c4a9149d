"""Components patched on one model: what each check measured, and what is offered by them, or refused.

1. What is patched must be what it is called (`_patched`, with the laws of `findings.py`).
2. Where a run is another one beside others, all is tried again with each run in a forward of its own (`accepted`).
3. A component whose check fails is not offered, and where nothing can be trusted the model is refused (`_judged`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from causal_tracing.engine.checks.bounds import TWO_FORWARDS
from causal_tracing.engine.checks.findings import (
    Finding,
    Law,
    beside_others,
    bounded,
    last_state,
    later_tokens,
    own_activations,
    random_write,
    write_all,
)
from causal_tracing.engine.checks.logits import apart, largest
from causal_tracing.engine.hooks.forward import forward
from causal_tracing.engine.hooks.record import record
from causal_tracing.errors import EngineNote, UnsupportedModel, warn
from causal_tracing.interventions.edits import Edit, Run
from causal_tracing.interventions.sites import RESIDUAL
from causal_tracing.models.anatomy import Anatomy
from causal_tracing.models.model import Model
from causal_tracing.models.quantised import why_beside_others


def accepted(model: Model, clean: Run, corrupt: Run) -> tuple[Model, list[Finding]]:
    """The model with what its checks allow, and the checks. Raises UnsupportedModel where nothing can be trusted."""
    found = list(_patched(model, clean, corrupt))
    why = why_beside_others(model.network)
    failed = [finding for finding in found if not finding.holds]
    beside = next((finding for finding in failed if finding.name in (Law.ALONE, Law.BESIDE)), None)
    if beside is None or any(finding.name == Law.AGAIN for finding in failed):
        return replace(model, anatomy=_judged(model.name, model.anatomy, found, why)), found
    single = replace(model, anatomy=model.anatomy.made_alone())
    again = list(_patched(single, clean, corrupt))
    try:
        single = replace(single, anatomy=_judged(model.name, single.anatomy, again, ""))
    except UnsupportedModel:
        # What it makes of a run depends on others in any case, which is said first.
        return replace(model, anatomy=_judged(model.name, model.anatomy, found, why)), found
    warn(
        f"What {model.name} makes of a prompt depends on what is run beside it {measured(beside)}, such as where "
        "experts take so many tokens of a batch, and no more. Each run is made in a forward of its own, which is "
        "slower.",
        EngineNote,
    )
    return single, again


def measured(failed: Finding) -> str:
    """What a check measured, for people."""
    return f"({failed.name}: measured {failed.difference:.2g}, bound {failed.bound:.2g})"


def _patched(model: Model, clean: Run, corrupt: Run) -> Iterator[Finding]:
    """The checks that patch, for every component that is still offered."""
    places = [(component, layer) for component in model.anatomy.components for layer in model.having(component)]
    keep = len(clean.tokens)
    donors = record(model, [clean], places, keep=keep) | record(model, [corrupt], places, keep=keep)
    size = largest(donors[corrupt].logits)
    bound = TWO_FORWARDS[model.dtype]

    def run(edits: Sequence[tuple[Edit, ...]]) -> Tensor:
        return forward(model, [Run(clean.tokens, row) for row in edits], donors, keep=keep)[0]

    components = model.anatomy.components
    # Beside a row that is patched, as every row will be.
    in_a_batch = run([(), write_all(model, "resid_post", corrupt, model.active[-1])])[0]
    alone = apart(in_a_batch, donors[clean].logits).max().item() / size
    if not alone <= bound:  # asked only then, for what is to be said
        again = record(model, [clean], places, keep=keep)[clean].logits
        yield bounded(Law.AGAIN, (), apart(again, donors[clean].logits).max().item() / size, bound)
    yield bounded(Law.ALONE, (), alone, bound)
    if not model.anatomy.alone:  # then nothing is beside anything
        yield beside_others(model, clean, corrupt, donors)
    yield later_tokens(model, clean, corrupt)
    for component in components:
        yield own_activations(model, component, clean, donors)
    # Held apart from whole layers, which models may fail that read something besides the stream: behind the last layer
    # nothing reads anything else, so that a failure here says that the layers are not what they seem.
    last = run([write_all(model, "resid_post", corrupt, model.active[-1])])[0]
    difference = apart(last, donors[corrupt].logits).max().item() / size
    yield bounded(Law.LAST_LAYER, ("resid_post",), difference, bound)
    yield last_state(model, clean)
    for component in (name for name in components if name in RESIDUAL):
        whole = run([write_all(model, component, corrupt, layer) for layer in model.having(component)])
        difference = apart(whole, donors[corrupt].logits).max().item() / size
        yield bounded(Law.WHOLE_LAYER, (component,), difference, bound)
    for component in components:
        yield from random_write(model, component, clean, donors[clean])


# By law, what is said of a model on which nothing can be trusted, for it does not keep to that.
_BESIDE = "cannot be traced: what it makes of a prompt depends on what is run beside it {measured}.{beside}"
_REFUSED: Mapping[str, str] = {
    Law.AGAIN: "cannot be traced: it gives other logits for the same prompt {measured}. It draws random numbers in "
    "evaluation too, or keeps something from one call to the next (a cache, a running mean): let it do neither.",
    Law.ALONE: _BESIDE,
    Law.BESIDE: _BESIDE,
    Law.CAUSAL: "is not causal: an edit changes what earlier tokens predict {measured}.",
    Law.LATER: "is not causal: a later token changes what earlier ones predict {measured}.",
    Law.LAST_LAYER: "cannot be traced: its logits are made of more than what the last of its {layers} gives "
    "{measured}. Something goes past it, such as a residual that is added outside of these or handed on beside them.",
}


def _judged(name: str, anatomy: Anatomy, findings: Sequence[Finding], beside: str) -> Anatomy:
    """The anatomy without the components whose checks failed. Raises UnsupportedModel where nothing can be trusted.

    `beside` is why a run may depend on those beside it, where that is known.
    """
    for finding in (finding for finding in findings if not finding.holds):
        found = measured(finding)
        if finding.name in _REFUSED:
            said = _REFUSED[finding.name].format(measured=found, layers=anatomy.layers, beside=beside)
            raise UnsupportedModel(f"{name} {said}")
        if finding.name == Law.ANYWHERE:  # a head that counts tokens, say
            anatomy = replace(anatomy, anywhere=False)
            continue
        if finding.components in ((), ("resid_post",)) and finding.name != Law.WHOLE_LAYER:
            raise UnsupportedModel(f"{name} cannot be traced: its layers do not behave as layers do {found}.")
        # Read-back and self-patch held, so the site is what it says; it is only no cut (gemma3n reads embeddings in
        # each layer).
        if finding.name == Law.WHOLE_LAYER and finding.components != ("resid_mid",):
            anatomy = replace(anatomy, cut=False)
            continue
        for component in (name for name in finding.components if name in anatomy.components):
            anatomy = anatomy.refuse(component, f"its check failed {found}.")
    return anatomy
