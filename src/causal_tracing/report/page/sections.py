"""The sections of a page, one for each kind of site behind its first map: each kind says which figure it has.

A figure is what a section holds, what the script draws there of each pair, and the same of the mean over pairs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from causal_tracing.report.page.circuits import circuits_section
from causal_tracing.report.page.forms import form
from causal_tracing.report.page.listed import listed
from causal_tracing.report.page.maps import has_map
from causal_tracing.report.page.matrices import matrix_data, matrix_mean
from causal_tracing.report.page.parts import parts_data, parts_mean
from causal_tracing.report.page.queries import query_maps, query_mean
from causal_tracing.report.page.token_maps import token_maps, token_mean
from causal_tracing.results.means import MeanMap
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.site_kinds import KINDS, SiteKind

OfPairs = Callable[[Measurements, SiteKind, Sequence[str]], dict[str, Any]]
OfMean = Callable[[MeanMap], dict[str, Any]]
Told = Callable[[Measurements, SiteKind, Sequence[str], MeanMap | None, str], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """How kinds of site are shown on a page.

    `form` is the file in which the script draws them, "" where the section is `told` in tables; `of_pairs` and
    `of_mean` are what it draws from, None where there is nothing to draw.
    """

    form: str = ""
    told: Told = listed
    of_pairs: OfPairs | None = None
    of_mean: OfMean | None = None


FIGURES = {
    "tokens": Figure(form="drawn.html", of_pairs=token_maps, of_mean=token_mean),
    "parts": Figure(form="drawn.html", of_pairs=parts_data, of_mean=parts_mean),
    "ranked": Figure(form="ranked.html", of_pairs=parts_data, of_mean=parts_mean),
    "queries": Figure(form="drawn.html", of_pairs=query_maps, of_mean=query_mean),
    "matrix": Figure(of_pairs=matrix_data, of_mean=matrix_mean),
    "table": Figure(),
    "curve": Figure(told=circuits_section),
}


def behind(measurements: Measurements) -> list[SiteKind]:
    """The kinds that have a section of their own: all but the one that the first map of the page shows."""
    first, *others = measurements.kinds
    return [KINDS[name] for name in (others if has_map(measurements) else (first, *others))]


def drawn_form(kind: SiteKind) -> str:
    """The form in which the script draws a kind; "" where it is told in tables."""
    name = FIGURES[kind.figure].form
    return form(name, kind) if name else ""


def section(
    measurements: Measurements, kind: SiteKind, shown: Sequence[str], means: Mapping[str, MeanMap], id: str
) -> str:
    """A kind's section, of these pairs and of the mean, whose id is `id`."""
    return drawn_form(kind) or FIGURES[kind.figure].told(measurements, kind, shown, means.get(kind.name), id)


def drawn_data(
    measurements: Measurements, kinds: Sequence[SiteKind], shown: Sequence[str], means: Mapping[str, MeanMap]
) -> list[dict[str, Any]]:
    """What the script draws of these kinds; nothing of those that are told in tables alone."""
    return [
        figure.of_pairs(measurements, kind, shown)
        | ({"mean": figure.of_mean(means[kind.name])} if figure.of_mean and kind.name in means else {})
        for kind in kinds
        if (figure := FIGURES[kind.figure]).of_pairs
    ]
