"""A trace as a few numbers by name, for who logs runs: the total effect, and each component's strongest site."""

from collections.abc import Iterator
from math import isfinite

from causal_tracing.results.means import MeanMap, NoMean, mean_maps
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.select import select, shown_first, strongest

MOST = 50


def scalars(measurements: Measurements, *, metric: str | None = None) -> dict[str, float]:
    """At most 50 numbers, in the metric's unit; names are letters, digits, "_" and "/". What is not finite is left out.

    Of one pair `total_effect` and `<component>/restoration`, `/restored_fraction`, `/layer` of its strongest site; of
    several the same of their means, with `_low` and `_high` (95 %) where there are intervals. Raises InvalidOption.
    """
    found: dict[str, float] = {"pairs": float(measurements.pairs.sizes["pair"])}
    rows = _of_pair if found["pairs"] == 1 else _of_means
    for group in rows(measurements, metric):
        kept = {name: float(value) for name, value in group.items() if value is not None and isfinite(value)}
        # Whole groups: a mean without its interval would say less than it seems to.
        if len(found) + len(kept) <= MOST:
            found |= kept
    return found


def _of_pair(measurements: Measurements, metric: str | None) -> Iterator[dict[str, float | None]]:
    """The pair's total effect, then its components one after another."""
    for kind in measurements.kinds_by(metric):
        found = select(measurements, metric=metric, of=kind)
        if kind == measurements.kinds[0]:
            yield {name: found[name].item() for name in ("clean", "corrupt", "total_effect")}
        effect = shown_first(found)
        for component in map(str, found.component.values):
            for row in strongest(found, 1, component=component):
                name = "restored_fraction" if effect.startswith("restoration") else "lost_fraction"
                share = getattr(row, name)
                yield {
                    f"{component}/{effect}": getattr(row, effect),
                    f"{component}/{name}": share,
                    **({} if row.layer is None else {f"{component}/layer": row.layer}),
                }


def _of_means(measurements: Measurements, metric: str | None) -> Iterator[dict[str, float | None]]:
    """The mean total effect, then the components' means; nothing of a kind that has no mean."""
    told = False
    for means in mean_maps(measurements, metric=metric).values():
        if isinstance(means, NoMean):
            continue
        # The total effect is of the pairs, and the same for every kind of site.
        if not told:
            told, total = True, means.total
            names = {"total_effect": total.estimate, "total_effect_low": total.low, "total_effect_high": total.high}
            yield {name: value.item() for name, value in names.items()}
        yield from _of_map(means)


def _of_map(means: MeanMap) -> Iterator[dict[str, float | None]]:
    """Each component's strongest cell."""
    for component in map(str, means.cells.component.values):
        peak = means.peak(component)
        if peak is None:
            continue
        names = {"": means.shown, "_low": f"{means.shown}_low", "_high": f"{means.shown}_high"}
        numbers = {f"{component}/{means.shown}{end}": peak[name].item() for end, name in names.items() if name in peak}
        yield numbers | ({f"{component}/layer": peak.layer.item()} if "layer" in peak.coords else {})
