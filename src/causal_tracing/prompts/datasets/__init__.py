"""Built-in sets of pairs. Each has a source, and is made by the module of its name; nothing here runs a model.

A set is named as `facts`, a part of it by the label `kind`, as `facts:capital`.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

NAMES = ("facts", "ioi", "gender", "greater_than", "induction")


def is_name(name: str) -> bool:
    """Whether a set, or a part of one, is called so."""
    whole, _, kind = name.partition(":")
    return whole in NAMES and (not kind or kind in kinds(whole))


def rows(name: str) -> list[dict[str, Any]]:
    """The pairs of a set, or of one part of it, as rows of a pairs file."""
    whole, _, kind = name.partition(":")
    return [row for row in _module(whole).rows() if kind in ("", row["kind"])]


def kinds(name: str) -> tuple[str, ...]:
    """The parts of a set."""
    return tuple(dict.fromkeys(row["kind"] for row in _module(name).rows()))


def about(name: str) -> Mapping[str, str]:
    """What a set asks, and where it comes from, as plain words."""
    what, _, source = str(_module(name).__doc__).partition("\n\n")
    return {"what": what, "source": " ".join(source.split())}


def _module(name: str) -> Any:
    return import_module(f"causal_tracing.prompts.datasets.{name}")
