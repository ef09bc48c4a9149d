"""Estimates by gradient, and what exact patching says of them. An estimate is a screen; it is never an effect.

1. Donor and base run leave their activations behind; the gradient of the metric is taken in the base run.
2. AtP: every site's estimate is (clean − corrupt) · gradient (Nanda 2023, "Attribution patching"; Kramár et al. 2024,
   "AtP*", of whose corrections none is made here). IG: the gradient is averaged along the straight line from the base
   run's activations to the donor's (Sundararajan et al. 2017; for components of a model, Hanna et al. 2024).
3. The K largest estimates and a random sample of the rest are patched exactly.
4. How estimates and exact effects agree is kept with them (`screening.py`).
"""

import shlex
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from causal_tracing.edits import Edit, From, Run, World
from causal_tracing.engine.agreement import Choice, choose
from causal_tracing.engine.check import prove
from causal_tracing.engine.evaluate import evaluate
from causal_tracing.engine.gradients import gradients
from causal_tracing.engine.plan import default_budget, effective, is_cut, rows_that_fit
from causal_tracing.engine.record import record
from causal_tracing.engine.writes import Recording
from causal_tracing.errors import EngineNote, InvalidOption, nearest
from causal_tracing.metrics import DIFFERENTIABLE, UNITS, measure_answer
from causal_tracing.model import Model, require_model
from causal_tracing.prompts import Pair, TokenPair, tokenize_pairs
from causal_tracing.provenance import opening, provenance
from causal_tracing.screening import METHODS, Attribution, Screened, assemble_screen
from causal_tracing.sites import COMPONENTS, MEDIATORS, ORDER, Site

DIRECTIONS = ("restoration", "disruption")
ENGINES = ("auto", "packed", "replay")
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """One direction of one pair: the run that is patched, the run that it is patched from, and what is measured.

    `sign` makes (patched − base) an effect: positive supports the clean behaviour.
    """

    base: Run
    donor: Run
    sign: int
    answer: int
    foil: int
    metric: str

    def measure(self, logits: Float[Tensor, "run vocab"]) -> Float[Tensor, " run"]:
        """The metric, as something that gradients flow through."""
        answer, foil = (logits.new_full((len(logits),), token, dtype=torch.long) for token in (self.answer, self.foil))
        return measure_answer(logits, answer, foil, self.metric)

    def world(self, *sites: Site) -> World:
        """The base run with the donor's activations at these sites."""
        edits = tuple(Edit(site, From(self.donor, site.position)) for site in sites)
        return World(self.base, edits, (len(self.base.tokens) - 1,))


