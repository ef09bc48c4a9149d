"""Estimates by gradient, and how far they can be believed: attribution patching and integrated gradients.

An estimate is a screen, never an effect (AtP*: Kramar et al. 2024). So the strongest estimates and a random sample of
the rest are always patched for real, and how both agree is part of the result.

- atp: (clean - corrupt) times the metric's gradient at the base run (attribution patching, Nanda 2023): two forwards
  and one backward for everything.
- ig: the gradient averaged at `steps` midpoints of the straight line from the base run's activations to the donor's
  (integrated gradients, Sundararajan et al. 2017), all positions of one layer's component together: as many forwards
  and backwards for each layer and component as steps.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from causal_tracing.engine.hooks.apply import Recording
from causal_tracing.engine.hooks.gradients import Differentiable, linearised
from causal_tracing.engine.hooks.record import record
from causal_tracing.engine.memory import default_budget, rows_that_fit
from causal_tracing.engine.prune import effective, is_cut
from causal_tracing.errors import InvalidOption, InvalidPair
from causal_tracing.interventions.edits import Edit, From, Run, World
from causal_tracing.interventions.sites import MEDIATORS, Site
from causal_tracing.models.model import Model
from causal_tracing.patching.metrics import METRICS
from causal_tracing.patching.options import Progress
from causal_tracing.patching.scoring import Scoring
from causal_tracing.prompts.pairs import Pair, TokenPair, as_pairs, tokenize_pairs
from causal_tracing.results.estimates import Checked


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Question:
    """What is asked of one pair: which run is the base, which the donor, and how it is measured."""

    model: Model
    pair: TokenPair
    base: Run
    donor: Run
    metric: str
    sign: int  # of the effect, in the metric's change from the base run

    def measure(self, logits: Float[Tensor, "run vocab"]) -> Float[Tensor, " run"]:
        """The metric, so that gradients pass."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        answer, foil = self.pair.answer, self.pair.foil
        match self.metric:
            case "logit_diff":
                return logits[:, answer] - logits[:, foil]
            case "logit":
                return logits[:, answer]
            case "log_prob":
                return logits.log_softmax(-1)[:, answer]
            case _:
                return logits.softmax(-1)[:, answer]


def _asked(model: Model, pair: Pair, direction: str, metric: str | None) -> _Question:
    """The pair as tokens, its base run and its donor. Raises InvalidOption, InvalidPair."""
    listed = as_pairs(pair)
    if len(listed) != 1:
        raise InvalidPair(f"Estimates are made for one pair at a time; there are {len(listed)}.")
    (tokens,) = tokenize_pairs(listed, model.tokenizer)
    if tokens.several_tokens:
        raise InvalidOption("Estimates need an answer and a foil of one token each: use trace() for longer ones.")
    if metric == "logit_diff" and tokens.foil is None:
        raise InvalidOption("The pair has no foil, which logit_diff needs: give foil=, or use metric='log_prob'.")
    base, donor = Run(tokens.corrupt.tokens), Run(tokens.clean.tokens)
    if direction == "disruption":
        base, donor = donor, base
    return _Question(
        model=model,
        pair=tokens,
        base=base,
        donor=donor,
        metric=metric or ("logit_diff" if tokens.foil is not None else "log_prob"),
        sign=1 if direction == "restoration" else -1,
    )


