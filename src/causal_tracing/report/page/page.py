"""The page: words and tables from the reading, numbers as data, and one small script that draws them.

Token text is data, never markup: it is escaped in the words, and the script sets it as text. The content policy
allows the page's own style and script by their hashes and nothing else.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.prompts.answers import on_one_line
from causal_tracing.report.labels import full_name, with_share
from causal_tracing.report.page.forms import part
from causal_tracing.report.page.maps import MOST_IN_FULL, map_data
from causal_tracing.report.page.mean_story import MeanPart, mean_of
from causal_tracing.report.page.sections import behind, drawn_data, section
from causal_tracing.report.page.text import visible
from causal_tracing.report.words.method import Side, sides
from causal_tracing.report.words.one_pair import Reading, read
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.select import SiteRow
from causal_tracing.results.site_kinds import SiteKind
from causal_tracing.results.storage.atomic import write_text
from causal_tracing.results.units import is_function

MOST_PAIRS = 250  # whose maps go into a page
MOST_ENTRIES = 1000  # of a list of the record: more are not read through
# The last one begins to draw at once, by what the others define.
SCRIPTS = ("parts.js", "matrix.js", "graph.js", "mean.js", "page.js")


def to_html(measurements: Measurements, path: str | Path | None = None) -> str:
    """The page as text; also written to `path`, whole or not at all. Raises MachineError."""
    shown = [str(pair) for pair in measurements.pairs.pair.values[:MOST_PAIRS]]
    readings = [read(measurements, pair=pair) for pair in shown[:MOST_IN_FULL]]
    mean, kinds = mean_of(measurements, shown), behind(measurements)
    style, script = part("page.css"), "".join(map(part, SCRIPTS))
    page = Template(part("page.html")).substitute(
        head=head(mean.title or readings[0].headline, style, script),
        script=script,
        parts="".join(section(measurements, kind, shown, mean.maps, str(mean.data.get("id", ""))) for kind in kinds),
        stories=mean.story
        + "\n".join(_story(reading, hidden=n > 0 or bool(mean.data)) for n, reading in enumerate(readings))
        + "\n".join(_short_story(measurements, pair) for pair in shown[MOST_IN_FULL:])
        + _left_out(measurements),
        map=part("map.html"),
        mean=part("mean.html") if mean.data else "",
        curves=part("curves.html"),
        tables="\n".join(
            _tables(measurements, reading, hidden=n > 0 or bool(mean.data)) for n, reading in enumerate(readings)
        ),
        how_to_read=list_of(readings[0].how_to_read),
        caveats=f'<div id="of-pairs"{" hidden" if mean.data else ""}>{list_of(readings[0].caveats)}</div>',
        mean_caveats=mean.caveats,
        provenance=escape(provenance_text(measurements)),
        data=_json(page_data(measurements, kinds, shown, mean)),
    )
    if path is not None:
        write(Path(path), page)
    return page


def head(title: str, style: str, script: str = "") -> str:
    """The head of a page with this style and this script, and no other."""
    return Template(part("head.html")).substitute(
        policy=_policy(style, script), title=escape(visible(title)), style=style
    )


def _policy(style: str, script: str) -> str:
    """A content policy that allows this style and this script, by their hashes, and nothing else."""
    # Where there is no script, none is named, and default-src forbids them all.
    allowed = "; ".join(f"{name}-src '{_hash(text)}'" for name, text in (("style", style), ("script", script)) if text)
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def write(path: Path, page: str) -> None:
    """Writes a page, whole or not at all. Raises MachineError."""
    write_text(path, page, otherwise="Choose another place with --out.")


def _story(reading: Reading, *, hidden: bool) -> str:
    """The finding, before anything else; what else the words say comes with the table of sites."""
    finding = reading.sentences[0] if reading.sentences else "No effect could be measured."
    clean, corrupt = reading.sides
    warnings = "".join(f'<p class="warning">{escape(visible(text))}</p>' for text in reading.warnings)
    return (
        f'<div class="story" data-pair="{escape(reading.pair)}"{" hidden" if hidden else ""}>'
        f"<h1>{prompt(clean)}<small>against {prompt(corrupt)}</small></h1>"
        f'<p class="finding">{escape(visible(finding))}</p>'
        f'<p class="total">{escape(visible(f"{reading.total} · {reading.run}"))}</p>{warnings}</div>'
    )


def _short_story(measurements: Measurements, pair: str) -> str:
    """A pair that is one of many: what is asked, and nothing more."""
    data = measurements.pairs.sel(pair=pair)
    asked = sides(measurements, data)
    return (
        f'<div class="story" data-pair="{escape(pair)}" hidden>'
        f"<h1>{prompt(asked[0])}<small>against {prompt(asked[1])}</small></h1></div>"
    )


def prompt(side: Side) -> str:
    """A prompt, with what follows it set apart."""
    text, follows = visible(side.prompt), visible(on_one_line(side.follows))
    return f"{escape(text)} → <b>{escape(follows.strip() or follows)}</b>" if follows else escape(text)


def _left_out(measurements: Measurements) -> str:
    count = measurements.pairs.sizes["pair"]
    shown = f'<p class="warning">The maps of the first {MOST_PAIRS} of {count} pairs are here; the mean is of all.</p>'
    return shown if count > MOST_PAIRS else ""


def _tables(measurements: Measurements, reading: Reading, *, hidden: bool) -> str:
    data = measurements.pairs.sel(pair=reading.pair)
    # Of a user's own metric it may be any text.
    unit = escape(visible(data.unit.sel(metric=measurements.metric).item()))
    rows = "".join(_site(row) for row in reading.sites)
    words = list_of(tuple(visible(text) for text in reading.sentences[1:]))
    noised = bool(measurements.provenance.get("noise"))
    choices = _choices(data, "clean", "clean")
    if data.corrupt_prompt.item():
        choices += _choices(data, "corrupt", "with noise" if noised else "corrupt")
    return (
        f'<div data-pair="{escape(reading.pair)}"{" hidden" if hidden else ""}>'
        f"<section><h2>{'Strongest sites' if rows else 'What was found'}</h2>{words}"
        f"{_table_of_sites(rows, unit) if rows else ''}</section>"
        f'<section><h2>What the model would say</h2><div class="choices">{choices}</div></section></div>'
    )


def _table_of_sites(rows: str, unit: str) -> str:
    return (
        '<div class="scroll" tabindex="0"><table class="sites"><thead><tr><th>site</th>'
        f'<th class="number">restoration ({unit})</th><th class="number">disruption ({unit})</th>'
        f'<th class="number">interaction ({unit})</th><th>what the two mean together</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        '<p class="quiet">Cuts and structural zeros are left out.</p>'
    )


def _site(row: SiteRow) -> str:
    site, *numbers, pattern = map(escape, site_cells(row))
    cells = "".join(f'<td class="number">{number}</td>' for number in numbers)
    return f"<tr><td>{site}</td>{cells}<td>{pattern}</td></tr>"


def site_cells(row: SiteRow) -> list[str]:
    """A row of the table of sites: the site, restoration, disruption, interaction, and what they mean together."""
    shown = ((row.restoration, row.restored_fraction), (row.disruption, row.lost_fraction), (row.interaction, None))
    site = visible(full_name(row))
    return [site, *(with_share(effect, share) for effect, share in shown), row.pattern]


def _choices(data: xr.Dataset, name: str, called: str) -> str:
    # Fewer choices than are kept end in NaN: of a small vocabulary, or of a run that there is not.
    both = zip(data[f"{name}_top"].values, data[f"{name}_top_prob"].values, strict=True)
    items = "".join(
        f"<li><code>{escape(visible(repr(str(token))))}</code> {prob:.2f}</li>"
        for token, prob in both
        if not np.isnan(prob)
    )
    prompt = escape(visible(str(data[f"{name}_prompt"].item())))
    return f"<div><p><strong>{called}</strong> <code>{prompt}</code> →</p><ol>{items}</ol></div>"


def list_of(texts: tuple[str, ...]) -> str:
    """Texts as a list; they are escaped here."""
    return f'<ul class="notes">{"".join(f"<li>{escape(text)}</li>" for text in texts)}</ul>'


def provenance_text(measurements: Measurements) -> str:
    """The command first, then a line for each entry; what is not ASCII is escaped, so that nothing hides in it."""
    record = dict(measurements.provenance)
    command = record.pop("command", None) or f"none: {_without_command(record)}"
    lines = [f"{name}: {json.dumps(_readable(value))}" for name, value in record.items()]
    return "\n".join([f"made by: {visible(command)}", *lines])


def _readable(value: Any) -> Any:
    """A value of the record, without lists and tables that nobody reads through: a saved trace has them."""
    if isinstance(value, Mapping) and len(value) <= MOST_ENTRIES:
        return {name: _readable(each) for name, each in value.items()}
    many = isinstance(value, (Mapping, list, tuple)) and len(value) > MOST_ENTRIES
    return f"{len(value)} entries, which are kept in the saved trace" if many else value


def _without_command(record: Mapping[str, Any]) -> str:
    """Why no command makes a result again."""
    if is_function(record.get("options", {}).get("metric")):
        return "a metric is a function, which no command line can name"
    from_memory = record.get("source", {}).get("kind") in (None, "memory")
    return "the model was handed in from memory" if from_memory else "the shards that were merged do not say it"


def page_data(
    measurements: Measurements, kinds: Sequence[SiteKind], shown: Sequence[str], mean: MeanPart
) -> dict[str, Any]:
    """All that the script draws from: the first map, and these kinds behind it."""
    data = map_data(measurements, list(shown)) | ({"mean": mean.data} if mean.data else {})
    return data | {"parts": drawn_data(measurements, kinds, shown, mean.maps)}


def _json(content: Any) -> str:
    """JSON that cannot end the script element it stands in, whatever its texts say."""
    # NaN is no JSON: a page with one in it would show nothing.
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
