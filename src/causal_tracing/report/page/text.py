"""What the page's script draws from: plain values, rows by name, and texts without characters that hide or reorder."""

import math
import unicodedata
from typing import Any

import xarray as xr

from causal_tracing.prompts.tokens import Column
from causal_tracing.report.labels import UNPAIRED
from causal_tracing.results.columns import in_words, is_token
from causal_tracing.results.effects import DEFINITIONS, without_corrupt

DIGITS = 7


# Unicode's categories of control characters, marks of direction, halves of letters, private ones, and line ends.
HIDING = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")


def visible(text: str) -> str:
    """Text without characters that could reorder or hide what is around them: those are named instead."""
    return "".join(f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in HIDING else c for c in text)


def token_row(found: xr.Dataset, position: Column) -> dict[str, Any]:
    """A row's label (both tokens where the prompts differ), its token's position, and how it is spoken."""
    if not is_token(position):
        return role_row(position)
    clean, corrupt = (visible(str(found[name].values[position])) for name in ("clean_token", "corrupt_token"))
    differs = clean != corrupt
    both = (clean.strip() or clean, corrupt.strip() or corrupt or UNPAIRED)
    spoken = " | ".join(f'"{text}"' for text in (both if differs else both[:1]))
    return {
        "label": " | ".join(both if differs else both[:1]),
        "token": position,
        "spoken": f"position {position} {spoken}",
        "differs": differs,
    }


def role_row(position: Column) -> dict[str, Any]:
    """A row's label and how it is spoken, where there is no one token: a role, or a position of several pairs."""
    name = str(position).replace("_", " ")
    spoken = f"position {name}" if is_token(position) else in_words(str(position))
    return {"label": name, "spoken": spoken, "differs": False}


def rounded(value: Any, digits: int = DIGITS) -> Any:
    """Numbers of so many digits as JSON can hold them, whole ones as such; null where undefined."""
    if isinstance(value, list):
        return [rounded(item, digits) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        short = float(f"{value:.{digits}g}")
        return int(short) if short.is_integer() else short
    return value


def metrics_with_effects(pairs: xr.Dataset) -> list[str]:
    """The metrics that have effects for some pair, in the trace's order: by the numbers of the unedited runs."""
    # Knockouts of pairs without a corrupt prompt have effects all the same: what their clean runs lose.
    there = pairs.clean.where(without_corrupt(pairs), pairs.clean - pairs.corrupt).notnull()
    names = [str(name) for name in pairs.metric.values if name != "entropy"]
    return [name for name in names if there.sel(metric=name).any()]


def switched(found: xr.Dataset) -> list[str]:
    """The effects that the page's switch offers: those that do not follow from others."""
    return [effect.name for effect in DEFINITIONS if effect.switched and effect.name in found]
