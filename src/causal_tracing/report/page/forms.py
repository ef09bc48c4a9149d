"""Files of this folder as text, and the forms among them that a kind of site fills in for the script to draw in."""

from html import escape
from importlib.resources import files
from string import Template

from causal_tracing.results.site_kinds import SiteKind


def part(name: str) -> str:
    """A file of this folder, as text."""
    return files("causal_tracing.report.page").joinpath(name).read_text(encoding="utf-8")


def form(name: str, kind: SiteKind) -> str:
    """A form of this folder, as the place of one kind."""
    return Template(part(name)).substitute(kind=kind.name, title=kind.title, noun=kind.part or "cell")


def titled(kind: SiteKind, body: str) -> str:
    """A kind's section, with its title above what is told."""
    return (
        f'<section id="{kind.name}-section" aria-labelledby="{kind.name}-title"><h2 id="{kind.name}-title">'
        f"{escape(kind.title)}</h2>{body}</section>"
    )
