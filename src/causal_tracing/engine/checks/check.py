"""What works on a model, decided by what the model does, not by its name.

1. Two short prompts of random tokens are run, and every candidate anatomy is compared with what was seen:
   what a layer adds to the stream must be what attention and MLP contribute.
2. The first candidate that explains the layers is kept; a component whose check fails is refused by name.
3. The kept components are then patched: a run's own activations change nothing; a whole layer of the donor's gives
   the donor's logits; a large random write changes the logits, at that position and later ones only.
4. The packed engine is compared with replay on every component (`agreement.py`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from causal_tracing.engine.backend import Recording
from causal_tracing.engine.checks.agreement import (
    LENGTH,
    SEED,
    TOLERANCE,
    compare,
    random_prompts,
    room_for_checks,
)
from causal_tracing.engine.checks.findings import Finding, Law, bounded, own_activations, random_write, write_all
from causal_tracing.engine.checks.heads_and_neurons import counted, proofs
from causal_tracing.engine.hooks.forward import forward
from causal_tracing.engine.hooks.record import record
from causal_tracing.errors import InvalidOption, UnsupportedModel
from causal_tracing.interventions.edits import Edit, Given, Run
from causal_tracing.interventions.sites import RESIDUAL, Site
from causal_tracing.models.architectures import Anatomy, candidates
from causal_tracing.models.memory import is_out_of_memory
from causal_tracing.models.model import Agreement, Model, require_model


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkup:
    """The model as accepted, and every check that led there."""

    model: Model
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        known = self.to_dict()
        lines = [
            f"{known['model']}: {known['layers']} layers of {known['family']}, found by {known['found_by']}",
            f"engine      {known['engine']}" + (f": {known['engine_note']}" if known["engine_note"] else ""),
            f"components  {', '.join(known['components'])}",
            f"heads       {', '.join(f'{name} ({n})' for name, n in known['mediators'].items()) or 'none'}",
            *(f"refused     {component}: {reason}" for component, reason in known["refused"].items()),
        ]
        if not known["whole_layers_are_cuts"]:
            lines.append("note        whole layers are not cuts: the layers read something besides the stream")
        lines.append(f"\n{'check':50}{'component':20}{'measured':>10}{'bound':>12}")
        for finding in self.findings:
            bound = f"{'≥' if finding.at_least else '≤'} {finding.bound:.0e}"
            verdict = "holds" if finding.holds else "FAILS"
            lines.append(f"{finding.name:50}{finding.component:20}{finding.difference:>10.1e}{bound:>12}  {verdict}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The anatomy and the findings, as plain values."""
        anatomy = self.model.anatomy
        against = self.model.agreement.against(anatomy.components) if self.model.agreement else None
        return {
            "model": self.model.name,
            "family": anatomy.family,
            "layers": self.model.num_layers,
            "found_by": "detection" if anatomy.detected else "table",
            "engine": "replay" if against else "packed",
            "engine_note": against and f"not packed: {against}",
            "components": list(anatomy.components),
            "mediators": {name: anatomy.count(name) for name in anatomy.mediators},
            "refused": dict(anatomy.refused),
            "whole_layers_are_cuts": anatomy.cut,
            "findings": [finding.to_dict() for finding in self.findings],
        }


def accept(network: nn.Module, tokenizer: Any, *, name: str, source: dict[str, str] | None = None) -> Model:
    """The network as a Model whose anatomy holds. Raises UnsupportedModel where not even its layers can be patched."""
    return examine(network, tokenizer, name=name, source=source).model


def check(model: Model) -> Checkup:
    """Examines a loaded model again and says what holds on it, with the measured differences (in shares of 1)."""
    require_model(model)
    if model.backend is not None:
        raise InvalidOption(f"{model.name} is run by a backend of its own: there is no network here to be checked.")
    found = examine(model.network, model.tokenizer, name=model.name, source=dict(model.source))
    model, proved = prove(found.model, found.model.anatomy.mediators)
    return Checkup(model=model, findings=(*found.findings, *proved))


def prove(model: Model, mediators: Sequence[str]) -> tuple[Model, tuple[Finding, ...]]:
    """The model without those of these mediators (heads' components, neurons) whose checks fail, and the checks.

    The rest is compared between the engines. Raises OutOfMemory.
    """
    with room_for_checks(model.name):
        return _proved(model, mediators)


