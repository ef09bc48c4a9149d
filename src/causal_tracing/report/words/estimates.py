"""Estimates in words: what was estimated, how it was checked, and how far it can be believed."""

from collections.abc import Iterator, Mapping, Sequence
from math import isnan
from typing import Any

import pandas as pd

from causal_tracing.report.labels import number
from causal_tracing.report.words.method import Side, device_sentences, headline, sides
from causal_tracing.results.estimates import Checked
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.site_kinds import KINDS, PATHS

SHOWN = 10
COLUMNS = ("pearson", "spearman", "same_sign", "recall")
HOW = {
    "atp": "attribution patching",
    "ig": "integrated gradients, {steps} steps",
    "eap": "edge attribution patching",
    "eap-ig": "edge attribution with integrated gradients over embeddings, {steps} steps",
    "reception": "exact reception, and a slope behind it; paths to the logits are measured",
}


def words(measurements: Measurements, agreement: pd.DataFrame, checked: Sequence[Checked]) -> str:
    """The agreement of each component first, then what is known of the rest, then the strongest that were patched."""
    record, wide = measurements.provenance, max(12, *(2 + len(name) for name in agreement.index))
    lines = [
        headline(asked(measurements)),
        f"estimated {measurements.directions[0]} ({how(record)}, {measurements.metric}) · {record['model']}",
        "Estimates are a screen, not effects. What was patched exactly says how far to believe them:",
        "",
        f"{'component':{wide}}{'patched':>12}{'pearson':>8}{'spearman':>9}{'same sign':>10}{'recall':>8}",
    ]
    for name, row in agreement.iterrows():
        patched = f"{row.verified:.0f} + {row.sampled:.0f}"
        pearson, spearman, same_sign, recall = (_share(row, column) for column in COLUMNS)
        lines.append(f"{name:{wide}}{patched:>12}{pearson:>8}{spearman:>9}{same_sign:>10}{recall:>8}")
    strongest_of = f"strongest of those patched, in {unit_of(measurements)}"
    lines += ["", *left_out(measurements, agreement), "", f"{strongest_of:42}{'exact':>8}{'estimate':>10}"]
    strongest = sorted(checked, key=lambda one: -abs(one.exact))[:SHOWN]
    lines += [f"{named(measurements, one):42}{number(one.exact):>8}{number(one.estimate):>10}" for one in strongest]
    lines += [f"Warning: {warning}" for warning in device_sentences(record)]
    return "\n".join(lines)


def _share(row: Any, column: str) -> str:
    """One number of a row; a dash where it is undefined."""
    if isnan(row[column]):
        return "–"
    most = "≤ " if column == "recall" and row.above != 0 else ""  # what was not patched may hold stronger ones
    return f"{most}{row[column]:.2f}".replace("-", "−")


def asked(measurements: Measurements) -> tuple[Side, ...]:
    """What was asked: the two prompts, or how many pairs (then rows are medians over them)."""
    pairs = measurements.pairs
    if pairs.sizes["pair"] > 1:
        return (Side(f"{pairs.sizes['pair']} pairs, each with estimates of its own; rows are medians over them"),)
    return sides(measurements, pairs.isel(pair=0))


def noun(measurements: Measurements) -> str:
    """What a cell is called: a site, or a path."""
    return "site" if any(KINDS[kind].layered for kind in measurements.kinds) else "path"


def how(record: Mapping[str, Any]) -> str:
    """The method of a record."""
    screen = record["estimates"]
    return HOW[screen["method"]].format(**screen)


def unit_of(measurements: Measurements) -> str:
    """The unit of estimates and effects: that of the one metric."""
    return str(measurements.pairs.unit.values[0])


def left_out(measurements: Measurements, agreement: pd.DataFrame) -> Iterator[str]:
    """What is known of the sites of each component that were not patched."""
    each = " of each pair" if measurements.pairs.sizes["pair"] > 1 else ""
    for name, row in agreement.iterrows():
        cells = "paths" if str(name).partition(" ")[0] in PATHS.components else "sites"
        if row.above == 0:
            yield f"{name}: every {cells[:-1]} that can matter was patched."
        elif row.sampled:
            most = f"{number(row.sampled_max)} {unit_of(measurements)}, of either sign"
            yield (
                f"{name}: of {row.sampled:.0f} random {cells} among the rest{each}, none has an effect above {most}; "
                f"so with 95 % confidence less than {100 * row.above:.1f} % of the rest do."
            )


def named(measurements: Measurements, one: Checked) -> str:
    """A patched site for people, with its token, and its pair where there are several."""
    pairs = measurements.pairs
    whose = f"{one.pair}: " if pairs.sizes["pair"] > 1 else ""
    if not one.kind.layered:
        return whose + one.kind.address.format(part=one.at[one.kind.part or ""], column=one.at[one.kind.column])
    site = one.site
    token = str(pairs.clean_token.sel(pair=one.pair).values[site.position]).strip()
    part = "" if site.part is None else f" {one.kind.part} {site.part}"
    return f"{whose}{site.component} layer {site.layer}{part}, token {site.position} ({token})"
