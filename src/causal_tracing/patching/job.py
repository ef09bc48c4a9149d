"""What was asked for, made complete: the options of a trace against each other, and the job that they describe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from causal_tracing.engine.backend import Backend
from causal_tracing.engine.choose import alone, on_replay, open_backend, plain_backend, within
from causal_tracing.errors import ComponentNote, InvalidOption, some_of, warn
from causal_tracing.interventions.edits import Run
from causal_tracing.interventions.noise import Noise
from causal_tracing.interventions.write import TENSORED, Write, checked_write
from causal_tracing.models.model import Model, require_model
from causal_tracing.patching.ablation import check_patterns, check_tensors, reference_runs, reference_tokens
from causal_tracing.patching.cells import Question
from causal_tracing.patching.contrast import Contrast, in_edited_world, of_prompts
from causal_tracing.patching.controls import randomised, shuffled
from causal_tracing.patching.direct_paths import Paths, plan_paths
from causal_tracing.patching.grid import Grid, checked_layers, named_heads, plan_blocks, plan_by_layer, plan_heads
from causal_tracing.patching.kinds.attending import knockout_grids
from causal_tracing.patching.kinds.attention_edges import edge_grids
from causal_tracing.patching.kinds.circuits import circuit_grids
from causal_tracing.patching.kinds.senders import path_grids
from causal_tracing.patching.kinds.sets import joint_grids
from causal_tracing.patching.metrics.built_in import measured_metrics
from causal_tracing.patching.metrics.checks import check_measure
from causal_tracing.patching.metrics.metric import Asked, Metric, listed
from causal_tracing.patching.metrics.scoring import undefined
from causal_tracing.patching.named_sites import NamedSite, sites_on
from causal_tracing.patching.noise import noised
from causal_tracing.patching.options.choices import BLOCKS
from causal_tracing.patching.options.declare import values_of
from causal_tracing.patching.options.estimate import EstimateOptions
from causal_tracing.patching.options.together import ROME_NOISE, clean_alone, directions_of, preset_windows
from causal_tracing.patching.options.trace import Options
from causal_tracing.patching.preview import run_length
from causal_tracing.prompts.pairs import Pair, TokenPair, as_pairs, named, tokenize_pairs
from causal_tracing.results.effects import NEEDS_FOIL
from causal_tracing.results.site_kinds import SINGLE_EXPERTS, SINGLE_NEURONS, SiteKind
from causal_tracing.results.units import METRICS

PER_PAIR = ("sigmas", "positions")  # of what is recorded of noise
READ = ("resid_pre", "resid_post")  # by the logit lens
USUAL = (*BLOCKS, "mixer_out")  # components


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """A trace that can be run: pairs as tokens, the runs that they compare, what is patched, on which backend.

    `asked` are the pairs as they were given: a control may trace others. `backend` runs the worlds, and the `plain` one
    some of them again, for comparison.
    """

    model: Model
    options: Options | EstimateOptions
    asked: Sequence[Pair]
    pairs: Sequence[TokenPair]
    contrasts: Sequence[Contrast]
    grids: Sequence[Grid]
    backend: Backend
    plain: Backend
    noise: Mapping[str, Any] | None

    def question(self, number: int) -> Question:
        """One of the pairs."""
        return Question(number=number, pair=self.pairs[number], contrast=self.contrasts[number])

    @property
    def lens(self) -> bool:
        """Whether the logit lens is read beside what is patched."""
        return isinstance(self.options, Options) and self.options.lens

    @property
    def metric(self) -> str:
        """The metric that is shown first."""
        return self.metrics[0].name

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What is measured of the unedited runs, in the order of every array."""
        return measured_metrics(self._shown, self._others(METRICS))

    def metrics_of(self, kind: SiteKind) -> tuple[Metric, ...]:
        """What is measured of the cells of a kind: the first of `metrics`."""
        return measured_metrics(self._shown, self._others(() if kind.few else METRICS))

    @property
    def _shown(self) -> Asked | Sequence[Asked]:
        foils = all(pair.foils for pair in self.pairs)
        return self.options.metric or ("logit_diff" if foils else "log_prob")

    def _others(self, usual: Sequence[str]) -> Sequence[str]:
        """The built-in metrics that are measured too: `usual` ones, unless others are asked for."""
        asked = self.options.metrics if isinstance(self.options, Options) else "all"
        return METRICS if asked == "all" else usual if asked is None else asked

    def on_replay(self, note: str) -> "Job":
        """The same job on replay, which everything else is checked by; `note` says why."""
        return replace(self, backend=on_replay(self.backend, note))

    def alone(self, note: str) -> "Job | None":
        """The same job with each run in a forward of its own; None where that is no other way."""
        backend, plain = alone(self.backend, note), alone(self.plain, note)
        return None if backend is None or plain is None else replace(self, backend=backend, plain=plain)

    def within(self, budget: int | None, call: int | None = None) -> "Job":
        """The same job with this budget in bytes a batch, and so many tokens in a call of a layer."""
        return replace(self, options=replace(self.options, budget=budget), backend=within(self.backend, budget, call))

    def part(self, numbers: Sequence[int]) -> "Job":
        """The same job for some of its pairs: the same columns, the same metric first."""
        return replace(
            self,
            # The default depends on whether all pairs have foils, and some of them alone might choose another.
            options=replace(self.options, metric=self.options.metric or self.metric),
            asked=[self.asked[n] for n in numbers],
            pairs=[self.pairs[n] for n in numbers],
            contrasts=[self.contrasts[n] for n in numbers],
            noise=self.noise and _of_pairs(self.noise, numbers),
        )