def _proved(model: Model, mediators: Sequence[str]) -> tuple[Model, tuple[Finding, ...]]:
    clean, corrupt = random_prompts(model.network, model.tokenizer)
    anatomy, found = model.anatomy, list(proofs(model, mediators, clean, corrupt))
    for failed in (finding for finding in found if not finding.holds):
        for component in failed.components:
            if component in anatomy.mediators:
                anatomy = anatomy.refuse(component, f"its check failed {_measured(failed)}.")
    model = replace(model, anatomy=anatomy)
    agreement = compare(model, [name for name in mediators if name in anatomy.mediators], clean, corrupt)
    found += _agreeing(agreement)
    if model.agreement:
        differences = {**model.agreement.differences, **agreement.differences}
        agreement = replace(model.agreement, differences=differences)
    return replace(model, agreement=agreement), tuple(found)


def examine(network: nn.Module, tokenizer: Any, *, name: str, source: dict[str, str] | None = None) -> Checkup:
    """The first candidate anatomy that explains the model, with all its checks. Raises UnsupportedModel, OutOfMemory.

    Heads and neurons are found, and counted; `prove` patches them.
    """
    with room_for_checks(name):
        return _examined(network, tokenizer, name, source or {})


def _examined(network: nn.Module, tokenizer: Any, name: str, source: dict[str, str]) -> Checkup:
    common = {"network": network, "tokenizer": tokenizer, "name": name, "source": source}
    clean, corrupt = random_prompts(network, tokenizer)
    for anatomy in candidates(network):
        model = Model(anatomy=anatomy, **common)
        explained = _explained(model, clean)
        if explained is not None:
            break
    else:
        raise AssertionError("the last candidate is the bare layers, which need no explanation")
    anatomy, findings = explained
    anatomy = counted(replace(model, anatomy=anatomy), clean)
    patched = list(_patched(replace(model, anatomy=anatomy), clean, corrupt))
    anatomy = _judged(name, anatomy, patched)
    model = replace(model, anatomy=anatomy)
    agreement = compare(model, anatomy.components, clean, corrupt)
    model = replace(model, agreement=agreement)
    return Checkup(model=model, findings=(*findings, *patched, *_agreeing(agreement)))


def _agreeing(agreement: Agreement) -> Iterator[Finding]:
    for component, difference in agreement.differences.items():
        if not agreement.reason:
            yield bounded("packed = replay", (component,), difference, agreement.bound)


def _measured(failed: Finding) -> str:
    return f"({failed.name}: measured {failed.difference:.2g}, bound {failed.bound:.2g})"


def _explained(model: Model, run: Run) -> tuple[Anatomy, list[Finding]] | None:
    """The anatomy without what it does not have, if it explains what each layer adds; None if it does not."""
    anatomy, layout = model.anatomy, model.anatomy.layout
    if layout.attn is None or layout.mlp is None:
        for component in ("attn_out", "resid_mid", "mlp_out"):
            anatomy = anatomy.refuse(component, "no modules were found whose outputs add up to what its layers add.")
        return anatomy, []
    if layout.mid is None:
        anatomy = anatomy.refuse("resid_mid", "its attention and MLP read the same stream (parallel layers).")
    try:
        recording = _look(replace(model, anatomy=anatomy), run)
        findings = [_additive(model, recording)]
        findings.append(_local(model, run) if layout.mid is None else _middle(model, recording))
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        return None  # a guess that does not even fit the modules' shapes
    return (anatomy, findings) if all(finding.holds for finding in findings) else None


def _look(model: Model, run: Run) -> Recording:
    places = [(name, layer) for name in model.anatomy.components for layer in range(model.num_layers)]
    return record(model, [run], places)[run]


def _additive(model: Model, recording: Recording) -> Finding:
    """Out − in = attention + MLP, for every layer."""
    seen, rows = recording.activations, []
    for layer in range(model.num_layers):
        out = seen["resid_post", layer]
        parts = (seen["attn_out", layer] + seen["mlp_out", layer]) * model.scale(layer)
        rows.append((out - seen["resid_pre", layer], parts, out))
    return _agree(model, "out - in = attention + MLP", ("attn_out", "mlp_out"), rows)