def attribute(
    model: Model,
    pair: Pair,
    *,
    components: Sequence[str] = ("resid_post", "attn_out", "mlp_out"),
    method: str = "atp",
    steps: int = 10,
    direction: str = "restoration",
    verify: int = 30,
    sample: int = 100,
    metric: str | None = None,
    engine: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> Attribution:
    """Estimated effects of every site of the components (heads and neurons one by one), some of them verified.

    `method` is "atp" or "ig" (with so many `steps`). Of each component the `verify` largest estimates and `sample`
    others are patched exactly. Metrics: logit_diff (default), log_prob (without a foil), logit, prob. Raises
    InvalidOption, ComponentNotOffered, and what `trace` raises for the pair.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    require_model(model)
    (tokens,) = tokenize_pairs([pair], model.tokenizer)
    metric = metric or ("log_prob" if tokens.foil is None else "logit_diff")
    components = tuple(dict.fromkeys(components)) if not isinstance(components, str) else (components,)
    options = {
        **{"components": list(components), "method": method, "steps": steps, "direction": direction},
        **{"verify": verify, "sample": sample, "metric": metric, "engine": engine, "seed": seed},
    }
    _check_options(options, tokens)
    model = _offering(model, components)
    chosen = choose(model, components, engine)
    if chosen.note:
        warnings.warn(chosen.note, EngineNote, stacklevel=2)
    contrast = _contrast(tokens, direction, metric)
    found = _estimated(model, contrast, components, steps if method == "ig" else None, progress)
    screened = {name: _screen(model, contrast, name, found[name]) for name in components}
    sites = {name: screened[name].chosen(verify, sample, [seed, ORDER.index(name)]) for name in components}
    exact, unedited = _verified(model, contrast, sites, chosen)
    record_of = provenance(
        model, [tokens], options=options, engine=chosen, started=started, seconds=time.perf_counter() - clock,
        worlds=2 + sum(map(len, exact.values())), worlds_run=2 + sum(map(len, exact.values())), spot_checks={},
        command=_command,
    )  # fmt: skip
    unedited = dict(zip(("clean", "corrupt") if contrast.sign < 0 else ("corrupt", "clean"), unedited, strict=True))
    return assemble_screen(tokens, screened, sites, exact, unedited=unedited, unit=UNITS[metric], provenance=record_of)


def _check_options(options: Mapping[str, Any], pair: TokenPair) -> None:
    for component in options["components"]:
        if component not in (*COMPONENTS, *MEDIATORS):
            raise InvalidOption(
                f"There is no component {component!r}. {nearest(str(component), (*COMPONENTS, *MEDIATORS))}"
            )
    if not options["components"]:
        raise InvalidOption(f"No component was asked for. Valid: {', '.join((*COMPONENTS, *MEDIATORS))}.")
    for name, valid in (("method", METHODS), ("direction", DIRECTIONS), ("engine", ENGINES)):
        if options[name] not in valid:
            raise InvalidOption(f"There is no {name} {options[name]!r}. {nearest(str(options[name]), valid)}")
    metric = options["metric"]
    if metric not in DIFFERENTIABLE:
        raise InvalidOption(f"Nothing can be estimated by {metric!r}: {nearest(str(metric), DIFFERENTIABLE)}")
    if metric == "logit_diff" and pair.foil is None:
        raise InvalidOption(f"pair {pair.id!r} has no foil, which logit_diff needs. Use metric='log_prob'.")
    for name, least in (("steps", 1), ("verify", 0), ("sample", 0)):
        if options[name] < least:
            raise InvalidOption(f"{name}= is a whole number, {least} or more; it is {options[name]}.")


def _offering(model: Model, components: Sequence[str]) -> Model:
    """The model, with its heads and neurons proved where they are asked for. Raises ComponentNotOffered."""
    for component in components:
        model.anatomy.require(component)
    mediators = [name for name in components if name in MEDIATORS]
    if mediators:
        model, _ = prove(model, mediators)
        for component in mediators:
            model.anatomy.require(component)
    return model


def _contrast(pair: TokenPair, direction: str, metric: str) -> Contrast:
    clean, corrupt = Run(pair.clean.tokens), Run(pair.corrupt.tokens)
    base, donor, sign = (corrupt, clean, 1) if direction == "restoration" else (clean, corrupt, -1)
    foil = -1 if pair.foil is None else pair.foil
    return Contrast(base=base, donor=donor, sign=sign, answer=pair.answer, foil=foil, metric=metric)


def _estimated(
    model: Model, contrast: Contrast, components: Sequence[str], steps: int | None, progress: Progress | None
) -> dict[str, Float[np.ndarray, "layer position unit"]]:
    """Each component's estimates: by AtP, or by IG in so many steps."""
    places = [(name, layer) for name in components for layer in range(model.num_layers)]
    if steps is None:
        donor = record(model, [contrast.donor], places)[contrast.donor].activations
        found = gradients(model, [contrast.base], places, contrast.measure)
        slopes = {place: gradient[0] for place, gradient in found.gradients.items()}
        base = {place: activation[0] for place, activation in found.activations.items()}
    else:
        recordings = record(model, [contrast.base, contrast.donor], places)
        base, donor = (recordings[run].activations for run in (contrast.base, contrast.donor))
        positions, slopes = range(len(contrast.base.tokens)), {}
        for number, place in enumerate(places):
            sites = [Site(*place, position) for position in positions]
            slopes[place] = gradient_along(model, contrast, sites, steps, recordings)
            if progress:
                progress(number + 1, len(places))
    by_place = {
        place: _by_unit(contrast.sign * (donor[place] - base[place]).double() * slopes[place].double(), model, place[0])
        for place in places
    }
    return {name: np.stack([by_place[name, layer] for layer in range(model.num_layers)]) for name in components}


def gradient_along(
    model: Model,
    contrast: Contrast,
    sites: Collection[Site],
    steps: int,
    donors: Mapping[Run, Recording] | None = None,
) -> Float[Tensor, "token width"]:
    """The mean gradient of the metric at the sites' place, at `steps` midpoints of the way from base to donor.

    Every site moves together with the others, at the same pace; what lies before them is the base run's, what lies
    behind them follows. The sites are of one component and layer. Over these sites the estimate is complete:
    Σ (donor − base) · this → metric(patched at all of them) − metric(base), as steps grow (midpoint rule).
    """
    ((component, layer),) = {(site.component, site.layer) for site in sites}
    points = [
        Run(contrast.base.tokens, tuple(Edit(site, From(contrast.donor, site.position), alpha) for site in sites))
        for alpha in ((step + 0.5) / steps for step in range(steps))
    ]
    # The graph holds every layer behind the sites.
    budget = default_budget(model) // (model.num_layers - layer)
    rows = rows_that_fit(model, len(contrast.base.tokens), 1, budget)
    total: Tensor | None = None
    for start in range(0, steps, rows):
        batch = gradients(model, points[start : start + rows], [(component, layer)], contrast.measure, donors=donors)
        part = batch.gradients[component, layer].double().sum(0)
        total = part if total is None else total + part
    assert total is not None
    return total / steps


def _by_unit(
    products: Float[Tensor, "token width"], model: Model, component: str
) -> Float[np.ndarray, "position unit"]:
    """Summed over what belongs to one head or neuron; over everything where a component has no such parts."""
    return products.unflatten(1, (model.units(component), -1)).sum(-1).cpu().numpy()


def _screen(
    model: Model, contrast: Contrast, component: str, estimates: Float[np.ndarray, "layer position unit"]
) -> Screened:
    """The estimates, with what is known without them: sites that cannot matter are 0, cuts are marked."""
    zero, cut = (np.zeros(estimates.shape[:2], dtype=bool) for _ in range(2))
    for layer, position in np.ndindex(*zero.shape):
        world = contrast.world(Site(component, layer, position))
        zero[layer, position] = not effective(world, model.num_layers)
        cut[layer, position] = not zero[layer, position] and is_cut(model, world)
    return Screened(
        estimates=np.where(zero[..., None], 0.0, estimates),
        structural_zero=zero,
        cut=cut,
        units=component in MEDIATORS,
    )


def _verified(
    model: Model, contrast: Contrast, sites: Mapping[str, Sequence[tuple[tuple[int, int, int], str]]], engine: Choice
) -> tuple[dict[str, list[float]], tuple[float, float]]:
    """The exact effects of the chosen sites by component, and the metric of the base and the donor run."""
    plain = World(contrast.base, (), (len(contrast.base.tokens) - 1,))
    worlds = [plain, replace(plain, base=contrast.donor)]
    for component, chosen in sites.items():
        for (layer, position, unit), _ in chosen:
            site = Site(component, layer, position, unit if component in MEDIATORS else None)
            worlds.append(contrast.world(site))

    def measure(logits: Float[Tensor, "world readout vocab"], _: Sequence[World]) -> Float[Tensor, "world metric"]:
        return contrast.measure(logits[:, -1])[:, None]

    base, donor, *patched = evaluate(model, worlds, measure, engine=engine.engine).values[:, 0].tolist()
    effects = iter(contrast.sign * (value - base) for value in patched)
    return {component: [next(effects) for _ in chosen] for component, chosen in sites.items()}, (base, donor)


def _command(model: Model, pairs: Sequence[Pair], options: Mapping[str, Any]) -> str | None:
    """The command line that makes the estimates again; None for a model from memory."""
    words = opening(model, pairs, "attribute")
    if words is None:
        return None
    for name, value in options.items():
        words += [f"--{name}", ",".join(value) if name == "components" else str(value)]
    return shlex.join(words)
