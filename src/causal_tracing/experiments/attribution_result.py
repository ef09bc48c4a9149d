"""The result of a screen by gradient: a trace whose cells are estimated, and patched where that was checked."""

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from causal_tracing.errors import InvalidResults
from causal_tracing.experiments.trace_result import Trace
from causal_tracing.report.document import jsonable
from causal_tracing.report.page.estimates import estimates_page
from causal_tracing.report.words import estimates as in_words
from causal_tracing.results.arms import DIRECTIONS, Arm
from causal_tracing.results.estimates import Checked, agreement, checked, maps_of, over_pairs
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.site_kinds import KINDS, SiteKind, kind_of, kind_of_component
from causal_tracing.results.storage.saved import open_measurements
from causal_tracing.results.units import UNITS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What the first version did not keep: the base run is taken as 0, and repeats as equal.
UNEDITED = {"corrupt": 0.0, "spread": 0.0}
SITE_COLUMNS = ("component", "layer", "position", "part")


class Attribution(Trace):
    """Estimated effects of every site, and the exact ones of those that were patched. An estimate is no effect.

    It has all that a Trace has; what was not patched has the status "not_patched" and NaN as its effect, and its
    `estimated` effect stands beside it.
    """

    @cached_property
    def _maps(self) -> tuple[xr.Dataset, ...]:
        return maps_of(self.measurements)

    @property
    def direction(self) -> str:
        """What is estimated: restoration or disruption."""
        return self.measurements.directions[0]

    @cached_property
    def estimates(self) -> Mapping[str, xr.DataArray]:
        """By component, what is estimated over (pair, layer, position), for heads and neurons with an axis of these.

        Of paths over (pair, sender, receiver). In the metric's unit; NaN where a position is paired with none.
        """
        found = {}
        for cells in self._maps:
            for name in cells.component.values:
                kind = kind_of(cells)
                first = ("layer", "position") if kind.layered else kind.axes[1:]
                here = cells.estimated.sel(component=name).transpose("pair", *first, ...)
                found[str(name)] = here.rename(f"estimated_{self.direction}")
        return found

    @cached_property
    def checked(self) -> tuple[Checked, ...]:
        """The sites that were patched."""
        return checked(self._maps)

    @cached_property
    def verified(self) -> pd.DataFrame:
        """The sites or paths that were patched, with estimate and exact effect, strongest exact effect first."""
        where = SITE_COLUMNS if any(kind_of(each).layered for each in self._maps) else kind_of(self._maps[0]).axes
        columns = ["pair", *where, "estimate", "exact", "why"]
        rows = [(one.pair, *_where(one), one.estimate, one.exact, one.why) for one in self.checked]
        table = pd.DataFrame(rows, columns=columns)
        return table.sort_values("exact", key=abs, ascending=False, ignore_index=True)

    @cached_property
    def agreements(self) -> pd.DataFrame:
        """How far estimates and exact effects agree on the sites that were patched: a row for each pair and component.

        `same_sign`: of the effects of at least 2 % of the total effect, the share whose estimate has the same sign.
        `recall`: of as many strongest exact effects as there are top estimates, the share that was among those; the
        most that it can be where not every site was patched, for a stronger one may not have been drawn.
        `sampled_max`: the largest exact effect (by size) in the random sample of the rest; with 95 % confidence less
        than `above` of the rest exceeds it (1 - 0.05^(1/n); 0 where all of the rest was patched). NaN where undefined:
        constant numbers have no correlation.
        """
        return agreement(self._maps, self.checked)

    @cached_property
    def agreement(self) -> pd.DataFrame:
        """A row a component: as `agreements`; of several pairs their medians, and of bounds the largest."""
        return over_pairs(self.agreements)

    def summary(self, *, pair: str | None = None, metric: str | None = None, width: int | None = None) -> str:
        """What was estimated, how it was checked, and how far it can be believed. Raises InvalidOption."""
        if pair is not None or metric is not None:
            return super().summary(pair=pair, metric=metric, width=width)
        return in_words.words(self.measurements, self.agreement, self.checked)

    def plot(self, kind: str = "scatter", **options: Any) -> "Figure":
        """Estimates against exact effects ("scatter"), or a figure as `Trace.plot` has them."""
        if kind != "scatter":
            return super().plot(kind, **options)
        from causal_tracing.report.figures.scatter import scatter

        return scatter(self.checked, self.agreement, self.direction)

    def to_html(self, path: str | Path | None = None) -> str:
        """A page without script: agreement, scatter, what was patched; also written to `path`. Raises MachineError."""
        return estimates_page(self.measurements, self.agreement, self.checked, path)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values; undefined numbers are null."""
        pairs = self.measurements.pairs
        totals = (pairs.clean - pairs.corrupt).sel(metric=self.measurements.metric)
        return {
            "provenance": dict(self.provenance),
            "pairs": [
                {
                    "id": str(pair),
                    "tokens": [token for token in pairs.clean_token.sel(pair=pair).values.tolist() if token],
                    "total_effect": jsonable(float(totals.sel(pair=pair))),
                }
                for pair in pairs.pair.values
            ],
            "agreement": [
                {name: jsonable(value) for name, value in row.items()}
                for row in self.agreements.reset_index().to_dict("records")
            ],
            "verified": [
                {name: jsonable(value) for name, value in row.items()} for row in self.verified.to_dict("records")
            ],
            "estimates": {name: jsonable(values.values.tolist()) for name, values in self.estimates.items()},
        }

    @classmethod
    def open(cls, path: str | Path) -> "Attribution":
        """What `save` wrote, or the JSON file that version 0.1.0 wrote. Raises InvalidResults."""
        if Path(path).is_dir():
            return cls(open_measurements(path))
        return cls(_of_first_version(Path(path)))


def _where(one: Checked) -> tuple[Any, ...]:
    """Where something patched is, in the columns of the table."""
    if not one.kind.layered:
        return tuple(one.at[axis] for axis in one.kind.axes)
    return tuple(getattr(one.site, name) for name in SITE_COLUMNS)


def _of_first_version(path: Path) -> Measurements:
    """A file of version 0.1.0: of one pair, with no more than estimates, what was patched, and the total effect.

    It holds effects and not the runs' own numbers: these are told from the base run on, which is 0.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        digest = hashlib.sha256
        if found.pop("sha256") != digest(json.dumps(found, sort_keys=True, allow_nan=False).encode()).hexdigest():
            raise ValueError("its content is not what was written")
        return _measured(found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidResults(f"{path} is no saved attribution: {error!r}. Make it again.") from None


def _measured(found: Mapping[str, Any]) -> Measurements:
    record, tokens = dict(found["provenance"]), found["tokens"]
    total, direction = record["total_effect"], DIRECTIONS[record["direction"]]
    maps: dict[str, dict[str, list[Any]]] = {}
    for component, values in found["estimates"].items():
        maps.setdefault(kind_of_component(component).name, {})[component] = values
    texts = {"clean": tokens, "corrupt": [""] * len(tokens)}
    variables: dict[str, Any] = {
        **{name: (("metric", "pair"), np.array([[value]])) for name, value in UNEDITED.items()},
        "clean": (("metric", "pair"), np.array([[total]], float)),
        **{f"{name}_token": (("pair", "token"), np.array([row], object)) for name, row in texts.items()},
        **{f"{name}_role": (("pair", "token"), np.array([[""] * len(tokens)], object)) for name in texts},
        **{f"{name}_prompt": (("pair",), np.array([record[name]], object)) for name in texts},
        **{name: (("pair",), np.array([record[name] or ""], object)) for name in ("answer", "foil")},
        "answer_length": (("pair",), np.array([1])),
    }
    coordinates = {"metric": [record["metric"]], "unit": (("metric",), [UNITS[record["metric"]]]), "pair": ["pair-0"]}
    record["estimates"] = {name: record[name] for name in ("method", "steps", "verify", "sample")}
    return Measurements(
        pairs=xr.Dataset(variables, coordinates),
        maps={kind: _map(KINDS[kind], estimates, found["verified"], direction, total, record["metric"])
              for kind, estimates in maps.items()},
        provenance=record,
    )  # fmt: skip


def _map(
    kind: SiteKind, estimates: Mapping[str, Any], verified: list[dict[str, Any]], arm: Arm, total: float, metric: str
) -> xr.Dataset:
    """One kind's map: the file has [layer][position][unit] by component."""
    layers, positions, units = (
        max(sizes) for sizes in zip(*(np.shape(each) for each in estimates.values()), strict=True)
    )
    shape = (len(estimates), layers, units, positions)
    numbers = {name: np.full(shape, np.nan) for name in ("estimated", arm.raw)}
    flags = {name: np.zeros(shape, bool) for name in ("top", "sampled", "structural_zero", "cut", "unpaired")}
    names = list(estimates)
    for n, values in enumerate(estimates.values()):
        array = np.array(values, dtype=float).transpose(0, 2, 1)
        numbers["estimated"][n, :, : array.shape[1]] = array
        flags["unpaired"][n, :, array.shape[1] :] = True
    for row in (row for row in verified if row["component"] in names):
        at = names.index(row["component"]), row["layer"], row["unit"] or 0, row["position"]
        exact = np.nan if row["exact"] is None else row["exact"]
        # The base run of a restoration is told as 0, that of a disruption as the total effect.
        numbers[arm.raw][at] = exact if arm.restores else total - exact
        flags["top" if row["why"] == "top" else "sampled"][at] = True
    flags["not_patched"] = ~(flags["top"] | flags["sampled"] | flags["unpaired"])
    whole = [slice(None)] * 3 if kind.part else [slice(None), slice(None), 0]
    labels = {"component": np.array(names, object), "layer": range(layers), "position": range(positions)}
    if kind.part:
        labels[kind.part] = range(units)
    return xr.Dataset(
        {name: (("metric", "pair", *kind.axes), each[tuple(whole)][None, None]) for name, each in numbers.items()}
        | {name: (("pair", *kind.axes), each[tuple(whole)][None]) for name, each in flags.items()},
        {**labels, "metric": [metric], "pair": ["pair-0"]},
    )
