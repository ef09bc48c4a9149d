"""What works on a model, decided by what the model does, not by its name.

1. A short prompt of random tokens is run: the layers are what hands the stream on (`layers.py`), their parts what adds
   up to what they add to it (`contributions.py`, `layouts.py`). Another prompt must say the same.
2. The components are then patched: a run's own activations change nothing; a whole layer of the donor's gives the
   donor's logits; a large random write changes the logits, at that position and later ones only. One whose check fails
   is refused by name.
3. What may be concluded without a run is tried by writes (`mixing.py`).
4. The packed engine is compared with replay on every component (`agreement.py`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from causal_tracing.engine.checks.agreement import compare, room_for_checks
from causal_tracing.engine.checks.attending import attention_proofs
from causal_tracing.engine.checks.bounds import ONE_FORWARD
from causal_tracing.engine.checks.contributions import Explained, explained, refuted
from causal_tracing.engine.checks.experts import mixture_proofs
from causal_tracing.engine.checks.findings import (
    Finding,
    bounded,
)
from causal_tracing.engine.checks.heads_and_neurons import counted, proofs
from causal_tracing.engine.checks.layers import Layers, find_layers, gives_few_logits, require_words
from causal_tracing.engine.checks.layouts import in_a_model, layout_of, refusals
from causal_tracing.engine.checks.mixing import gathering, in_turn, mixing, mixing_parts, tokenwise
from causal_tracing.engine.checks.patched import accepted, measured
from causal_tracing.engine.random_prompts import short_prompts
from causal_tracing.errors import EngineNote, InvalidOption, UnsupportedModel, warn
from causal_tracing.interventions.edits import Run
from causal_tracing.interventions.sites import ATTENTION, MIXTURE
from causal_tracing.models.anatomy import Anatomy
from causal_tracing.models.at_rest import made_on_cpu
from causal_tracing.models.devices import short_products
from causal_tracing.models.model import Agreement, Model, require_model
from causal_tracing.models.offload import device_of
from causal_tracing.models.quantised import say_once, stream_dtype

# How far the two sides of a layer's sums may be apart, in shares of the largest number: on the tests' families 1e-7 was
# measured in float32, 7e-4 in float16, 6e-3 in bfloat16.
SUMS = {"float64": 1e-12, "float32": 2e-6, "float16": 4e-3, "bfloat16": 3e-2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkup:
    """The model as accepted, and every check that led there."""

    model: Model
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        known, anatomy = self.to_dict(), self.model.anatomy
        lines = [
            f"{known['model']}: {known['layers']} layers of {known['family']}, at {known['layers_at']}",
            f"engine      {known['engine']}" + (f": {known['engine_note']}" if known["engine_note"] else ""),
            f"components  {', '.join(known['components'])}",
            f"heads       {', '.join(f'{name} ({_shown(n)})' for name, n in known['mediators'].items()) or 'none'}",
            *([f"experts     {known['experts']}: {', '.join(anatomy.mixture)}"] if known["experts"] else []),
            *(f"refused     {component}: {reason}" for component, reason in known["refused"].items()),
        ]
        if known["idle_layers"]:
            lines.append(f"note        a prompt of text alone does not pass layers {known['idle_layers']}")
        for component, layers in known["lacking"].items():
            some = "layer" if len(layers) == 1 else "layers"
            lines.append(f"note        {component} is not there in {some} {', '.join(map(str, layers))}")
        if not known["whole_layers_are_cuts"]:
            lines.append("note        whole layers are not cuts: the layers read something besides the stream")
        if known["runs_are_alone"]:
            lines.append("note        each run is made in a forward of its own: what is run beside it changes it")
        lines.append(f"\n{'check':28}{'measured':>10}{'bound':>10}")
        for name in dict.fromkeys(finding.name for finding in self.findings):
            lines.append(name)
            lines += [_line(finding) for finding in self.findings if finding.name == name]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The anatomy and the findings, as plain values."""
        anatomy = self.model.anatomy
        against = self.model.agreement.against(anatomy.components) if self.model.agreement else None
        return {
            "model": self.model.name,
            "family": anatomy.family,
            "layers": self.model.num_layers,
            "layers_at": anatomy.layers,
            "idle_layers": list(anatomy.idle),
            "engine": "replay" if against else "packed",
            "engine_note": against and f"not packed: {against}",
            "components": list(anatomy.components),
            "lacking": {name: lacks for name in anatomy.components if (lacks := _lacking(self.model, name))},
            "mediators": {name: _counted(anatomy, name) for name in anatomy.mediators},
            "experts": anatomy.count("experts") if anatomy.mixture else 0,
            "refused": dict(anatomy.missed),
            "whole_layers_are_cuts": anatomy.cut,
            "runs_are_alone": anatomy.alone,
            "findings": [finding.to_dict() for finding in self.findings],
        }


