"""The main job, on one page.

1. The job: options are checked, pairs become tokens and runs, and the engine is chosen (`patching/job.py`).
2. Worlds: every cell of the map becomes a base run with edits (`patching/grid.py`, `patching/cells.py`).
3. Numbers: the engine runs what can matter, and measures every metric from the same logits
   (`patching/metrics/scoring.py`).
4. Repeats: the unedited runs again in other batches (the spread, `patching/measure.py`), and a few random cells on
   whole forwards (`patching/spot_checks.py`).
5. Measurements: arrays with names, and where they came from (`patching/arrays.py`).
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

from causal_tracing.errors import EngineNote, warn
from causal_tracing.experiments.cost import TraceCost, cost_of_job
from causal_tracing.experiments.keywords import Keywords
from causal_tracing.experiments.progress import telling
from causal_tracing.experiments.provenance import provenance
from causal_tracing.experiments.recheck import rechecked
from causal_tracing.experiments.trace_result import Trace
from causal_tracing.models.model import Model
from causal_tracing.patching.job import Job, plan_job
from causal_tracing.patching.measure import Sink, measure
from causal_tracing.patching.options.trace import Options, Progress
from causal_tracing.prompts.pairs import Pair
from causal_tracing.results.measurements import Measurements


@Keywords(Options)
def trace(model: Model, pairs: Pair | Sequence[Pair], options: Options) -> Trace:
    """How much of each pair's behaviour comes back, and how much is lost, at every component, layer and position.

    Patches the clean run's activations into the corrupt run (restoration, in units of the metric: logits for
    logit_diff) and the corrupt run's into the clean run (disruption), one site at a time. Positive always means: the
    site supports the clean behaviour. `trace.effects` holds both, [metric, pair, component, layer, position], NaN where
    they are undefined.

    model: from `load`.
    pairs: a Pair or several, each with a corrupt prompt, or with noise a subject.

    Raises InputError (pairs, options), ModelError, MachineError.

    Example:
        model = ct.load("demo")
        pair = ct.Pair(
            clean="The Colosseum is located in the city of", corrupt="The Eiffel Tower is located in the city of",
            answer=" Rome", foil=" Paris",
        )
        trace = ct.trace(model, pair, components=["mlp_out"], layers=range(10))
        trace.effects.restoration.sel(metric="logit_diff")
    """
    with telling(options.progress) as progress:
        return Trace(measured(plan_job(model, pairs, options), progress))


def measured(job: Job, progress: Progress | None, sink: Sink | None = None) -> Measurements:
    """Runs a job, and says where its numbers come from. Raises ModelError, MachineError."""
    started, clock = datetime.now(UTC), time.perf_counter()
    if note := job.backend.describe().note:
        warn(note, EngineNote)
    # Handed on as a function of the job: it may have to be run once more, on replay.
    job, found = rechecked(job, partial(measure, progress=progress, sink=sink))
    record = provenance(
        job,
        started=started,
        seconds=time.perf_counter() - clock,
        worlds=found.worlds,
        worlds_run=found.worlds_run,
        spot_checks=found.spot_checks,
    )
    return replace(found.measurements, provenance=record)


@Keywords(Options)
def estimate(model: Model, pairs: Pair | Sequence[Pair], options: Options) -> TraceCost:
    """What `trace` with these options would take: worlds, token-layers, memory (bytes), a guess at the time (seconds).

    Traces nothing. Raises what `trace` raises for these options.

    model: from `load`.
    pairs: a Pair or several.

    Example:
        print(ct.estimate(model, pairs, heads=True, neurons=True))
    """
    return cost_of_job(plan_job(model, pairs, options))
