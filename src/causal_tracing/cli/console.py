"""What the commands share: models and pairs as they are named, a trace with what is said around it, the screen."""

import json
import os
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from causal_tracing.errors import FormatNote, Note
from causal_tracing.interventions.sites import COMPONENTS
from causal_tracing.prompts.token_texts import printable

INTERRUPTED = 130  # as shells have it of a command that Ctrl-C ended: 128, and the number of the signal
MOST_MAPS = 4  # pairs, whose maps are drawn in the terminal where there is no mean

SHADED = ("256", "truecolor")  # of 16 colours, shades of both signs come out as the same grey

if TYPE_CHECKING:
    from rich.console import Console

    from causal_tracing.experiments.compare import Comparison
    from causal_tracing.experiments.trace_result import Trace
    from causal_tracing.models.model import Model
    from causal_tracing.prompts.pairs import Pair

_written: list[Path] = []  # by this command, so that Ctrl-C can say it


def load(name: str, **options: Any) -> "Model":
    """The model by its name; what it does not offer is said."""
    from causal_tracing import load as open_model

    model = open_model(name, **options)
    for component, reason in model.anatomy.missed:
        if component in COMPONENTS:  # heads and neurons are an error where they are asked for
            note(f"{component} is not offered on this model: {reason}")
    return model


def traced(model: "Model", pairs: "list[Pair]", **options: Any) -> "Trace":
    """The trace, with what was understood shown before it and progress while it runs."""
    from causal_tracing import preview
    from causal_tracing import trace as run
    from causal_tracing.experiments.progress import telling
    from causal_tracing.patching.options.together import clean_alone

    noise = options.get("noise") or options.get("preset")
    for shown in preview(model, pairs, align=options.get("align", "strict"), noise=noise, alone=clean_alone(options)):
        note(str(shown))
    with telling(True, at_once=True) as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore", Note)  # said below, as a note
        result = run(model, pairs, **options, progress=progress or False)
    if result.provenance["engine_note"]:
        note(f"note: {result.provenance['engine_note']}")
    checked = result.provenance["spot_checks"]
    if "reason" in checked:
        note(f"note: {checked['reason']}")
    elif checked["cells"]:
        largest = checked["largest_difference"]
        note(f"{checked['cells']} cells run again on whole forwards differ by at most {largest:.1e}")
    return result


def ran(model: "Model", pairs: "list[Pair]", folder: Path, **options: Any) -> "Trace":
    """The trace of a run folder, begun or gone on with, with what became of the pairs."""
    from causal_tracing import run
    from causal_tracing.experiments.progress import telling

    try:
        with telling(True, at_once=True, pairs=len(pairs)) as progress, warnings.catch_warnings():
            warnings.simplefilter("ignore", Note)  # said below, as a note
            result = run(model, pairs, folder, **options, progress=progress or False)
    except KeyboardInterrupt:
        note(f"Interrupted. What is done is kept in {folder}; go on with:\n{shlex.join(sys.argv)}")
        raise typer.Exit(INTERRUPTED) from None
    wrote(folder)
    record = result.provenance
    if record["engine_note"]:
        note(f"note: {record['engine_note']}")
    if "rerun" in record["spot_checks"]:
        note(f"note: run again on replay: {record['spot_checks']['rerun']}")
    for id, reason in record["failed"].items():
        note(f"pair {id} failed: {reason}")
    note(
        f"{len(record['pairs'])} of {record['pairs_asked']} pairs measured; {len(record['dropped'])} left out "
        f"(keep={record['keep']}), {len(record['failed'])} failed, {record['pairs_missing']} not done"
    )
    return result


def estimate(model: "Model", pairs: "list[Pair]", options: dict[str, Any], *, keep: str, as_json: bool) -> None:
    """Prints what a trace would take: of many pairs, of those that can be traced and are kept."""
    from causal_tracing import estimate as run
    from causal_tracing.experiments.filter import keep_pairs
    from causal_tracing.patching.options.trace import Options
    from causal_tracing.prompts.pairs import named

    if len(pairs) > 1:
        found = keep_pairs(model, named(pairs), Options(**options), keep)
        for id, reason in found.failed.items():
            note(f"pair {id} cannot be traced: {reason}")
        note(f"{len(found.pairs)} of {len(pairs)} pairs: {len(found.dropped)} left out, {len(found.failed)} fail")
        # Where none can be traced, the estimate says why.
        pairs = list(found.pairs) or pairs
    found = run(model, pairs, **options)
    print(json_of(found.to_dict()) if as_json else found)