def _of_pairs(noise: Mapping[str, Any], numbers: Sequence[int]) -> dict[str, Any]:
    """What is recorded of noise, of some of the pairs."""
    return {name: [value[n] for n in numbers] if name in PER_PAIR else value for name, value in noise.items()}


def plan_job(model: Model, pairs: Pair | Sequence[Pair], options: Options) -> Job:
    """The job that the options describe, on this model, for these pairs. Raises InputError or ModelError."""
    require_model(model)
    model.require_as_loaded()
    components = usual_components(model, options.components, options.layers)
    # In this order: the preset has windows for those components alone that are traced.
    options = _preset(replace(options, components=components))
    noise, write = options.noise, checked_write(options.write)
    directions = directions_of(options)
    asked = named(as_pairs(pairs))
    model, traced = _controlled(model, asked, options)
    tokens = tokenize_pairs(
        traced, model.tokenizer, align=options.align, noise=noise is not None, alone=clean_alone(values_of(options))
    )
    _check_metrics(model, options, tokens)
    paths = plan_paths(model, tokens, options.direct, options.direct_norm)
    grids = _grids(model, tokens, options, components, directions, paths)
    given = sites_on(model, options.given, tokens, "given=")
    needed = _needed(grids, given, options)
    backend = open_backend(model, needed, options.engine, options.budget, length=longest(model, tokens))
    for grid in grids:
        _check_written(model, backend, grid, tokens, write)
    contrasts, record = _contrasts(model, backend, tokens, noise, write)
    if given:
        contrasts = [in_edited_world(each, pair, given) for each, pair in zip(contrasts, tokens, strict=True)]
    return Job(
        model=model,
        options=options,
        asked=asked,
        pairs=tokens,
        contrasts=contrasts,
        grids=grids,
        backend=backend,
        plain=plain_backend(model),
        noise=record,
    )


def usual_components(
    model: Model, components: Sequence[str] | None, layers: Sequence[int] | None = None
) -> tuple[str, ...]:
    """Those asked for; of None the usual ones that the model offers in these layers, with a warning about the rest."""
    if components is not None:
        return tuple(components)
    offered = model.anatomy.components
    found = tuple(name for name in USUAL if name in offered and not _nowhere(model, name, layers))
    for name, reason in model.anatomy.refused:
        # A model is no poorer for the rest: layers with two parts have no mixer_out.
        if name in BLOCKS:
            warn(f"{name} is not traced on this model: {reason}", ComponentNote)
    return found


def _nowhere(model: Model, component: str, layers: Sequence[int] | None) -> bool:
    """Whether layers are asked for, and none of them has a component. Raises InvalidOption for others than layers."""
    return layers is not None and not {*checked_layers(model, layers)} & {*model.having(component)}


def longest(model: Model, pairs: Sequence[TokenPair]) -> int:
    """The tokens of the longest run that the model can take."""
    found = max(run_length(pair) for pair in pairs)
    return found if model.beyond_context or not model.context else min(found, model.context)


