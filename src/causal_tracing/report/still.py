"""Maps that stand still: SVG without script or style, for notebooks and for a page whose script does not run."""

from collections import defaultdict
from html import escape

import numpy as np
import xarray as xr

from causal_tracing.reading import number
from causal_tracing.report.colours import colour
from causal_tracing.report.tokens import visible_token

ROW, GAP, LETTER, HEAD = 16, 1, 6.6, 20  # sizes in pixels
MOST_LETTERS = 22
STEPS = 24  # shades on each side of 0: cells of one shade are one path
CARD, INK, QUIET, HATCH = "#fbfafc", "#1c1a24", "#6b6678", "#cfc9d8"


def still_map(found: xr.Dataset, effect: str, component: str, largest: float, *, labels: bool = True) -> str:
    """One component's effect of one pair and metric: tokens down, layers across, on a light card of its own."""
    here = found.sel(component=component)
    rows = [k for k, position in enumerate(here.position.values) if not is_beyond(found, position)]
    values, status = here[effect].values[:, rows], here.status.values[:, rows]
    names = [row_label(found, position) for position in here.position.values[rows]]
    left = 8 + (LETTER * max(len(name) for name in names) + 6 if labels and names else 0)
    cell = max(6, min(ROW, round(460 / len(values))))
    width, height = left + cell * len(values) + 8, HEAD + ROW * len(rows) + 20
    title = f"{effect} · {component}"
    parts = [
        f'<rect width="{width:g}" height="{height}" rx="6" fill="{CARD}"/>',
        _text(8, 14, title, INK, weight=600),
        *(_text(left - 6, HEAD + ROW * k + 12, name, INK, anchor="end") for k, name in enumerate(names) if labels),
        *_cells(values, status, largest, left, cell),
        _text(left, height - 6, f"layer {here.layer.values[0]}", QUIET),
        _text(width - 8, height - 6, str(here.layer.values[-1]), QUIET, anchor="end"),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height}" viewBox="0 0 {width:g} {height}" '
        f'role="img" aria-label="{escape(title)}, tokens down, layers across" font-family="system-ui, sans-serif" '
        f'font-size="11">{"".join(parts)}</svg>'
    )


def scale_of(found: xr.Dataset, effects: tuple[str, ...]) -> float:
    """The largest size of any effect of a pair and metric: one scale for all components and directions."""
    return max((float(np.nanmax(abs(found[name].values), initial=0)) for name in effects), default=0.0) or 1.0


def scale_words(largest: float, unit: str) -> str:
    """What the colours mean, in words."""
    return f"Purple supports the clean answer, orange opposes it: −{number(largest)} to +{number(largest)} {unit}."


def is_beyond(found: xr.Dataset, position: object) -> bool:
    """Whether a column of the trace lies beyond this pair's tokens (other pairs are longer)."""
    length = max(sum(1 for role in found[name].values if role) for name in ("clean_role", "corrupt_role"))
    return str(position).isdigit() and int(str(position)) >= length


def row_label(found: xr.Dataset, position: object) -> str:
    """A row's token, both where the prompts differ; or the name of its role."""
    if not str(position).isdigit():
        return str(position).replace("_", " ")
    clean, corrupt = (str(found[name].values[int(str(position))]) for name in ("clean_token", "corrupt_token"))
    shown = [visible_token(text).strip(" ") for text in dict.fromkeys((clean, corrupt))]
    return " | ".join(text if len(text) <= MOST_LETTERS // 2 else f"{text[: MOST_LETTERS // 2]}…" for text in shown)


def _cells(values: np.ndarray, status: np.ndarray, largest: float, left: float, cell: int) -> list[str]:
    paths: dict[str, list[str]] = defaultdict(list)
    for layer, row in np.ndindex(*values.shape):
        value, x, y = values[layer, row], left + cell * layer, HEAD + ROW * row
        if not np.isfinite(value):
            paths[HATCH].append(f"M{x:g} {y + ROW - GAP}l{cell - GAP} {GAP - ROW}h1l{GAP - cell} {ROW - GAP}z")
        elif status[layer, row] == "structural_zero":
            paths[HATCH].append(f"M{x + cell / 2 - 1:g} {y + ROW // 2 - 1}h2v2h-2z")
        else:
            shade = colour(round(STEPS * value / largest) / STEPS)
            notch = 4 if status[layer, row] == "cut" else 0
            right, bottom = cell - GAP, ROW - GAP
            paths[shade].append(f"M{x:g} {y}h{right - notch}l{notch} {notch}v{bottom - notch}h{-right}z")
    return [f'<path fill="{fill}" d="{"".join(pieces)}"/>' for fill, pieces in paths.items()]


def _text(x: float, y: float, text: str, fill: str, *, anchor: str = "start", weight: int = 400) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" fill="{fill}" text-anchor="{anchor}" font-weight="{weight}">{escape(text)}</text>'
    )
