"""Estimates beside what was patched exactly to check them."""

from dataclasses import dataclass

from causal_tracing.interventions.sites import Site


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A site's estimate beside its exact effect, and why it was patched: "top" (a strong estimate) or "sample"."""

    site: Site
    estimate: float
    exact: float
    why: str
