"""What the page's script draws from of kinds that have a map by token and layer, where it is not the page's first map.

They are laid out as the maps of heads at one position (`parts.py`): there is one place and nothing to choose, and
tokens go down where heads would. Of more numbers than there is room for, those by the first metric, of the first pairs,
are on the page.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.report.page.maps import windows_of
from causal_tracing.report.page.parts import MOST_NUMBERS, TESTED, lettered
from causal_tracing.report.page.text import metrics_with_effects, role_row, rounded, switched, token_row
from causal_tracing.results.columns import columns_of, is_token
from causal_tracing.results.effects import AVERAGED, effects
from causal_tracing.results.means import MeanMap
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.site_kinds import SiteKind

DIGITS = 5
WHOLE = {"label": "", "spoken": "", "differs": False}  # the one place
PLACE = {"positions": ["all"], "measured": 1, "strongest": "all", "rows": [WHOLE]}


def token_maps(measurements: Measurements, kind: SiteKind, shown: Sequence[str]) -> dict[str, Any]:
    """A kind's numbers of these pairs, as [component][0][layer][token]; null of a pair that there is no room for."""
    pairs = measurements.pairs.sel(pair=list(shown))
    found = effects(measurements, kind.name).sel(pair=list(shown))
    metrics = [name for name in metrics_with_effects(pairs) if name in found.metric]
    names = [name for name in switched(found) if name != "interaction"]
    each = len(names) * int(np.prod([found.sizes[axis] for axis in kind.axes]))
    metrics = metrics if len(metrics) * len(shown) * each <= MOST_NUMBERS else metrics[:1]
    count = max(1, MOST_NUMBERS // (each * max(1, len(metrics))))
    components = [str(name) for name in found.component.values]
    return {
        "kind": kind.name,
        "noun": "token",
        "lead": f"By token and layer: each cell is a {kind.noun}.",
        "drawn": True,
        "components": components,
        "counts": dict.fromkeys(components, found.sizes["position"]),
        "readers": {},
        "layers": found.layer.values.tolist(),
        "windows": windows_of(found),
        "effects": switched(found),
        "metrics": metrics,
        **PLACE,
        "pairs": [
            _of_pair(found.sel(pair=pair), int(pairs.clean_length.sel(pair=pair)), metrics, names)
            if n < count
            else None
            for n, pair in enumerate(shown)
        ],
    }


def token_mean(means: MeanMap) -> dict[str, Any]:
    """The mean over pairs, laid out as a pair of `token_maps`, with its intervals and its p over the map."""
    names = [name for name in AVERAGED if name in means.cells]
    numbers = [*names, *(f"{name}_{part}" for name in names for part in TESTED), "clusters"]
    lines = [role_row(column) for column in columns_of(means.cells)]
    return {**PLACE, "lines": lines, "metrics": {means.metric: _numbers(means.cells, numbers)}}


def _of_pair(found: xr.Dataset, length: int, metrics: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """As long as the pair's own prompt."""
    found = found.isel(position=[not is_token(each) or each < length for each in columns_of(found)])
    return {
        "rows": [WHOLE],
        "lines": [token_row(found, column) for column in columns_of(found)],
        "metrics": {name: _numbers(found.sel(metric=name), names) for name in metrics},
    }


def _numbers(found: xr.Dataset, names: Sequence[str]) -> dict[str, Any]:
    here = {str(name): found.sel(component=name).transpose("layer", "position", ...) for name in found.component.values}
    return {
        "status": {name: [[lettered(tokens) for tokens in each.status.values]] for name, each in here.items()},
        **{
            effect: {name: [rounded(each[effect].values.tolist(), DIGITS)] for name, each in here.items()}
            for effect in names
        },
    }
