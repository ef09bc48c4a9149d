"""Circuits in words: what a set of nodes or edges keeps, and that it is a set that does, never the circuit."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from causal_tracing.errors import InvalidOption, some_of
from causal_tracing.report.labels import between, number
from causal_tracing.report.words.senders import read_as_a_whole
from causal_tracing.results.circuits import Area, Circuits, circuits, subsets_of
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.site_kinds import CIRCUIT_TESTS, CIRCUITS

WEIGHTED = {"nodes": "edges, weighted", "edges": "on a way through"}  # what a set's weighted size is
MUCH = 0.8  # of the behaviour: the smallest set that keeps so much is told
NOT_BETTER = 1.0  # above, less is kept of what opposes
REST = {
    "donor": "patched from the other prompt",
    "mean": "set to its mean over the reference prompts",
    "zero": "set to zero",
    "resample": "patched from prompts of the reference",
}
READ = {
    "kept": "Circuits: in the clean run every node outside a set (heads and MLPs, at all tokens) is {rest}, and the "
    "set computes live from what it gets. f = (m(C) − m(empty)) / (m(all) − m(empty)): in the empty set the embedding "
    "is {rest} too, which the other sets {input}; means over pairs come first, then the ratio.",
    "restored": "Circuits: into the corrupt run every node of a set (heads and MLPs, at all tokens) is put as it is in "
    "the clean run; the embedding is with all nodes alone. f = (m(C) − m(empty)) / (m(all) − m(empty)). This is "
    "another world than that of a set which is kept while all else is ablated.",
}
INSTEAD = {
    "donor": "adds in the run of the other prompt",
    "mean": "adds in the mean over the reference prompts",
    "zero": "would add if it were zero",
    "resample": "adds in runs of the reference prompts",
}
READ_OF_EDGES = {
    "kept": "Circuits of edges: in the clean run every edge outside a set is cut, at all tokens: its reader (a query, "
    "a key, a value, an MLP, the logits) reads what its sender (the embedding, a head, an MLP) {instead}; along the "
    "edges of the set it reads what the sender adds live. f = (m(C) − m(empty)) / (m(all) − m(empty)): means over "
    "pairs come first, then the ratio.",
    "restored": "Circuits of edges: in the corrupt run the reader of each edge of a set reads what the sender adds in "
    "the clean run, at all tokens, and all else is live. f = (m(C) − m(empty)) / (m(all) − m(empty)). This is another "
    "world than that of a set which is kept while all other edges are cut.",
}
NOT_SHOWN = (
    "A faithful set is one that is enough, and not the circuit: another set, even one that shares nothing with it, can "
    "be as faithful. What is ablated, and with what, decides f.",
    "A ranking that was made on these pairs fits them: measure the set on others.",
)
NOT_OF_ONE = (
    "f is of a set of {of} together, on these prompts. It does not say what any one of them does alone, and not that "
    "one stores a fact."
)


def circuit_sentences(measurements: Measurements, pair: str | None = None, metric: str | None = None) -> Iterator[str]:
    """What was measured of circuits, of one pair or of the mean over pairs (None)."""
    if CIRCUITS.name not in measurements.maps or CIRCUITS.name not in measurements.kinds_by(metric):
        return
    try:
        found = circuits(measurements, metric=metric, pair=pair)
    except InvalidOption as error:
        yield f"Nothing can be said of circuits: {error}"
        return
    yield _enough(found)
    yield from _above_one(found)
    yield from _areas(found)
    if CIRCUIT_TESTS.name in measurements.maps:
        yield _complete(found) + _few_subsets(found, measurements.provenance["options"].get("circuit_subsets", 0))
        yield _minimal(found)
    if source := measurements.provenance["options"].get("circuit_source"):
        yield f"What ranks the {found.of}: {source}."
    if pair is None:
        yield NOT_SHOWN[0]


def circuit_read(measurements: Measurements) -> tuple[str, ...]:
    """How circuits are read."""
    if CIRCUITS.name not in measurements.maps:
        return ()
    options = measurements.provenance["options"]
    if options.get("circuit_of", "nodes") == "edges":
        read = READ_OF_EDGES[options["circuit_how"]].format(instead=INSTEAD[measurements.write["kind"]])
        return read, *read_as_a_whole(options["circuit"])
    kept = "keep" if options["circuit_input"] else "do not keep either"
    return (READ[options["circuit_how"]].format(rest=REST[measurements.write["kind"]], input=kept),)


def circuit_not_shown(measurements: Measurements) -> tuple[str, ...]:
    """What circuits do not show."""
    return NOT_SHOWN if CIRCUITS.name in measurements.maps else ()


def not_of_one(record: Mapping[str, Any]) -> str:
    """What a result of circuits alone does not say of the nodes or edges in them."""
    return NOT_OF_ONE.format(of=record.get("options", {}).get("circuit_of", "nodes"))


def share_of(row: pd.Series) -> str:
    """f with its interval, where there is one: `0.86 [0.80, 0.91]`."""
    if np.isnan(row.faithfulness):
        return f"undefined ({row.reason})"
    # Behind the fourth digit is what sums of float32 numbers leave: 0 would be told as -2.1e-07.
    return _share(row.faithfulness) + ("" if np.isnan(row.low) else f" [{_share(row.low)}, {_share(row.high)}]")


def weight_of(found: Circuits, row: pd.Series) -> str:
    """The weighted size of a set: of edges a whole number."""
    return f"{row.weighted_size:.0f}" if found.of == "edges" else number(row.weighted_size)


def _told(value: float) -> float:
    """f as it is told: what the words say of it must not stand on the other side, nor be a matter of rounding."""
    return round(value, 2)


def _share(value: float) -> str:
    return number(round(value, 4) + 0.0)


def _enough(found: Circuits) -> str:
    """The smallest set that keeps much, or the largest that was measured."""
    # The ends are 0 and 1 by definition, and say nothing of a set.
    inner = found.curve.iloc[1:-1]
    if not len(inner) or inner.faithfulness.isna().all():
        reason = f": {inner.reason.iloc[0]}" if len(inner) and inner.reason.iloc[0] else ""
        return f"Of sets of {found.of}, none between nothing and all {found.items} has a faithfulness{reason}."
    enough = inner[inner.faithfulness.map(_told) >= MUCH]
    # The curve goes by size: its first set that keeps enough is the smallest.
    row = enough.iloc[0] if len(enough) else inner.iloc[-1]
    which = "" if len(enough) else f" (no set that was measured keeps {MUCH:g})"
    how = _how(found)
    ends = f"{number(found.curve.metric.iloc[0])} without any and {number(found.curve.metric.iloc[-1])} with all"
    return (
        f"A set of {row['size']} {found.of} (of {found.items}) keeps f = {share_of(row)} of the behaviour "
        f"{how}{which}: {number(row.metric)} {found.unit}, against {ends}."
    )


def _how(found: Circuits) -> str:
    """The world in which a set keeps what it keeps."""
    if found.how != "kept":
        return "when it is put into the corrupt run"
    if found.of == "edges":
        return f"when along all others is read what the sender {INSTEAD[found.write]}"
    return f"when all else is {REST[found.write]}"


def _above_one(found: Circuits) -> Iterator[str]:
    inner = found.curve.iloc[1:-1]
    above = inner[inner.faithfulness.map(_told) > NOT_BETTER]
    if len(above):
        row = above.loc[above.faithfulness.idxmax()]
        yield (
            f"With {row['size']} {found.of} f is {share_of(row)}, above 1, which is not better: all that is left out "
            "there, together, opposes the behaviour, and belongs to what the model does."
        )


def _areas(found: Circuits) -> Iterator[str]:
    """CMD first, CPR beside it."""
    if np.isnan(found.cmd.estimate):
        yield f"There are no areas under the curve: {found.cmd.reason}."
        return
    over = "the ten sizes of MIB" if found.cmd.of_mib else (
        f"{len(found.cmd.shares)} sizes from {found.cmd.shares[0]:.2g} of the {found.of} on (not those of MIB)"
    )  # fmt: skip
    yield (
        f"CMD, the area between f and 1 (0 is best), is {_area(found.cmd)} over {over}; CPR, the area under f, is "
        f"{_area(found.cpr)}. CPR has no upper end: it grows by leaving out what opposes."
    )


def _area(area: Area) -> str:
    return number(area.estimate) + between(area.low, area.high)


def _complete(found: Circuits) -> str:
    """How far the set and the model are apart without the same nodes."""
    # The first row has nothing taken out.
    taken = found.completeness.iloc[1:]
    if not len(taken):
        return f"Nothing was taken out of the set of {found.tested} {found.of}."
    row = taken.loc[taken.distance.idxmax()]
    return (
        f"Completeness of the first {found.tested} {found.of}: without the same {found.of}, {len(taken)} choices of "
        f"them, the set minus the model is {number(row.gap)}{between(row.low, row.high)} {found.unit} where it is "
        f"largest (without {row['items']}), and {number(found.completeness.gap.iloc[0])} with nothing taken out. Of a "
        "complete set it is about 0 everywhere."
    )


def _few_subsets(found: Circuits, asked: int) -> str:
    """That there are fewer random subsets than were asked for, where there are."""
    there = subsets_of(found.tested or 0)
    if there >= asked:
        return ""
    if not there:
        return " So small a set has no subsets between one item and all."
    return f" Of {asked} random subsets asked for there are {there}, and all were taken out."


def _minimal(found: Circuits) -> str:
    """How many of the set move it."""
    matters = int(found.minimality.matters.sum())
    idle = found.minimality["item"][~found.minimality.matters.astype(bool)].tolist()
    left = f"; of {some_of(idle)} it was not seen" if idle else ""
    return (
        f"Minimality: {matters} of these {found.tested} {found.of} move the metric by at least 1 % of the model's, "
        f"{number(found.clean)} {found.unit}, when taken out beside some set that was tried{left}."
    )