def _check_written(model: Model, backend: Backend, grid: Grid, pairs: Sequence[TokenPair], write: Write) -> None:
    """Raises InvalidOption or InvalidPair where what is to be written does not fit the sites of a grid."""
    if write.kind in TENSORED:
        counts = {place: model.parts(*place) for place in grid.written() if grid.kind.part}
        # Sizes are looked at on a run, since no configuration says those of all models.
        run = Run(pairs[0].clean.tokens)
        seen = backend.record([run], grid.written())[run].activations
        widths = {place: each.shape[-1] // counts.get(place, 1) for place, each in seen.items()}
        known = {place: width for place, width in widths.items() if place[0] != "pattern"}  # its size is the run's
        check_tensors(write, grid.written(), counts, known)
    if "pattern" in grid.needs:
        for pair in pairs:
            check_patterns(write, pair)


def _needed(grids: Sequence[Grid], given: Sequence[NamedSite], options: Options) -> list[str]:
    """All that is read or written, so that it is proved on the model before anything is measured."""
    patched = [*(name for grid in grids for name in grid.needs), *(site.component for site in given)]
    severed = [arm.severed for grid in grids for arm in grid.arms if arm.severed]
    return [*patched, *severed, *(READ if options.lens else ())]


def _check_metrics(model: Model, options: Options, pairs: Sequence[TokenPair]) -> None:
    """Raises InvalidOption where a metric that was asked for measures nothing here."""
    # A built-in one beside them may be undefined, and is empty then.
    for metric in measured_metrics(options.metric)[: len(listed(options.metric))]:
        check_measure(metric, pairs[0], model.vocabulary)
        check_metric(metric, pairs)


def check_metric(metric: Metric, pairs: Sequence[TokenPair]) -> None:
    """Raises InvalidOption where no pair has this metric: all numbers would be undefined."""
    reasons = {pair.id: undefined(metric, pair) for pair in pairs}
    if all(reasons.values()):
        reason = next(iter(reasons.values()))
        raise InvalidOption(
            f"metric={metric.name!r} is undefined for every pair ({some_of([*reasons])}): {reason}. Give "
            f"{'foil=' if reason == NEEDS_FOIL else 'an answer of one token'}, or use metric='log_prob'."
        )


def _grids(
    model: Model,
    pairs: Sequence[TokenPair],
    options: Options,
    components: Sequence[str],
    directions: Sequence[str],
    paths: Paths | None,
) -> list[Grid]:
    """What is patched, kind by kind: single sites, then what is patched together or between sites."""
    return [
        *_single_grids(model, pairs, options, components, directions, paths),
        *joint_grids(model, pairs, options, directions),
        *path_grids(model, pairs, options, directions),
        *knockout_grids(model, pairs, options),
        *edge_grids(model, pairs, options, directions),
        *circuit_grids(model, pairs, options),
    ]


def _single_grids(
    model: Model,
    pairs: Sequence[TokenPair],
    options: Options,
    components: Sequence[str],
    directions: Sequence[str],
    paths: Paths | None,
) -> list[Grid]:
    """Whole components, heads, neurons and experts, each alone."""
    grids: list[Grid] = []
    if components:
        blocks = plan_blocks(
            model,
            pairs,
            components=components,
            layers=options.layers,
            positions=options.positions,
            directions=directions,
            window=options.window,
            window_sums=options.window_sums,
            sever=options.sever,
            paths=paths,
            rome=options.preset == "rome",
        )
        grids.append(blocks)
    heads = named_heads(options.heads)
    common = {"layers": options.layers, "directions": directions, "paths": paths}
    if heads:
        grids.append(plan_heads(model, pairs, components=heads, positions=options.head_positions, **common))
    for kind, asked, where in (
        (SINGLE_NEURONS, options.neurons, options.neuron_positions),
        (SINGLE_EXPERTS, options.experts, options.expert_positions),
    ):
        if asked:
            grids.append(plan_by_layer(kind, model, pairs, named=asked, positions=where, **common))
    return grids


def _controlled(model: Model, pairs: list[Pair], options: Options) -> tuple[Model, list[Pair]]:
    """The model and the pairs that are traced: a control puts others in their place."""
    if options.control == "random-weights":
        return randomised(model, options.seed), pairs
    if options.control == "shuffled-pairs":
        return model, shuffled(pairs, options.seed)
    return model, pairs


def _contrasts(
    model: Model, backend: Backend, pairs: Sequence[TokenPair], noise: Noise | None, write: Write
) -> tuple[list[Contrast], Mapping[str, Any] | None]:
    """What each pair compares and writes, and what is recorded of noise. Raises InvalidPair."""
    contrasts, record = [of_prompts(pair) for pair in pairs], None
    if noise:
        contrasts, record = noised(backend, model.tokenizer, pairs, noise)
    tokens = reference_tokens(model, write)
    both = zip(contrasts, pairs, strict=True)
    return [replace(each, write=write, reference=reference_runs(tokens, pair, write)) for each, pair in both], record


def _preset(options: Options) -> Options:
    """The options with what the preset sets."""
    if options.preset is None:
        return options
    return replace(options, noise=ROME_NOISE, window=preset_windows(options), metric="prob")
