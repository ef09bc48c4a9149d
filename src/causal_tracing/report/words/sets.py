"""What sites do together, in words: sets beside the sum of their members, sets that grow, and pairs that interact.

Three things look alike in a number and are not: backup (one does what the other would have done), a chain (one acts
through the other) and erasure (one takes away what the other wrote). The words keep them apart as far as the order of
the layers and the signs allow, and say no more.
"""

from collections.abc import Iterator

import numpy as np
import xarray as xr

from causal_tracing.report.labels import number
from causal_tracing.results.arms import DIRECTIONS
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.select import SiteRow, measured_directions, select, strongest
from causal_tracing.results.site_kinds import GROWING, INTERACTIONS, SETS

PAIRS_TOLD, MOST_TOLD = 3, 8
SMALL = 0.02  # of the total effect: what two sites do beyond the sum of each is then not spoken of
READ_SETS = (
    "A set is patched as one. Beside its joint effect stands the sum of what its members do alone; what it does beyond "
    "that sum is their interaction (restoration: positive where they need one another; disruption: positive where they "
    "stand in for one another; of negative effects the other way round)."
)
READ_PAIRS = (
    "A pair's interaction is I(A,B) = e(AB) − e(A) − e(B), in the metric's unit. Disruption: positive where one does "
    "what the other would have done (OR-like), negative where one acts through the other or both are needed. "
    "Restoration: the other way round; so are both of negative effects."
)
NOT_SHOWN_PAIRS = (
    "An interaction does not say who does what: a chain, a backup and an erasure can give the same number. Of many "
    "pairs some are large by chance; the tests over the whole map take that into account, a single pair of prompts "
    "cannot."
)


def joint_sentences(measurements: Measurements, pair: str) -> Iterator[str]:
    """What the sets and pairs of sites of one pair of prompts do together."""
    if SETS.name in measurements.maps:
        found = select(measurements, pair=pair, of=SETS.name)
        yield from (_of_set(row, found.unit.item()) for row in strongest(found, MOST_TOLD))
    if GROWING.name in measurements.maps:
        yield from _growing(select(measurements, pair=pair, of=GROWING.name))
    if INTERACTIONS.name in measurements.maps:
        found = select(measurements, pair=pair, of=INTERACTIONS.name)
        for direction in measured_directions(found):
            yield from _pairs(found, direction)


def joint_read(measurements: Measurements) -> tuple[str, ...]:
    """How the maps of what is patched together are read."""
    sets = {SETS.name, GROWING.name} & {*measurements.maps}
    return (*([READ_SETS] if sets else []), *([READ_PAIRS] if INTERACTIONS.name in measurements.maps else []))


def joint_not_shown(measurements: Measurements) -> tuple[str, ...]:
    """What a map of pairs does not show."""
    return (NOT_SHOWN_PAIRS,) if INTERACTIONS.name in measurements.maps else ()


def _of_set(row: SiteRow, unit: str) -> str:
    parts = []
    for verb, name in (("restoring", "restoration"), ("disrupting", "disruption")):
        joint, alone = getattr(row, name), getattr(row, f"{name}_of_members")
        if joint is not None and alone is not None:
            parts.append(
                f"{verb} all of it {'brings back' if name == 'restoration' else 'takes away'} {number(joint)} {unit}, "
                f"its members alone add up to {number(alone)}"
            )
    return f"Set {row.position}: {'; '.join(parts)}."


def _growing(found: xr.Dataset) -> Iterator[str]:
    """What each site adds to those before it: these steps add up to what all do."""
    for direction in (name for name in DIRECTIONS if name in found):
        for name in found.set.values[:MOST_TOLD]:
            # Sets may be of different sizes; with no site nothing is patched, which is an effect of 0.
            joint = found[direction].sel(component=GROWING.components[0], set=name).dropna("size").values
            steps = ", ".join(number(step) for step in np.diff(joint, prepend=0.0)[:MOST_TOLD])
            more = f" and {len(joint) - MOST_TOLD} more" if len(joint) > MOST_TOLD else ""
            if len(joint) > 1:
                yield f"Growing set {name}, {direction} site by site: {steps}{more} {found.unit.item()}."


def _pairs(found: xr.Dataset, direction: str) -> Iterator[str]:
    """The pairs with the largest interaction in one direction."""
    beyond, unit = f"{direction}_beyond_sum", found.unit.item()
    least = SMALL * abs(found.total_effect.item())
    rows = [row for row in strongest(found, PAIRS_TOLD, by=beyond) if abs(getattr(row, beyond)) >= least]
    for row in rows:
        yield _interaction(found, direction, str(row.part), str(row.position), getattr(row, beyond), unit)
    if not rows:
        yield f"By {direction}, no pair of sites interacts by more than {SMALL:.0%} of the total effect."


def _interaction(found: xr.Dataset, direction: str, one: str, other: str, size: float, unit: str) -> str:
    # By layer: only the earlier one can act through the later one.
    first, second = sorted((one, other), key=lambda site: _layer(found, site))
    cells = found[direction].sel(component=INTERACTIONS.components[0])
    joint, alone = (
        cells.sel(site=one, partner=other).item(),
        [_alone(cells, site) for site in (first, second)],
    )
    same = _layer(found, first) == _layer(found, second)
    sign = _sign(joint, alone, found.total_effect.item())
    return (
        f"{first} with {second}, {direction}: together {number(joint)}, alone {number(alone[0])} and "
        f"{number(alone[1])}, so {number(abs(size))} {unit} {'more' if size > 0 else 'less'} than the sum: "
        f"{_meaning(direction, sign * size, [sign * each for each in alone], same_layer=same)}."
    )


def _sign(joint: float, alone: list[float], total: float) -> float:
    """Which way effects go, by which an interaction has its meaning: −1 where they are negative.

    Answer and foil in each other's place turn every number, and not what sites do together.
    """
    mixed = min(alone) < 0 < max(alone)
    return -1.0 if (total if mixed else joint + sum(alone)) < 0 else 1.0


def _meaning(direction: str, size: float, alone: list[float], *, same_layer: bool) -> str:
    """What an interaction of positive effects may be, by its sign, the signs of both alone, and which comes first."""
    chain = "" if same_layer else ", or the first acts through the second (a chain)"
    if direction == "disruption" and size > 0:
        if min(alone) < 0 < max(alone) and not same_layer and alone[1] < 0:
            return "the second alone opposes: without the first it has less to take away (erasure, not backup)"
        return "one does what the other would have done (backup, OR-like)"
    if direction == "disruption":
        return f"each needs the other (AND-like){chain}"
    return "each does more with the other (AND-like)" if size > 0 else f"each adds less to the other (OR-like){chain}"


def _alone(cells: xr.DataArray, site: str) -> float:
    """What a site does alone: in the margin of the list that it is in."""
    if site in cells.site.values:
        return float(cells.sel(site=site, partner="alone"))
    return float(cells.sel(site="alone", partner=site))


def _layer(found: xr.Dataset, site: str) -> int:
    axis = "site" if site in found.site.values else "partner"
    return int(found[f"{axis}_layer"].sel({axis: site}))
