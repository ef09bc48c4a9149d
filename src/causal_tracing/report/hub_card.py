"""A trace as a folder that a data hub shows: tables, pairs, record, page, and a card that says where they come from.

Nothing is uploaded: that is the reader's call.
"""

import json
import shutil
import tempfile
from pathlib import Path

from causal_tracing import __version__
from causal_tracing.errors import MachineError
from causal_tracing.report.export import export
from causal_tracing.report.words.method import says_of_pairs
from causal_tracing.results.lens import LENS
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.storage.places import check_target

CARD, PAGE, PAIRS, RECORD = "README.md", "report.html", "pairs.jsonl", "manifest.json"
TABLES = {"blocks": "effects.parquet"}  # other kinds are called as they are
FENCE = "`" * 8  # longer than any run of backticks that a command has


def table_of(kind: str) -> str:
    """The file of a kind's long table."""
    return TABLES.get(kind, f"{kind}.parquet")


def _tables(measurements: Measurements) -> tuple[str, ...]:
    """What has a table: each kind of site, and the logit lens."""
    return (*measurements.kinds, *(() if measurements.lens is None else (LENS,)))


def write_hub_card(measurements: Measurements, folder: str | Path, *, page: str) -> Path:
    """Writes a new folder, whole or not at all; gives its path. Raises InvalidResults, MachineError."""
    target = check_target(folder)
    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        # Beside the target: a folder is renamed at once only within its file system.
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.absolute().parent))
    except OSError as error:
        raise MachineError(f"{target} could not be written: {error}. Choose another place.") from error
    try:
        _fill(measurements, scratch, page)
        scratch.chmod(0o755)  # a folder for one's own eyes would be uploaded as such
        scratch.rename(target)
    except BaseException as error:  # an interruption leaves nothing either
        shutil.rmtree(scratch, ignore_errors=True)
        if isinstance(error, OSError):
            raise MachineError(f"{target} could not be written: {error}. Choose another place.") from error
        raise
    return target


def _fill(measurements: Measurements, folder: Path, page: str) -> None:
    for kind in _tables(measurements):
        export(measurements, folder / table_of(kind), kind)
    record = dict(measurements.provenance)
    lines = (json.dumps(pair, ensure_ascii=False) + "\n" for pair in record.get("pairs", ()))
    (folder / PAIRS).write_text("".join(lines), encoding="utf-8")
    (folder / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / PAGE).write_text(page, encoding="utf-8")
    (folder / CARD).write_text(card(measurements), encoding="utf-8")


def card(measurements: Measurements) -> str:
    """The card: front matter by which a hub finds the tables, and the provenance in words."""
    record, count = measurements.provenance, measurements.pairs.sizes["pair"]
    model, command = str(record["model"]), record.get("command")
    configs = [f"- config_name: {kind}\n  data_files: {table_of(kind)}" for kind in _tables(measurements)]
    about = {
        "model": f"`{' '.join(model.replace('`', '').split())}`",
        "pairs": f"{count} (`{PAIRS}`)",
        "metric shown first": f"`{measurements.metric}`",
        "engine, precision": f"{record['engine']}, {record['dtype']}",
        "causal-tracing": str(record.get("versions", {}).get("causal-tracing", __version__)),
        "started": str(record.get("started", "not kept")),
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in about.items())
    again = f"\n## The same again\n\n{FENCE}\n{command}\n{FENCE}\n" if command else ""
    return (
        # As JSON, which is YAML too: a name may hold a colon or a quote.
        f"---\npretty_name: {json.dumps(f'Causal trace of {model}')}\ntags:\n- causal-tracing\n- interpretability\n"
        f"configs:\n" + "\n".join(configs) + "\n---\n\n"
        "# A causal trace\n\nHow much of each pair's behaviour comes back, and how much is lost, at every site: a row "
        "for each pair, cell and effect, a column for each metric.\n\n| | |\n|---|---|\n"
        f"{rows}\n{again}\n"
        f"`{RECORD}` is the whole record; `{PAGE}` is the page, one file that needs no network. "
        f"{says_of_pairs(measurements.kinds, record)}\n"
    )
