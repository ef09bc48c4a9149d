"""What was done to how queries attend, in words: hidden keys, and single edges."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.report.labels import number, percent, place
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.select import select, site_row
from causal_tracing.results.site_kinds import EDGES, EDGES_BY_QUERY, KNOCKOUT, KNOCKOUT_HEADS

MOST_KEYS = 8  # that are told one by one
HIDDEN = {
    "blocked": "the softmax is over the other keys, which get the weight that is freed",
    "zeroed": "their weight is taken away behind the softmax, and no other key gets it",
}
READ_KNOCKOUT = (
    "Attention knockout: in the clean run {query} cannot see a key (or all keys of a set), in one layer or a window of "
    "layers; {hidden}. Shown is how much of the behaviour is lost: positive means that seeing these keys supports the "
    "clean behaviour."
)
NOT_SHOWN_KNOCKOUT = (
    "What is lost without a key is not what this key does alone: keys stand in for one another, so that sets of them "
    "can lose much where no single one does.",
    "The first token often gets most of the weight without saying anything (a sink): hiding it changes how much all "
    "other keys get. There, probabilities and logit differences often disagree.",
)
READ_EDGES = (
    "An edge of attention: what {query} sees at a key, of one head, as the other run has it (v_edge: the value, "
    "k_edge: the key, q_edge: the score with the other run's query). All else that is read there is the run's own."
)
READ_BY_QUERY = (
    "Each head has a map of queries by keys. A query before the last token acts only through what later tokens read of "
    "it; keys behind a query are zeros by construction."
)


def attention_sentences(measurements: Measurements, pair: str) -> Iterator[str]:
    """For each key or set of keys, the layer where most is lost without it, by probability and by logits."""
    if KNOCKOUT.name not in measurements.maps:
        return
    found = select(measurements, pair=pair, of=KNOCKOUT.name)
    # A sentence for each token of a long prompt would bury the rest; the map has them all.
    if found.sizes["position"] > MOST_KEYS:
        return
    for column in found.position.values.tolist():
        cells = found.sel(component="attention", position=column)
        effect = cells.disruption.where(cells.status == "ok")
        if effect.notnull().any():
            layer = int(effect.layer.values[int(abs(effect).fillna(-np.inf).argmax("layer"))])
            yield _lost(measurements, found, pair, layer, column)


def _lost(measurements: Measurements, found: xr.Dataset, pair: str, layer: int, column: int | str) -> str:
    """One cell by the metrics that were measured of it."""
    row = site_row(found, "attention", layer, column)
    where = row.window or f"layer {layer}"
    effect = row.disruption or 0.0
    change = "lost" if effect >= 0 else "gained"
    said = f"Without {place(row)} in {where}, {number(abs(effect))} {found.unit.item()} are {change}"
    if "prob" not in measurements.pairs.metric or found.metric.item() == "prob":
        return f"{said}."
    prob = select(measurements, pair=pair, metric="prob", of=KNOCKOUT.name)
    clean, lost = prob.clean.item(), float(prob.disruption.sel(component="attention", layer=layer, position=column))
    share = f" ({percent(-lost / clean)})" if clean else ""  # float32 knows no probability below 1e-45
    return f"{said}; the answer's probability goes from {number(clean)} to {number(clean - lost)}{share}."


def attention_read(measurements: Measurements) -> tuple[str, ...]:
    """How the maps of attention are read."""
    options = _options(measurements)
    found = []
    if {KNOCKOUT.name, KNOCKOUT_HEADS.name} & {*measurements.maps}:
        hidden = HIDDEN[options.get("knockout_by", "blocked")]
        found.append(READ_KNOCKOUT.format(query=_query(options.get("knockout_query", "last")), hidden=hidden))
    if EDGES.name in measurements.maps:
        found.append(READ_EDGES.format(query=_query(options.get("edge_query", "last"))))
    if EDGES_BY_QUERY.name in measurements.maps:
        found += [READ_EDGES.format(query="one query"), READ_BY_QUERY]
    return tuple(found)


def attention_not_shown(measurements: Measurements) -> tuple[str, ...]:
    """What a knockout does not show."""
    return NOT_SHOWN_KNOCKOUT if {KNOCKOUT.name, KNOCKOUT_HEADS.name} & {*measurements.maps} else ()


def _query(column: int | str) -> str:
    return f"token {column}" if isinstance(column, int) else f"the {column.replace('_', ' ')} token"


def _options(measurements: Measurements) -> Mapping[str, Any]:
    return measurements.provenance.get("options", {})
