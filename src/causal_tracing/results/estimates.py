"""Estimates beside what was patched exactly to check them, and how far both agree."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from causal_tracing.interventions.sites import Site
from causal_tracing.results.effects import effects
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.select import shown_first
from causal_tracing.results.site_kinds import SiteKind, kind_of

CONFIDENCE = 0.95
OF_INTEREST = 0.02  # of the total effect: below, a sign means nothing
KNOWN = ("structural_zero", "cut", "unpaired", "undefined")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A cell's estimate beside its exact effect, and why it was patched: "top" (a strong estimate) or "sample".

    `at` is where it stands along each axis of its kind: the component, and layer, part and position of a site, or
    sender and receiver of a path.
    """

    pair: str
    kind: SiteKind
    at: Mapping[str, Any]
    estimate: float
    exact: float
    why: str

    @property
    def component(self) -> str:
        """The component that it is of."""
        return str(self.at["component"])

    @property
    def group(self) -> str:
        """What its agreement is told of: its component, of a path also what kind of receiver it goes to."""
        return _group(self.kind, self.component, self.at[self.kind.column])

    @property
    def site(self) -> Site:
        """The site that it is, where its kind is one of single sites."""
        part = self.at.get(self.kind.part) if self.kind.part else None
        return Site(self.component, self.at["layer"], self.at["position"], part)


def maps_of(measurements: Measurements) -> tuple[xr.Dataset, ...]:
    """Each kind's effects by the metric that was estimated."""
    by = measurements.metric
    maps = {name: each.sel(metric=[by]) for name, each in measurements.maps.items()}
    alone = replace(measurements, pairs=measurements.pairs.sel(metric=[by]), maps=maps)  # a seventh of the work
    return tuple(effects(alone, kind).sel(metric=by) for kind in measurements.kinds)


def checked(maps: Sequence[xr.Dataset]) -> tuple[Checked, ...]:
    """What was patched: by pair and component, the strong estimates first, then the random others."""
    return tuple(
        one
        for pair in maps[0].pair.values
        for found in maps
        for component in found.component.values
        for one in _of_component(found.sel(pair=pair, component=component))
    )


def _of_component(found: xr.Dataset) -> Iterator[Checked]:
    kind, direction = kind_of(found), shown_first(found)
    axes = [axis for axis in kind.axes if axis != "component"]
    values = {name: found[name].transpose(*axes).values for name in ("estimated", direction, "top", "sampled")}
    labels = [found[axis].values.tolist() for axis in axes]
    for why, flag in (("top", "top"), ("sample", "sampled")):
        places = [tuple(at) for at in np.argwhere(values[flag])]
        if why == "top":
            places.sort(key=lambda at: -abs(values["estimated"][at]))
        for at in places:
            there = {axis: names[n] for axis, names, n in zip(axes, labels, at, strict=True)}
            yield Checked(
                pair=str(found.pair.item()),
                kind=kind,
                at={"component": str(found.component.item()), **there},
                estimate=float(values["estimated"][at]),
                exact=float(values[direction][at]),
                why=why,
            )


def agreement(maps: Sequence[xr.Dataset], everything: Sequence[Checked]) -> pd.DataFrame:
    """How far estimates and exact effects agree on the sites that were patched: a row for each pair and group."""
    rows = []
    for found in maps:
        for pair in found.pair.values:
            for group, here in _groups(found.sel(pair=pair)):
                mine = [one for one in everything if (one.pair, one.group) == (pair, group)]
                rows.append({"pair": str(pair), "component": group, **_agreement(here, mine)})
    return pd.DataFrame(rows).set_index(["pair", "component"])


def _groups(found: xr.Dataset) -> Iterator[tuple[str, xr.Dataset]]:
    """The cells whose agreement is told together, but for those that stand beside the others."""
    kind = kind_of(found)
    columns = [label for label in found[kind.column].values.tolist() if label != (kind.margin or None)]
    for component in found.component.values.tolist():
        gathered: dict[str, list[Any]] = {}
        for label in columns:
            gathered.setdefault(_group(kind, component, label), []).append(label)
        for group, labels in gathered.items():
            here = found.sel(component=component)
            yield group, here if len(labels) == here.sizes[kind.column] else here.sel({kind.column: labels})


def _group(kind: SiteKind, component: str, column: Any) -> str:
    if not kind.told_by:
        return component
    word = str(column).partition(" ")[0]
    return f"{component} → {word if word in kind.told_by else column}"


def _agreement(found: xr.Dataset, mine: list[Checked]) -> dict[str, Any]:
    estimate, exact = (np.array([getattr(one, name) for one in mine]) for name in ("estimate", "exact"))
    top = np.array([one.why == "top" for one in mine], dtype=bool)
    sampled = int((~top).sum())
    # Of effects near zero the sign is a matter of rounding.
    counts = abs(exact) >= OF_INTEREST * abs(found.total_effect.item())
    # Of as many exact effects as estimates were taken for strong: else recall would grow with how many were patched.
    strongest = np.argsort(-abs(exact), kind="stable")[: int(top.sum())]
    varies = len(mine) > 1 and np.ptp(estimate) > 0 and np.ptp(exact) > 0
    can_matter = int((~found.status.isin(KNOWN)).sum())
    # Were a share f of the rest above, n random ones would all miss it with the probability (1 − f)^n: solved for 5 %.
    above = 1 - (1 - CONFIDENCE) ** (1 / sampled) if sampled else np.nan
    return {
        "sites": can_matter,
        "verified": int(top.sum()),
        "sampled": sampled,
        "pearson": np.corrcoef(estimate, exact)[0, 1].item() if varies else np.nan,
        "spearman": _spearman(estimate, exact) if varies else np.nan,
        "same_sign": float((np.sign(estimate) == np.sign(exact))[counts].mean()) if counts.any() else np.nan,
        "recall": float(top[strongest].mean()) if top.any() else np.nan,
        "sampled_max": float(abs(exact[~top]).max()) if sampled else np.nan,
        "above": 0.0 if len(mine) == can_matter else above,
        "reason": "" if varies else "the sites that were patched do not vary, so that nothing correlates",
    }


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    return np.corrcoef(stats.rankdata(one), stats.rankdata(other))[0, 1].item()


def over_pairs(agreements: pd.DataFrame) -> pd.DataFrame:
    """A row a component: of one pair its own; of several the medians, and of bounds the largest."""
    rules = dict.fromkeys(("verified", "sampled", "pearson", "spearman", "same_sign", "recall"), "median")
    rules |= {"sampled_max": "max", "above": "max", "reason": "first"}
    return agreements.groupby("component", sort=False).agg(rules).astype({"verified": int, "sampled": int})