def integrated(
    model: Model,
    base: Run,
    donor: Run,
    sites: Sequence[Site],
    measure: Differentiable,
    steps: int,
    donors: Mapping[Run, Recording] | None = None,
) -> Float[Tensor, "site width"]:
    """The gradient at sites of one component and layer, averaged over the way of all of them from base to donor.

    All sites move together and at the same pace; what lies before them is the base run's, what lies behind them
    follows. Over them all, Σ (donor − base) · this tends to metric(patched) − metric(base) as steps grow.
    """
    component, layer = sites[0].component, sites[0].layer
    runs = [
        Run(base.tokens, tuple(Edit(site, From(donor, site.position), (step + 0.5) / steps) for site in sites))
        for step in range(steps)
    ]
    donors = record(model, [donor], [(component, layer)]) if donors is None else donors
    # Autograd keeps what every layer behind the sites computed: the more of them, the fewer runs at once.
    rows = rows_that_fit(model, len(base.tokens), 1, default_budget(model) // (model.num_layers - layer))
    parts = []
    for start in range(0, steps, rows):
        _, found = linearised(model, runs[start : start + rows], [(component, layer)], measure, donors=donors)
        parts.append(found[component, layer].double().sum(0))
    mean = torch.stack(parts).sum(0) / steps
    return mean[[site.position for site in sites]]


def _estimates(
    question: _Question, components: Sequence[str], method: str, steps: int, progress: Progress | None = None
) -> dict[str, np.ndarray]:
    """Estimated effects of each component [layer, position, unit]."""
    model = question.model
    places = [(component, layer) for component in components for layer in range(model.num_layers)]
    recordings = record(model, [question.donor], places)
    donor = recordings[question.donor].activations
    if method == "atp":
        values, found = linearised(model, [question.base], places, question.measure)
        base, slopes = ({place: each[place][0] for place in places} for each in (values, found))
    else:
        base = record(model, [question.base], places)[question.base].activations
        slopes = {}
        for done, place in enumerate(places, start=1):
            slopes[place] = _along_the_way(question, place, steps, recordings)
            if progress:
                progress(done, len(places))
    estimates: dict[str, list[np.ndarray]] = {component: [] for component in components}
    for place in places:
        apart = donor[place] - base[place]
        moved = (apart.double() * slopes[place].double()).unflatten(1, (model.units(place[0]), -1)).sum(-1)
        estimates[place[0]].append(question.sign * moved.cpu().numpy())
    return {component: np.stack(rows) for component, rows in estimates.items()}


def _along_the_way(
    question: _Question, place: tuple[str, int], steps: int, donors: Mapping[Run, Recording]
) -> Float[Tensor, "token width"]:
    sites = [Site(*place, position) for position in range(len(question.base.tokens))]
    return integrated(question.model, question.base, question.donor, sites, question.measure, steps, donors)


def _checked(
    question: _Question,
    estimates: Mapping[str, np.ndarray],
    sites: Mapping[str, Sequence[Site]],
    verify: int,
    sample: int,
    engine: str,
    seed: int,
    progress: Progress | None = None,
) -> tuple[float, tuple[Checked, ...]]:
    """The total effect, and the strongest estimates of each component and a random sample of its others, patched."""
    chosen = [one for name in estimates for one in _chosen(name, estimates[name], sites[name], verify, sample, seed)]
    unedited = [World(run, (), _last(question)) for run in (question.base, question.donor)]
    worlds = [*unedited, *(_world(question, site) for site, _ in chosen)]
    found = Scoring(question.model, {0: question.pair}).evaluate(worlds, engine=engine, progress=progress).values
    base, donor, *patched = found[:, METRICS.index(question.metric)].tolist()
    return question.sign * (donor - base), tuple(
        Checked(
            site=site,
            estimate=float(estimates[site.component][_index(site)]),
            exact=question.sign * (value - base),
            why=why,
        )
        for (site, why), value in zip(chosen, patched, strict=True)
    )


def _chosen(
    component: str, estimates: np.ndarray, sites: Sequence[Site], verify: int, sample: int, seed: int
) -> Iterator[tuple[Site, str]]:
    """What is patched of one component: it does not depend on which others were asked for."""
    order = np.argsort([-abs(estimates[_index(site)]) for site in sites], kind="stable")
    yield from ((sites[n], "top") for n in order[:verify])
    random = np.random.default_rng([seed, *component.encode()])
    yield from ((sites[n], "sample") for n in random.permutation(order[verify:])[:sample])


def _sites(question: _Question, component: str, shape: tuple[int, ...]) -> Iterator[Site]:
    """The component's sites that can matter, cuts left out: nothing has to be estimated there."""
    for layer, position, unit in np.ndindex(*shape):
        site = Site(component, layer, position, unit if component in MEDIATORS else None)
        world = _world(question, site)
        if effective(world, question.model.num_layers) and not is_cut(question.model, world):
            yield site


def _world(question: _Question, site: Site) -> World:
    return World(question.base, (Edit(site, From(question.donor, site.position)),), _last(question))


def _last(question: _Question) -> tuple[int, ...]:
    return (len(question.base.tokens) - 1,)


def _index(site: Site) -> tuple[int, int, int]:
    return site.layer, site.position, site.unit or 0