def _middle(model: Model, recording: Recording) -> Finding:
    """What the MLP's side reads is in + attention, for every layer."""
    seen, rows = recording.activations, []
    for layer in range(model.num_layers):
        middle, before = seen["resid_mid", layer], seen["resid_pre", layer]
        rows.append((middle - before, seen["attn_out", layer] * model.scale(layer), middle))
    return _agree(model, "middle - in = attention", ("resid_mid",), rows)


def _local(model: Model, run: Run) -> Finding:
    """In parallel layers the sum cannot tell MLP from attention; but an MLP does not see what earlier tokens hold."""
    layer, size = model.num_layers // 2, model.config.hidden_size
    noise = Given(torch.randn(size, generator=torch.Generator().manual_seed(SEED), dtype=torch.float32))
    edited = Run(run.tokens, (Edit(Site("resid_pre", layer, 1), noise),))
    _, captured = forward(model, [run, edited], {}, keep=1, wanted=[("mlp_out", layer)])
    before, after = captured["mlp_out", layer][:, 2:]
    change = ((after - before).abs().max() / before.abs().max().clamp(min=1e-30)).item()
    return bounded("an MLP reads its own token only", ("mlp_out",), change, TOLERANCE[model.dtype])


def _agree(
    model: Model, name: str, components: tuple[str, ...], rows: Sequence[tuple[Tensor, Tensor, Tensor]]
) -> Finding:
    """The largest |added − parts| in shares of what was added, less what rounding of the whole stream explains."""
    rounding, worst = 4 * torch.finfo(getattr(torch, model.dtype)).eps, 0.0
    for added, parts, whole in rows:
        difference = (added - parts).abs().amax(-1) - rounding * whole.abs().amax(-1)
        share = difference.clamp(min=0) / added.abs().amax(-1).clamp(min=1e-30)
        worst = max(worst, share.max().item())
    return bounded(name, components, worst, TOLERANCE[model.dtype])


def _patched(model: Model, clean: Run, corrupt: Run) -> Iterator[Finding]:
    """The checks that patch, for every component that is still offered."""
    places = [(component, layer) for component in model.anatomy.components for layer in range(model.num_layers)]
    donors = record(model, [clean], places, keep=LENGTH) | record(model, [corrupt], places, keep=LENGTH)
    size = donors[corrupt].logits.abs().max().item()
    bound = TOLERANCE[model.dtype]

    def run(edits: Sequence[tuple[Edit, ...]]) -> Tensor:
        return forward(model, [Run(clean.tokens, row) for row in edits], donors, keep=LENGTH)[0]

    components = model.anatomy.components
    in_a_batch = run([(), write_all(model, "resid_post", corrupt, model.num_layers - 1)])[0]
    alone = (in_a_batch - donors[clean].logits).abs().max().item() / size
    yield bounded("a run alone = the run in a batch", (), alone, bound)
    for component in components:
        yield own_activations(model, component, clean, donors)
    last = run([write_all(model, "resid_post", corrupt, model.num_layers - 1)])[0]
    difference = (last - donors[corrupt].logits).abs().max().item() / size
    yield bounded("the last layer's output gives the donor's logits", ("resid_post",), difference, bound)
    for component in (name for name in components if name in RESIDUAL):
        whole = run([write_all(model, component, corrupt, layer) for layer in range(model.num_layers)])
        difference = (whole - donors[corrupt].logits).abs().max().item() / size
        yield bounded(Law.WHOLE_LAYER, (component,), difference, bound)
    for component in components:
        yield from random_write(model, component, clean, donors[clean], bound)


def _judged(name: str, anatomy: Anatomy, findings: Sequence[Finding]) -> Anatomy:
    """The anatomy without the components whose checks failed. Raises UnsupportedModel where nothing can be trusted."""
    for finding in (finding for finding in findings if not finding.holds):
        measured = _measured(finding)
        if finding.name == Law.CAUSAL:
            raise UnsupportedModel(f"{name} is not causal: an edit changes what earlier tokens predict {measured}.")
        if finding.components in ((), ("resid_post",)) and finding.name != Law.WHOLE_LAYER:
            raise UnsupportedModel(f"{name} cannot be traced: its layers do not behave as layers do {measured}.")
        if finding.name == Law.WHOLE_LAYER and finding.components != ("resid_mid",):
            anatomy = replace(anatomy, cut=False)
            continue
        for component in (name for name in finding.components if name in anatomy.components):
            anatomy = anatomy.refuse(component, f"its check failed {measured}.")
    return anatomy