def kept(
    result: "Trace",
    model: "Model",
    pairs: "list[Pair]",
    folder: Path,
    options: dict[str, Any],
    *,
    saved: bool,
    overwrite: bool,
) -> None:
    """Writes the trace (unless it is saved there already), its page, and the file that makes it again."""
    from causal_tracing.experiments.repeat import keep_config
    from causal_tracing.prompts.pairs import named

    if not saved:
        wrote(result.save(folder, overwrite=overwrite))
        keep_config(folder, model, named(pairs), result.provenance["options"], write=options.get("write", "donor"))
    result.to_html(folder / "report.html")
    wrote(folder / "report.html")
    note(f"wrote {folder} (the trace) and {folder / 'report.html'} (its page)")


def say(result: "Trace", *, as_json: bool, all_metrics: bool) -> None:
    """The result on stdout: one JSON document, or words and maps."""
    if not as_json:
        show(result, None)
        return
    from causal_tracing.report.document import document

    print(json_of(document(result.measurements, all_metrics=all_metrics)))


def json_of(values: Any) -> str:
    """Plain values as one JSON document: what is not finite is null, for JSON has no other word for it."""
    from causal_tracing.report.document import jsonable

    return json.dumps(jsonable(values), allow_nan=False)


def show(result: "Trace", page: Path | None) -> None:
    """Words, then maps; and the page, if one is wanted."""
    from rich.console import Console

    from causal_tracing.report.terminal import lens, maps

    # A prompt may hold brackets, which would be obeyed, and numbers, which would be coloured.
    console = Console(highlight=False, markup=False)
    look = {"colour": console.color_system in SHADED, "width": _width(console)}
    told(result.summary(width=look["width"]))
    for shown in maps(result.measurements, most_pairs=MOST_MAPS, **look):
        console.print()
        console.print(shown, soft_wrap=True)
    for table in lens(result.measurements, most_pairs=MOST_MAPS, width=look["width"]):
        console.print(f"\n{table}", soft_wrap=True)
    if page is not None:
        result.to_html(page)
        wrote(page)
        console.print(f"\nThe page: {page}", soft_wrap=True)


def show_comparison(found: "Comparison") -> None:
    """Words, then a map of each component's differences, where effects have any."""
    from rich.console import Console

    from causal_tracing.report.terminal import heat_maps

    console = Console(highlight=False, markup=False)
    told(found.summary())
    if found.reason:
        return
    called = f"difference of {found.shown}"
    look = {"colour": console.color_system in SHADED, "width": _width(console)}
    for shown in heat_maps(found, found.shown, called, **look):
        console.print()
        console.print(shown, soft_wrap=True)


def _width(console: "Console") -> int | None:
    """How wide what is printed may be; None where nobody said so, as in a file."""
    return console.width if console.is_terminal or "COLUMNS" in os.environ else None


def told(text: str) -> None:
    """Prints a text in the terminal's columns, without what a terminal would obey."""
    from rich.console import Console

    from causal_tracing.report.terminal import wrapped

    print(wrapped(tame(text), _width(Console())))


def check_page(file: Path | None) -> None:
    """Whether a file can be written there: asked before the work. Raises MachineError."""
    from causal_tracing.results.storage.places import check_file

    if file is not None:
        check_file(file)


def begin() -> None:
    """A command that has written nothing."""
    _written.clear()


def wrote(path: Path) -> None:
    """Keeps in mind what was written: to be called as soon as it is there."""
    _written.append(path)


def interrupted() -> None:
    """Says that Ctrl-C ended the command, and what it had written."""
    there = f"Written before: {', '.join(map(str, _written))}." if _written else "Nothing was written."
    note(f"Interrupted. {there}")


@contextmanager
def format_notes() -> Iterator[None]:
    """What is made of another format's rows is said on stderr."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", FormatNote)
        yield
    for each in said:
        if issubclass(each.category, FormatNote):
            note(f"note: {each.message}")
        else:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)


def note(text: str) -> None:
    """A line on stderr, at once."""
    print(tame(text), file=sys.stderr, flush=True)


def tame(text: str) -> str:
    """A text without what a terminal would obey, its lines as they are: prompts, and names of files, hold anything."""
    return "\n".join(map(printable, text.split("\n")))


def check(pairs: "list[Pair]", options: dict[str, Any], *, alone: bool) -> None:
    """What can be said of pairs and options without a model. Raises InputError.

    Where pairs are not traced `alone`, one that cannot be traced fails by itself.
    """
    from causal_tracing.patching.columns import check_columns
    from causal_tracing.patching.options.together import clean_alone, noised
    from causal_tracing.prompts.pairs import check_corruption, named

    for name in ("positions", "head_positions", "neuron_positions", "expert_positions"):
        check_columns(pairs, options.get(name, "each"))
    for pair in named(pairs) if alone else ():
        check_corruption(pair, noise=noised(options), alone=clean_alone(options))
