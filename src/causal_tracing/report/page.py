"""The page: words and tables from the reading, numbers as data, and one small script that draws them.

Token text is data, never markup: it is escaped in the words, and the script sets it as text. The content policy
allows the page's own style and script by their hashes and nothing else.
"""

import base64
import hashlib
import json
import os
import tempfile
import unicodedata
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.effects import effects
from causal_tracing.errors import MachineError
from causal_tracing.reading import Reading, read
from causal_tracing.results import Measurements
from causal_tracing.rows import SiteRow, place, with_share

MOST_PAIRS = 20


def to_html(measurements: Measurements, path: str | Path | None = None) -> str:
    """The page as text; also written to `path`, whole or not at all. Raises MachineError."""
    shown = [str(pair) for pair in measurements.data.pair.values[:MOST_PAIRS]]
    readings = [read(measurements, pair=pair) for pair in shown]
    folder = files("causal_tracing.report")
    parts = {name: folder.joinpath(f"page.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    page = Template(parts["html"]).substitute(
        policy=_policy(parts["css"], parts["js"]),
        title=escape(visible(readings[0].headline)),
        style=parts["css"],
        script=parts["js"],
        stories="\n".join(_story(reading, hidden=n > 0) for n, reading in enumerate(readings))
        + _left_out(measurements),
        tables="\n".join(_tables(measurements, reading, hidden=n > 0) for n, reading in enumerate(readings)),
        how_to_read=_list(readings[0].how_to_read),
        caveats=_list(readings[0].caveats),
        provenance=escape(_provenance(measurements)),
        data=_json(_data(measurements, shown)),
    )
    if path is not None:
        _write(Path(path), page)
    return page


def visible(text: str) -> str:
    """Text without characters that could reorder or hide what is around them: those are named instead."""
    return "".join(
        f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") else c for c in text
    )


def _policy(style: str, script: str) -> str:
    hashes = {
        name: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for name, text in (("style", style), ("script", script))
    }
    allowed = "; ".join(f"{name}-src 'sha256-{digest}'" for name, digest in hashes.items())
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def _write(path: Path, page: str) -> None:
    try:
        handle, scratch = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(page)
            os.chmod(scratch, 0o644)
            os.replace(scratch, path)
        except BaseException:
            os.unlink(scratch)
            raise
    except OSError as error:
        raise MachineError(f"{path} could not be written: {error}. Choose another place with --out.") from error


def _story(reading: Reading, *, hidden: bool) -> str:
    """The finding, before anything else; what else the words say comes with the table of sites."""
    finding = reading.sentences[0] if reading.sentences else "No effect could be measured."
    clean, _, corrupt = reading.headline.partition("   against   ")
    warnings = "".join(f'<p class="warning">{escape(visible(text))}</p>' for text in reading.warnings)
    return (
        f'<div class="story" data-pair="{escape(reading.pair)}"{" hidden" if hidden else ""}>'
        f"<h1>{_prompt(clean)}<small>against {_prompt(corrupt)}</small></h1>"
        f'<p class="finding">{escape(visible(finding))}</p>'
        f'<p class="total">{escape(reading.total)} · {escape(reading.run)}</p>{warnings}</div>'
    )


def _prompt(text: str) -> str:
    """A prompt, with what follows it set apart."""
    prompt, arrow, answer = visible(text).rpartition(" →")
    return f"{escape(prompt)} → <b>{escape(answer.strip() or answer)}</b>" if arrow else escape(visible(text))


def _left_out(measurements: Measurements) -> str:
    count = measurements.data.sizes["pair"]
    return f'<p class="warning">The first {MOST_PAIRS} of {count} pairs are shown.</p>' if count > MOST_PAIRS else ""


def _tables(measurements: Measurements, reading: Reading, *, hidden: bool) -> str:
    data = measurements.data.sel(pair=reading.pair)
    unit = data.unit.sel(metric=measurements.metric).item()
    rows = "".join(_site(row) for row in reading.sites)
    words = _list(tuple(visible(text) for text in reading.sentences[1:]))
    noised = bool(measurements.provenance.get("noise"))
    choices = _choices(data, "clean", "clean") + _choices(data, "corrupt", "with noise" if noised else "corrupt")
    return (
        f'<div data-pair="{escape(reading.pair)}"{" hidden" if hidden else ""}>'
        f'<section><h2>Strongest sites</h2>{words}<div class="scroll"><table class="sites"><thead><tr><th>site</th>'
        f'<th class="number">restoration ({unit})</th><th class="number">disruption ({unit})</th>'
        f'<th class="number">interaction</th><th>what the two mean together</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        '<p class="quiet">Cuts and structural zeros are left out.</p></section>'
        f'<section><h2>What the model would say</h2><div class="choices">{choices}</div></section></div>'
    )


def _site(row: SiteRow) -> str:
    shown = ((row.restoration, row.restored_fraction), (row.disruption, row.lost_fraction), (row.interaction, None))
    cells = "".join(f'<td class="number">{with_share(effect, share)}</td>' for effect, share in shown)
    layers = f" ({row.window})" if row.window else ""
    site = f"{row.component}, layer {row.layer}{layers}, {place(row)}"
    return f"<tr><td>{escape(visible(site))}</td>{cells}<td>{escape(row.pattern)}</td></tr>"


def _choices(data: xr.Dataset, name: str, called: str) -> str:
    both = zip(data[f"{name}_top"].values, data[f"{name}_top_prob"].values, strict=True)
    items = "".join(
        f"<li><code>{escape(visible(repr(str(token))))}</code> {prob:.2f}</li>" for token, prob in both if prob == prob
    )
    prompt = escape(visible(str(data[f"{name}_prompt"].item())))
    return f"<div><p><strong>{called}</strong> <code>{prompt}</code> →</p><ol>{items}</ol></div>"


def _list(texts: tuple[str, ...]) -> str:
    return f'<ul class="notes">{"".join(f"<li>{escape(text)}</li>" for text in texts)}</ul>'


def _provenance(measurements: Measurements) -> str:
    """The command first, then a line for each entry; what is not ASCII is escaped, so that nothing hides in it."""
    record = dict(measurements.provenance)
    command = record.pop("command", None) or "none: the model was handed in from memory"
    lines = [f"{name}: {json.dumps(value)}" for name, value in record.items()]
    return "\n".join([f"made by: {visible(command)}", *lines])


def _data(measurements: Measurements, shown: list[str]) -> dict[str, Any]:
    """What the script draws from: numbers as [component][layer][position], null where undefined."""
    data, found = measurements.data, effects(measurements)
    metrics = [str(name) for name in data.metric.values if name != "entropy"]
    metrics = [name for name in metrics if found.total_effect.sel(metric=name).notnull().any()]
    return {
        "metrics": [{"name": name, "unit": found.unit.sel(metric=name).item()} for name in metrics],
        "components": [str(name) for name in data.component.values],
        "layers": data.layer.values.tolist(),
        "positions": [str(position) for position in data.position.values],
        "directions": list(measurements.directions),
        "pairs": [_pair(measurements, found.sel(pair=pair), metrics) for pair in shown],
    }


def _pair(measurements: Measurements, found: xr.Dataset, metrics: list[str]) -> dict[str, Any]:
    return {
        "id": str(found.pair.item()),
        "rows": [_row(found, position) for position in found.position.values.tolist()],
        "metrics": {name: _numbers(measurements, found.sel(metric=name)) for name in metrics},
    }


def _numbers(measurements: Measurements, found: xr.Dataset) -> dict[str, Any]:
    def by_component(values: xr.DataArray) -> dict[str, Any]:
        return {str(name): _plain(values.sel(component=name).values.tolist()) for name in values.component.values}

    return {
        "total": _plain(found.total_effect.item()),
        "fraction_reason": found.fraction_reason.item() or found.reason.item(),
        "status": by_component(found.status),
        **{direction: by_component(found[direction]) for direction in measurements.directions},
    }


def _row(found: xr.Dataset, position: int | str) -> dict[str, Any]:
    """A row's label (both tokens where the prompts differ), and how it is spoken."""
    if not str(position).isdigit():
        return {"label": str(position).replace("_", " "), "spoken": str(position).replace("_", " "), "differs": False}
    clean, corrupt = (visible(str(found[name].values[int(position)])) for name in ("clean_token", "corrupt_token"))
    differs = clean != corrupt
    both = (clean.strip() or clean, corrupt.strip() or corrupt)
    spoken = " | ".join(f'"{text}"' for text in (both if differs else both[:1]))
    return {
        "label": " | ".join(both if differs else both[:1]),
        "spoken": f"position {position} {spoken}",
        "differs": differs,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.7g}") if np.isfinite(value) else None
    return value


def _json(content: Any) -> str:
    """JSON that cannot end the script element it stands in, whatever its texts say."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
