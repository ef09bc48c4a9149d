"""The main job, on one page.

1. The job: options are checked, pairs become tokens and runs, and the engine is chosen (`patching/job.py`).
2. Worlds: every cell of the map becomes a base run with edits (`patching/grid.py`, `patching/cells.py`).
3. Numbers: the engine runs what can matter, and measures every metric from the same logits (`patching/scoring.py`).
4. Repeats: the unedited runs again in other batches (the spread), and a few random cells alone (`patching/measure.py`).
5. Measurements: arrays with names, and where they came from (`patching/arrays.py`).
"""

import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from causal_tracing.errors import EngineNote
from causal_tracing.experiments.cost import Estimate, estimate_job
from causal_tracing.experiments.provenance import provenance
from causal_tracing.experiments.trace_result import Trace
from causal_tracing.models.model import Model
from causal_tracing.patching.ablation import Write
from causal_tracing.patching.columns import Column
from causal_tracing.patching.grid import Neurons
from causal_tracing.patching.job import Job, plan_job
from causal_tracing.patching.measure import Progress, Sink, measure
from causal_tracing.patching.noise import Noise
from causal_tracing.patching.options import COMPONENTS, Options
from causal_tracing.patching.windows import Window
from causal_tracing.prompts.pairs import Pair
from causal_tracing.results.measurements import Measurements


def trace(
    model: Model,
    pairs: Pair | Sequence[Pair],
    *,
    components: Sequence[str] = COMPONENTS,
    layers: Sequence[int] | None = None,
    positions: str | Sequence[Column] = "each",
    metric: str | None = None,
    directions: Sequence[str] | None = None,
    align: str = "strict",
    noise: Noise | None = None,
    window: Window = 1,
    window_sums: bool = True,
    sever: Sequence[str] = (),
    preset: str | None = None,
    write: str | Write = "donor",
    control: str | None = None,
    heads: bool | Sequence[str] = False,
    head_positions: str | Sequence[Column] = "each",
    neurons: Neurons = False,
    neuron_positions: str | Sequence[Column] = ("last",),
    engine: str = "auto",
    budget: int | None = None,
    seed: int = 0,
    spot_checks: int = 8,
    progress: Progress | None = None,
) -> Trace:
    """How much of each pair's behaviour comes back, and how much is lost, at every component, layer and position.

    `positions` is "each", "together" (all at once: one world a layer), or a list of positions and roles (a role with
    several tokens is their mean). `metric` is shown first; all are measured (default: logit_diff, or log_prob where
    a pair has no foil). `directions` are both, or with noise restoration alone.

    `noise` corrupts the subject of the clean prompt instead of a corrupt prompt. `window` patches so many layers
    together (one number, or by component), and `window_sums` measures each of them alone beside it. `sever` freezes
    "mlp_out" or "attn_out" behind a restored state. `preset="rome"` sets noise, windows and metric as ROME's code does.

    `write` is what a patched site gets: the other run's activation ("donor"), or another kind or a `Write`:
    "zero", the mean over reference prompts, a resampled one, a part of it (alpha), a given tensor or subspace. Zeros,
    means and resampled activations go into the clean run: disruption alone.

    `control` measures the same where there is nothing to find: "random-weights" (a copy of the model with each
    parameter's numbers in random order) or "shuffled-pairs" (each pair with another one's answer and foil).

    `heads` adds maps of single heads: True for their outputs z, or names of q, k, v, pattern, z;
    `neurons` of single neurons: True for all of the layers, or a mapping from layer to neurons; both at positions of
    their own. `budget` is in bytes a batch. Raises InputError (pairs, options), ModelError, MachineError.
    """
    options = Options(
        components=components,
        layers=layers,
        positions=positions,
        metric=metric,
        directions=directions,
        align=align,
        noise=noise,
        window=window,
        window_sums=window_sums,
        sever=sever,
        preset=preset,
        write=write,
        control=control,
        heads=heads,
        head_positions=head_positions,
        neurons=neurons,
        neuron_positions=neuron_positions,
        engine=engine,
        budget=budget,
        seed=seed,
        spot_checks=spot_checks,
    )
    return Trace(measured(plan_job(model, pairs, options), progress))


def measured(job: Job, progress: Progress | None, sink: Sink | None = None) -> Measurements:
    """Runs a job, and says where its numbers come from. Raises ModelError, MachineError."""
    started, clock = datetime.now(UTC), time.perf_counter()
    if job.choice.note:
        warnings.warn(job.choice.note, EngineNote, stacklevel=3)
    found = measure(job, progress=progress, sink=sink)
    record = provenance(
        job,
        started=started,
        seconds=time.perf_counter() - clock,
        worlds=found.worlds,
        worlds_run=found.worlds_run,
        spot_checks=found.spot_checks,
    )
    return replace(found.measurements, provenance=record)


def estimate(model: Model, pairs: Pair | Sequence[Pair], **options: Any) -> Estimate:
    """What `trace` with these options would take: worlds, token-layers, memory, a guess at the time. Traces nothing.

    Raises what `trace` raises for these options.
    """
    return estimate_job(plan_job(model, pairs, Options(**options)))
