"""The mean over pairs on the page: its story in words, and what is drawn of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from causal_tracing.report.page.maps import mean_data
from causal_tracing.report.page.text import visible
from causal_tracing.report.words.many_pairs import beside_the_maps, read
from causal_tracing.results.means import MeanMap, NoMean, mean_maps
from causal_tracing.results.measurements import Measurements


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanPart:
    """What of a page is about the mean: empty where there is one pair, a reason alone where there is no mean."""

    title: str = ""
    story: str = ""
    caveats: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    maps: Mapping[str, MeanMap] = field(default_factory=dict)  # by kind, where it has a mean


def mean_of(measurements: Measurements, shown: Sequence[str]) -> MeanPart:
    """The mean's part of the page."""
    if measurements.pairs.sizes["pair"] < 2:
        return MeanPart()
    means = mean_maps(measurements)
    first = next(iter(means.values()))
    if isinstance(first, NoMean):
        return MeanPart(
            story=f'<p class="warning">There is no mean over these pairs: {escape(visible(str(first)))}</p>'
        )
    data = mean_data(measurements, first, shown)
    said = read(means, measurements.provenance, beside_the_maps(measurements))
    finding = said.sentences[0] if said.sentences else "No effect could be measured."
    story = (
        f'<div class="story" data-pair="{escape(data["id"])}"><h1>{escape(said.title)}</h1>'
        f'<p class="finding">{escape(visible(finding))}</p>'
        f'<p class="total">{escape(said.total)}</p>'
        + "".join(f"<p>{escape(visible(text))}</p>" for text in said.sentences[1:])
        + "".join(f'<p class="warning">Warning: {escape(visible(text))}</p>' for text in said.warnings)
        + _not_measured(measurements.provenance)
        + "</div>"
    )
    caveats = f'<div data-pair="{escape(data["id"])}">{_list(said.caveats)}</div>'
    maps = {name: each for name, each in means.items() if isinstance(each, MeanMap)}
    return MeanPart(title=said.title, story=story, caveats=caveats, data=data, maps=maps)


def _not_measured(record: Mapping[str, Any]) -> str:
    """The pairs that were left out and those that failed, with their reasons."""
    found = ""
    for name, said in (("dropped", "left out by the clean run"), ("failed", "failed")):
        pairs = record.get(name) or {}
        if pairs:
            texts = [f"{id}: {reason}" for id, reason in pairs.items()]
            found += f"<details><summary>{len(pairs)} pairs {said}</summary>{_list(texts)}</details>"
    return found


def _list(texts: Sequence[str]) -> str:
    return f'<ul class="notes">{"".join(f"<li>{escape(visible(text))}</li>" for text in texts)}</ul>'