def _lacking(model: Model, component: str) -> list[int]:
    """The layers that do not have a component, of those that a text passes."""
    return [layer for layer in model.active if layer not in model.having(component)]


def _counted(anatomy: Anatomy, component: str) -> int | list[int]:
    """How many heads or neurons a layer has; of layers that differ how many each has."""
    uneven = dict(anatomy.uneven)
    return list(uneven[component]) if component in uneven else anatomy.count(component)


def _shown(count: int | Sequence[int]) -> str:
    """The same for people."""
    return str(count) if isinstance(count, int) else "by layer " + " ".join(map(str, count))


def _line(finding: Finding) -> str:
    bound = f"{'≥' if finding.at_least else '≤'} {finding.bound:.0e}"
    verdict = "holds" if finding.holds else "FAILS"
    return f"  {finding.component or 'the model':26}{finding.difference:>10.1e}{bound:>10}  {verdict}"


def accept(network: nn.Module, tokenizer: Any, *, name: str, source: dict[str, str] | None = None) -> Model:
    """The network as a Model whose anatomy holds. Raises UnsupportedModel where not even its layers can be patched."""
    return examine(network, tokenizer, name=name, source=source).model


@made_on_cpu()
def check(model: Model) -> Checkup:
    """Examines a loaded model again: what is offered on it, and each law that was tried with what was measured of it.

    Differences are relative: shares of the largest number that was compared. `print` shows them as a table; `to_dict`
    gives plain values.

    model: from `load`.

    Raises InvalidOption for a model on a server, UnsupportedModel where patching cannot be believed on it at all.

    Example:
        checkup = ct.check(ct.load("demo"))
        checkup.to_dict()["refused"]
    """
    require_model(model)
    if model.backend is not None:
        raise InvalidOption(f"{model.name} is run by a backend of its own: there is no network here to be checked.")
    found = examine(model.network, model.tokenizer, name=model.name, source=dict(model.source))
    mediators = found.model.anatomy.asked_for
    asked = (*mediators, ATTENTION) if "pattern" in mediators else mediators
    model, proved = prove(found.model, asked)
    return Checkup(model=model, findings=(*found.findings, *proved))


def prove(model: Model, mediators: Sequence[str]) -> tuple[Model, tuple[Finding, ...]]:
    """The model without those of these mediators (heads' components, neurons) whose checks fail, and the checks.

    The rest is compared between the engines. Raises OutOfMemory.
    """
    with room_for_checks(model.name):
        return _proved(model, mediators)


def _proved(model: Model, mediators: Sequence[str]) -> tuple[Model, tuple[Finding, ...]]:
    clean, corrupt = short_prompts(model.network, model.tokenizer)
    parts = [name for name in mediators if name not in (ATTENTION, *MIXTURE)]
    if ATTENTION in mediators:  # judged by both; and by patterns what mixes tokens is told
        parts += [name for name in ("pattern", "z") if name not in parts and model.anatomy.offers(name)]
    found = list(proofs(model, parts, clean, corrupt))
    model = _without_failed(model, found)
    if ATTENTION in mediators and model.anatomy.offers(ATTENTION):
        found += attention_proofs(model, clean, corrupt)
    found += mixture_proofs(model, [name for name in mediators if name in MIXTURE], clean, corrupt)
    anatomy = _without_failed(model, found).anatomy
    offered = [name for name in dict.fromkeys((*parts, *mediators)) if anatomy.offers(name)]
    model = _with_rules(replace(model, anatomy=anatomy), offered, clean, corrupt)
    agreement = compare(model, offered, clean, corrupt)
    found += _agreeing(agreement)
    if model.agreement:
        differences = {**model.agreement.differences, **agreement.differences}
        agreement = replace(model.agreement, differences=differences)
    return replace(model, agreement=agreement), tuple(found)


