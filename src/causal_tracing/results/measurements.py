"""Measurements: what was measured, as labelled arrays, with where it came from. Needs no torch.

The dataset holds raw numbers of the metrics; `effects.py` makes effects of them.

    unit                   (metric)            the unit of each metric's numbers
    clean, corrupt         (metric, pair)      the unedited runs
    spread                 (metric, pair)      standard deviation over repeats of the unedited runs
    restored, disrupted    (metric, pair, component, layer, position)  the patched runs (only the directions asked for)
    restored_sum, disrupted_sum  what each layer of a window adds alone, added up (where windows are wider than 1)
    restored_severed_attn_out, restored_severed_mlp_out  restored, with the attention or MLPs behind it frozen
    corrupt_deviation, restored_deviation, disrupted_deviation  standard deviation over draws, of the corrupt runs
                           and the effects (where noise or donors are drawn)
    window_first, window_last  (component, layer)   the layers patched together; −1 where there is no whole window
    structural_zero, cut, unpaired  (pair, component, layer, position)
    clean_token, corrupt_token, clean_role, corrupt_role  (pair, token)    "" beyond a prompt's end
    corrupt_position       (pair, token)       which corrupt token a clean one is paired with; −1 for none
    clean_length, corrupt_length, answer_length  (pair)  how many tokens there are
    clean_prompt, corrupt_prompt, answer, foil  (pair)
    clean_top, corrupt_top, clean_top_prob, corrupt_top_prob  (pair, rank) the model's first choices

Heads and neurons, where they were measured, are datasets of their own, with the patched runs and their flags over
(metric, pair, component, layer, head or neuron, position); `readers` (component, head) says which query heads read a
key or value head.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import xarray as xr

from causal_tracing.errors import InvalidOption, nearest

TABLES = ("blocks", "heads", "neurons")


CELL = ("component", "layer", "position")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measurements:
    """The measured numbers of one trace, and its provenance (plain values that JSON can hold)."""

    data: xr.Dataset
    provenance: Mapping[str, Any]
    heads: xr.Dataset | None = None
    neurons: xr.Dataset | None = None

    def table(self, of: str = "blocks") -> xr.Dataset:
        """The patched runs of "blocks", "heads" or "neurons", with the unedited runs and tokens beside them.

        Raises InvalidOption where they were not measured.
        """
        if of not in TABLES:
            raise InvalidOption(f"There is nothing called {of!r} in a trace. {nearest(str(of), TABLES)}")
        if of == "blocks":
            return self.data
        found = self.heads if of == "heads" else self.neurons
        if found is None:
            raise InvalidOption(f"This trace has no {of}. Measure them with trace(..., {of}=True).")
        shared = [name for name, variable in self.data.variables.items() if not {*variable.dims} & {*CELL}]
        return found.merge(self.data[shared].drop_dims([*CELL], errors="ignore"))

    def of_pair(self, pair: str) -> "Measurements":
        """One pair alone: arrays keep their axis of pairs."""
        tables = {name: getattr(self, name) for name in ("data", "heads", "neurons")}
        return replace(self, **{name: each if each is None else each.sel(pair=[pair]) for name, each in tables.items()})

    @property
    def tables(self) -> tuple[str, ...]:
        """Which of them were measured."""
        return tuple(name for name in TABLES if name == "blocks" or getattr(self, name) is not None)

    @property
    def metric(self) -> str:
        """The metric that is shown unless another is asked for: the first."""
        return str(self.data.metric.values[0])

    @property
    def write(self) -> Mapping[str, Any]:
        """What patched sites got (`written.Write.to_dict`); the other run's activation, whole, unless it says so."""
        return self.provenance.get("options", {}).get("write", {"kind": "donor", "alpha": 1})

    @property
    def directions(self) -> tuple[str, ...]:
        """Which of restoration and disruption were measured."""
        names = {"restored": "restoration", "disrupted": "disruption"}
        return tuple(direction for name, direction in names.items() if name in self.data)
