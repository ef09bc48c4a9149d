"""What the page's script draws the mean over pairs from: the averaged map, and each pair's value in its cells."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from causal_tracing.report.page.maps import FEW_DIGITS, by_component, coded, plain, role_row
from causal_tracing.results.effects import effects
from causal_tracing.results.means import AVERAGED, FRACTIONS, Evidence, by_column, defined
from causal_tracing.results.measurements import Measurements


def mean_data(measurements: Measurements, evidence: Evidence, ids: Sequence[str]) -> dict[str, Any]:
    """The averaged map as [component][layer][position], with intervals and p over the map, and the pairs' own values.

    Its `id` is none of the pairs'; `values` are [component][layer][position][pair], pairs in the order of `pairs`; the
    interaction has none, for it is the difference of the others.
    """
    cells = evidence.cells
    names = [name for name in AVERAGED if name in cells]
    columns = by_column(defined(effects(measurements).sel(metric=evidence.metric)))
    numbers = {
        "total": plain(float(evidence.total.estimate)),
        "fraction_reason": _fraction_reason(evidence),
        "status": by_component(coded(cells.status)),
        **{name: by_component(cells[name]) for name in names},
        "low": {name: by_component(cells[f"{name}_low"]) for name in names},
        "high": {name: by_component(cells[f"{name}_high"]) for name in names},
        "p": {name: by_component(cells[f"{name}_p_adjusted"]) for name in names},
        "shares": {effect: by_component(cells[name]) for name, effect in FRACTIONS.items() if name in cells},
        "clusters": by_component(cells.clusters),
    }
    return {
        "id": unused("mean", ids),
        "name": f"mean over {evidence.pairs} pairs",
        "rows": [role_row(position) for position in cells.position.values.tolist()],
        "metrics": {evidence.metric: numbers},
        "pairs": [str(pair) for pair in columns.pair.values],
        "values": {
            name: by_component(columns[name].transpose(..., "pair"), FEW_DIGITS) for name in measurements.directions
        },
    }


def unused(name: str, ids: Sequence[str]) -> str:
    """A name that none of these ids is."""
    while name in ids:
        name += "*"
    return name


def _fraction_reason(evidence: Evidence) -> str:
    """Why there are no fractions; empty where there are."""
    known = [evidence.cells[name] for name in FRACTIONS if name in evidence.cells]
    if any(np.isfinite(values.values).any() for values in known):
        return ""
    reasons = [str(text) for name in FRACTIONS if f"{name}_reason" in evidence.cells
               for text in evidence.cells[f"{name}_reason"].values.ravel() if text]  # fmt: skip
    return reasons[0] if reasons else "the total effect is not known to differ from 0"