@made_on_cpu()
def examine(network: nn.Module, tokenizer: Any, *, name: str, source: dict[str, str] | None = None) -> Checkup:
    """What works on the model, with all its checks. Raises UnsupportedModel, OutOfMemory.

    Heads and neurons are found, and counted; `prove` patches them.
    """
    with room_for_checks(name):
        return _examined(network, tokenizer, name, source or {})


def _examined(network: nn.Module, tokenizer: Any, name: str, source: dict[str, str]) -> Checkup:
    say_once()
    require_words(network, name)
    _say_short_products(network, name)
    clean, corrupt = short_prompts(network, tokenizer)
    anatomy, findings = _found(network, name, clean, corrupt)
    model = Model(network=network, tokenizer=tokenizer, name=name, source=source, anatomy=anatomy)
    model = replace(model, anatomy=counted(model, clean))
    model, patched = accepted(model, clean, corrupt)
    model = _with_rules(model, model.anatomy.components, clean, corrupt)
    agreement = compare(model, model.anatomy.components, clean, corrupt)
    model = replace(model, agreement=agreement)
    return Checkup(model=model, findings=(*findings, *patched, *_agreeing(agreement)))


def _say_short_products(network: Any, name: str) -> None:
    """The bounds of float32 are of whole products; with TF32 they refuse what holds, and that is said before."""
    device = device_of(network, network.get_input_embeddings().weight)
    if device.type != "meta" and stream_dtype(network) == torch.float32 and short_products(device):
        warn(
            f"{device} makes products of float32 with fewer bits (TF32 or bfloat16), and {name} is checked as float32 "
            "is: what is refused or warned of may hold with whole products. "
            'torch.set_float32_matmul_precision("highest"), called before load, makes them.',
            EngineNote,
        )


def _say_others(layers: Layers, name: str) -> None:
    if layers.others:
        warn(
            f"{name} has layers in several lists. Those of {layers.path} alone are traced, and counted from 0; others "
            f"are not, such as those of {', '.join(layers.others)}.",
            EngineNote,
        )


def _of_modules(network: nn.Module, layers: Layers, lacking: int) -> str:
    """What the layers' modules add to the reason why this layer lacks a part; empty where they say nothing."""
    seen: dict[nn.Module, tuple[str, int]] = {}
    for number, layer in enumerate(layers.members(network)):
        if number == lacking and not any(layer.children()):
            return f" That layer is a {type(layer).__name__} alone."
        for path, part in layer.named_modules():
            if path and any(True for _ in part.parameters()):
                before, first = seen.setdefault(part, (path, number))
                if first != number:
                    return (
                        f" Layers share modules ({path} of layer {number} is {before} of layer {first}), and what is "
                        "written in one would be written in both."
                    )
    return ""


def _of_lanes(network: Any, layers: Layers) -> str:
    """What a stream of several lanes adds to the reason why a part is missing; empty of any other stream."""
    width = getattr(network.config.get_text_config(), "hidden_size", None)
    if not isinstance(width, int) or layers.width <= width or layers.width % width:
        return ""
    return (
        f" A token's stream has {layers.width} numbers, {layers.width // width} lanes of {width}: what a part gives "
        "goes into several of them, and no module gives what is added there."
    )


