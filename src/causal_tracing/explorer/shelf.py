"""Names for people: of a trace in a list, and of the folder in which it is kept."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from causal_tracing.errors import InvalidOption
from causal_tracing.report.page.text import visible

MOST_OF_A_NAME = 60


def label_of(pair: Mapping[str, Any]) -> str:
    """What was asked, on one line."""
    clean, corrupt = (" ".join(visible(str(pair.get(name) or "")).split()) for name in ("clean", "corrupt"))
    return f"{clean} | {corrupt}"


def folder_for(out: Path, name: str) -> Path:
    """The folder of this name right below `out`: letters, digits and dashes are left of it. Raises InvalidOption."""
    slug = re.sub(r"[^\w]+", "-", name.strip().lower()).strip("-_")[:MOST_OF_A_NAME]
    if not slug:
        raise InvalidOption(f"{name!r} has no letter or digit to name a folder by. Give another name.")
    return out / slug
