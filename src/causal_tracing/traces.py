"""The result of a trace: effects, words, figures and files, all made from the same Measurements."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import xarray as xr

from causal_tracing import results
from causal_tracing.effects import effects
from causal_tracing.results import Measurements


class Trace:
    """How much of each pair's behaviour came back (restoration) and was lost (disruption), cell by cell."""

    def __init__(self, measurements: Measurements) -> None:
        self.measurements = measurements

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Where the numbers come from: model, versions, options, prompts, and the command that makes them again."""
        return self.measurements.provenance

    @cached_property
    def effects(self) -> xr.Dataset:
        """Every effect over (metric, pair, component, layer, position), in the metric's unit, with `status`."""
        return effects(self.measurements)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Writes a folder that `open_trace` reads back without loss. Raises InvalidResults, MachineError."""
        return results.save(self.measurements, folder, overwrite=overwrite)


def open_trace(folder: str | Path) -> Trace:
    """A trace that was saved. Raises InvalidResults for a folder that is missing, damaged, or of a newer version."""
    return Trace(results.open_measurements(folder))
