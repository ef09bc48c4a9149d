"""Measurements: what was measured, as labelled arrays, with where it came from. Needs no torch.

`pairs` holds what is known of each pair, whatever was patched:

    unit                   (metric)            the unit of each metric's numbers
    clean, corrupt         (metric, pair)      the unedited runs; NaN where a pair has no corrupt prompt ("")
    lacks                  (metric, pair)      why a pair has no such metric, "" where it has; since 0.2.0
    spread                 (metric, pair)      standard deviation over repeats of the unedited runs
    corrupt_deviation      (metric, pair)      standard deviation of the corrupt runs over draws of noise
    clean_token, corrupt_token, clean_role, corrupt_role  (pair, token)    "" beyond a prompt's end
    corrupt_position       (pair, token)       which corrupt token a clean one is paired with; −1 for none
    clean_length, corrupt_length, answer_length  (pair)  how many tokens there are
    clean_prompt, corrupt_prompt, answer, foil  (pair)    a set of answers or foils as a JSON list
    clean_top, corrupt_top, clean_top_prob, corrupt_top_prob  (pair, rank) the model's first choices
    clean_top_id, corrupt_top_id  (pair, rank)  which tokens these are; −1 for none. Version 0.1.0 kept their texts only
    answer_id              (pair)              the answer's first token (of a set, of the text that the clean run's
                                               first choice begins, if any); not kept by 0.1.0 either

`maps` holds raw numbers by kind of site (`site_kinds.py`), over (metric, pair, and the kind's axes); `effects.py` makes
effects of them:

    restored, disrupted, …           the metric in the patched runs of each arm (`arms.py`), only those asked for
    restored_deviation, …            standard deviation of the effect over draws (where noise or donors are drawn)
    estimated, top, sampled          what gradients say of the effect, and why a cell was patched for real
    structural_zero, cut, unpaired, not_patched, given  (pair, …)
    window_first, window_last        (component, layer)   the layers patched together; −1 where there is no whole window
    readers                          (component, head)    which query heads read a key or value head

`lens` holds what the stream behind each layer would say (`lens.py`), where that was asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import xarray as xr

from causal_tracing.errors import InvalidOption, nearest
from causal_tracing.results.arms import ARMS
from causal_tracing.results.site_kinds import in_order, kind_named


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, weakref_slot=True)
class Measurements:
    """The measured numbers of one trace, and its provenance (plain values that JSON can hold)."""

    pairs: xr.Dataset
    maps: Mapping[str, xr.Dataset]
    provenance: Mapping[str, Any]
    lens: xr.Dataset | None = None

    def numbers(self, of: str | None = None) -> xr.Dataset:
        """One kind's raw numbers (default: the first kind's), with the unedited runs and tokens beside them.

        Raises InvalidOption where they were not measured.
        """
        found = self.maps[self.kind(of)]
        # The unedited runs have all metrics, cells of large maps perhaps one.
        few = found.sizes["metric"] < self.pairs.sizes["metric"]
        return found.merge(self.pairs.sel(metric=found.metric.values) if few else self.pairs)

    def kind(self, of: str | None = None) -> str:
        """The kind's name, if it was measured; the first one's unless one is named. Raises InvalidOption."""
        if of is None:
            return self.kinds[0]
        if kind_named(of).name not in self.maps:
            raise InvalidOption(f"This trace has no {of}. Measure them with trace(..., {kind_named(of).option}).")
        return of

    def of_pair(self, pair: str) -> "Measurements":
        """One pair alone: arrays keep their axis of pairs."""
        maps = {name: each.sel(pair=[pair]) for name, each in self.maps.items()}
        lens = None if self.lens is None else self.lens.sel(pair=[pair])
        return replace(self, pairs=self.pairs.sel(pair=[pair]), maps=maps, lens=lens)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Which kinds of site were measured."""
        return in_order(self.maps)

    @property
    def metric(self) -> str:
        """The metric that is shown unless another is asked for: the first."""
        return str(self.pairs.metric.values[0])

    def kinds_by(self, metric: str | None) -> tuple[str, ...]:
        """The kinds that were measured by a metric (default: the one that is shown, by which all were).

        Raises InvalidOption for a metric that the trace has not.
        """
        names = [str(name) for name in self.pairs.metric.values]
        if metric is not None and metric not in names:
            raise InvalidOption(f"There is no metric {metric!r} in this trace. {nearest(metric, names)}")
        return tuple(name for name in self.kinds if (metric or self.metric) in self.maps[name].metric)

    @property
    def write(self) -> Mapping[str, Any]:
        """What patched sites got (`Write.to_dict`); the other run's activation, whole, unless it says so."""
        return self.provenance.get("options", {}).get("write", {"kind": "donor", "alpha": 1})

    @property
    def direct_norm(self) -> str:
        """Whether the final norm of direct effects was "live", or "frozen" at the unedited run's scale."""
        return self.provenance.get("options", {}).get("direct_norm", "live")

    @property
    def directions(self) -> tuple[str, ...]:
        """Which of restoration and disruption were measured."""
        measured = {name for each in self.maps.values() for name in each}
        return tuple(arm.name for arm in ARMS if arm.is_direction and arm.raw in measured)
