"""Opens what was saved: a trace, estimates, or what a run folder holds so far."""

import os
from pathlib import Path

from causal_tracing.errors import InvalidResults
from causal_tracing.experiments.attribution_result import Attribution
from causal_tracing.experiments.trace_result import Trace
from causal_tracing.results.storage.open_run import open_run
from causal_tracing.results.storage.run_folder import is_run_folder
from causal_tracing.results.storage.saved import open_measurements


def open_trace(folder: str | Path) -> Trace:
    """A trace or Attribution that was saved, or what a run folder holds so far (its provenance says what is missing).

    folder: what `save`, `run` or `--out` wrote.

    Raises InvalidResults for a folder that is missing, damaged, or of a newer version, or where nothing is done yet.

    Example:
        trace = ct.open_trace("colosseum")
        trace.provenance.get("pairs_missing")
    """
    if not isinstance(folder, str | os.PathLike):
        raise InvalidResults(f"A folder's name is needed, and this is {folder!r:.200}.")
    measurements = open_run(folder) if is_run_folder(folder) else open_measurements(folder)
    return Attribution(measurements) if "estimates" in measurements.provenance else Trace(measurements)