def _found(network: Any, name: str, clean: Run, corrupt: Run) -> tuple[Anatomy, list[Finding]]:
    """The anatomy by what passes through the network: its layers, their parts, and what is not there."""
    dtype = str(stream_dtype(network)).removeprefix("torch.")
    if dtype not in SUMS:
        raise UnsupportedModel(
            f"{name} cannot be traced in {dtype}, in which its words are: it is not known what rounding explains "
            f"there. Load it in {', '.join(SUMS)}."
        )
    bound = SUMS[dtype]
    layers = find_layers(network, clean.tokens, name)
    _say_others(layers, name)
    found = explained(network, layers, clean.tokens, name, bound)
    # One text may fit by chance, where a part is zero or two are equal there.
    off = refuted(network, layers, corrupt.tokens, name, {number: each.way for number, each in enumerate(found)})
    found = [each if off.get(n, 0.0) <= bound else Explained(way=(), whole=False) for n, each in enumerate(found)]
    ways = [each.way for each in found]
    mixing = mixing_parts(network, layers, clean.tokens, name, ways, bound)
    chained = in_turn(network, layers, clean.tokens, name, ways, bound)
    found = [replace(each, in_turn=number in chained) for number, each in enumerate(found)]
    active = [number for number in range(len(found)) if number not in layers.idle]
    layouts = in_a_model([layout_of(each, mixing) for each in found], active)
    family = str(getattr(network.config, "model_type", "") or type(network).__name__)
    where: Mapping[str, Any] = {"layers": layers.path, "paths": layers.apart, "idle": layers.idle}
    anatomy = Anatomy(family=family, layouts=layouts, lanes=layers.lanes, **where)
    anatomy = replace(anatomy, few_logits=gives_few_logits(network, layers, clean.tokens, name))
    for each in refusals({n: layouts[n] for n in active}, {n: found[n] for n in active}):
        more = "" if each.layer is None else _of_modules(network, layers, each.layer) or _of_lanes(network, layers)
        anatomy = anatomy.refuse(each.component, each.reason + more)
    parts = tuple(name for name in anatomy.components if name.endswith("_out"))
    apart = max((off[n] for n in active if found[n].way), default=0.0)
    return anatomy, [bounded("what a layer adds = its parts", parts, apart, bound)] if parts else []


def _without_failed(model: Model, findings: Sequence[Finding]) -> Model:
    """The model without those heads' components and such whose checks failed."""
    anatomy = model.anatomy
    for failed in (finding for finding in findings if not finding.holds):
        for component in failed.components:
            if component in anatomy.asked_for or (component == ATTENTION and anatomy.offers(ATTENTION)):
                anatomy = anatomy.refuse(component, f"its check failed {measured(failed)}.")
    return replace(model, anatomy=anatomy)


def _with_rules(model: Model, components: Sequence[str], clean: Run, corrupt: Run) -> Model:
    """The model with what may be concluded of these components, each by what a write does.

    Of a model whose runs are made one at a time nothing is: a write is held against a row beside it.
    """
    if model.anatomy.alone:
        return model
    bound, anatomy = ONE_FORWARD[model.dtype], model.anatomy
    mixes = mixing(model, [name for name in components if name != ATTENTION], clean, bound)
    # It cannot be read, so it is not tried by a write; where the pattern reaches later tokens at once, so does it.
    if ATTENTION in components and "pattern" in mixes:
        mixes = (*mixes, ATTENTION)
    at_start = [name for name in components if name in ("resid_pre", "q", "k", "v")]
    alone = tokenwise(model, at_start, clean, corrupt, bound)
    others = [name for name in anatomy.mixing if name not in components]
    kept = [name for name in anatomy.tokenwise if name not in components]
    anatomy = replace(anatomy, mixing=(*others, *mixes), tokenwise=(*kept, *alone))
    return replace(model, anatomy=replace(anatomy, gathers=gathering(anatomy, model.active)))


def _agreeing(agreement: Agreement) -> Iterator[Finding]:
    for component, difference in agreement.differences.items():
        if not agreement.reason:
            yield bounded("packed = replay", (component,), difference, agreement.bound)
