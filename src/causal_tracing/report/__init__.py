"""The report: one HTML page that needs no network, and what a notebook shows."""

from causal_tracing.report.page import to_html

__all__ = ["to_html"]
