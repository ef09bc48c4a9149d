"""What the page's script draws edges of attention from, where each head has a map of queries by keys.

They are laid out as the maps of heads at one position (`parts.py`): in place of the position a head is chosen, queries
go across in place of layers, and keys go down in place of heads. Of more heads than there is room for, those with the
strongest edges are on the page.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.report.page.parts import MOST_NUMBERS, TESTED, lettered
from causal_tracing.report.page.text import metrics_with_effects, role_row, rounded, switched, token_row
from causal_tracing.results.columns import columns_of, is_token
from causal_tracing.results.effects import AVERAGED, effects
from causal_tracing.results.means import MeanMap
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.ranked import strongest_place
from causal_tracing.results.site_kinds import SiteKind

DIGITS = 5
ORDER = ("head", "query", "position")


def query_maps(measurements: Measurements, kind: SiteKind, shown: Sequence[str]) -> dict[str, Any]:
    """A kind's numbers of these pairs, as [component][head][query][key], with the labels of its axes."""
    found = effects(measurements, kind.name).sel(pair=list(shown))
    there = metrics_with_effects(measurements.pairs.sel(pair=list(shown)))
    metrics = [name for name in there if name in found.metric]
    names = [name for name in switched(found) if name != "interaction"]
    each = len(shown) * len(names) * _cells_of_a_head(found)
    # Heads before metrics: a head that is not on the page is nowhere, and other metrics stand in the result.
    metrics = metrics if len(metrics) * each * found.sizes["head"] <= MOST_NUMBERS else metrics[:1]
    first = found.sel(metric=(metrics or [measurements.metric])[0], pair=shown[0])
    kept = _kept(first, names[0], max(1, MOST_NUMBERS // (each * max(1, len(metrics)))))
    return {
        "kind": kind.name,
        "noun": "key",
        "chosen": "head",
        "across": "query",
        "drawn": True,
        "components": [str(name) for name in found.component.values],
        "counts": {str(name): found.sizes["position"] for name in found.component.values},
        "readers": {},
        "layers": [str(each) for each in found["query"].values.tolist()],
        "effects": switched(found),
        "metrics": metrics,
        "positions": kept,
        "measured": found.sizes["head"],
        "strongest": strongest_place(first, names[0])["head"],
        "pairs": [_of_pair(found.sel(pair=pair), metrics, names, kept) for pair in shown],
    }


def query_mean(means: MeanMap) -> dict[str, Any]:
    """The mean over pairs, laid out as a pair of `query_maps`, with its intervals and its p over the map."""
    names = [name for name in AVERAGED if name in means.cells]
    parts = [*names, *(f"{name}_{part}" for name in names for part in TESTED), "clusters"]
    room = max(1, MOST_NUMBERS // (len(parts) * _cells_of_a_head(means.cells)))
    kept = _kept(means.cells, names[0], room)
    return {
        "positions": kept,
        "measured": means.cells.sizes["head"],
        "strongest": strongest_place(means.cells, names[0])["head"],
        "rows": [_head(name) for name in kept],
        "lines": [role_row(key) for key in columns_of(means.cells)],
        "queries": [role_row(query) for query in means.cells["query"].values.tolist()],
        "metrics": {means.metric: _numbers(means.cells, parts, kept)},
    }


def _cells_of_a_head(found: xr.Dataset) -> int:
    return int(np.prod([found.sizes[axis] for axis in ("component", "query", "position")]))


def _kept(found: xr.Dataset, effect: str, count: int) -> list[str]:
    """As many heads as there is room for, those with the strongest edges, in their order."""
    size = abs(found[effect].where(found.status == "ok"))
    largest = size.max([axis for axis in size.dims if axis != "head"]).fillna(-1)  # not measured: behind all others
    strongest = np.sort(np.argsort(-largest.values, kind="stable")[:count])
    return [str(found["head"].values[n]) for n in strongest]


def _head(name: str) -> dict[str, Any]:
    return {"label": name, "spoken": f"head {name}", "differs": False}


def _of_pair(found: xr.Dataset, metrics: Sequence[str], names: Sequence[str], kept: list[str]) -> dict[str, Any]:
    return {
        "rows": [_head(name) for name in kept],
        "lines": [token_row(found, key) for key in columns_of(found)],
        "queries": [_query(found, query) for query in found["query"].values.tolist()],
        "metrics": {name: _numbers(found.sel(metric=name), names, kept) for name in metrics},
    }


def _query(found: xr.Dataset, query: Any) -> dict[str, Any]:
    return token_row(found, int(query)) if is_token(query) else role_row(query)


def _numbers(found: xr.Dataset, names: Sequence[str], kept: list[str]) -> dict[str, Any]:
    here = found.sel(head=kept)
    components = [str(name) for name in found.component.values]
    status = {name: here.status.sel(component=name).transpose(*ORDER).values for name in components}
    return {
        "status": {name: [[lettered(keys) for keys in queries] for queries in each] for name, each in status.items()},
        **{
            effect: {
                name: rounded(here[effect].sel(component=name).transpose(*ORDER).values.tolist(), DIGITS)
                for name in components
            }
            for effect in names
        },
    }
