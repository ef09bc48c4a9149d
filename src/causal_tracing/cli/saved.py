"""The commands that need no model: the built-in sets, and what saved traces and run folders hold."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from causal_tracing.cli import commands, console, streams
from causal_tracing.errors import InvalidOption, some_of

app = typer.Typer()
# Written out: the list of them (`results/site_kinds.py`) loads more than a help may take.
MAPS = (
    "blocks, heads, neurons, experts, sets, growing, interactions, paths, knockout, knockout_heads, edges, "
    "edges_by_query, circuits, circuit_tests"
)
FIRST = "the first that was measured, in this order"


@commands.command(app)
def datasets(
    name: Annotated[str | None, typer.Argument(help="A set, or a part of one such as facts:capital.")] = None,
    formats: Annotated[
        bool, typer.Option("--formats", help="The formats of others that --pairs reads, with a row of each.")
    ] = False,
) -> None:
    """The built-in sets of pairs; of one that is named, its pairs as JSON Lines."""
    from causal_tracing.prompts.datasets import NAMES, about, is_name, kinds, rows
    from causal_tracing.prompts.formats.table import as_text

    if formats:
        if name is not None:
            raise InvalidOption(f"--formats lists the formats of files; leave out {name!r}, or --formats.")
        print(as_text())
        return
    if name is not None:
        if not is_name(name):
            parts = (f"{each}:{kind}" for each in NAMES for kind in kinds(each))
            raise InvalidOption(f"There is no built-in set {name!r}. Valid: {', '.join([*NAMES, *parts])}.")
        for row in rows(name):
            print(json.dumps(row, ensure_ascii=not streams.writes_all()))  # what --pairs reads again
        return
    for each in NAMES:
        said = about(each)
        parts = ", ".join(f"{each}:{kind}" for kind in kinds(each))
        print(f"{each}: {len(rows(each))} pairs\n  {said['what']}\n  {said['source']}\n  Parts: {parts}\n")


@commands.command(app)
def merge(
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    shards: Annotated[list[Path], typer.Argument(help="The folders of the shards.")],
) -> None:
    """Puts the shards of one run together."""
    from causal_tracing import open_trace
    from causal_tracing.results.storage.merge import merge as run

    try:
        missing = run(out, shards)
    except KeyboardInterrupt:
        console.note(f"Interrupted. {out} may hold a part of the shards: delete it, and merge them again.")
        raise typer.Exit(console.INTERRUPTED) from None
    console.wrote(out)
    open_trace(out).to_html(out / "report.html")
    console.note(f"wrote {out}")
    if missing:
        console.note(f"{len(missing)} chunks are in none of the shards: {some_of(missing)}")
        raise typer.Exit(commands.PARTLY)


@commands.command(app)
def report(
    folder: Annotated[Path, typer.Argument(help="A saved trace or a run folder.")],
    out: Annotated[Path | None, typer.Option(help="The page to write (default: report.html in the folder).")] = None,
) -> None:
    """The page again, from a saved trace or what a run folder holds so far."""
    page = out or folder / "report.html"
    if os.path.isdir(folder):  # else the folder is what is wrong
        console.check_page(page)
    from causal_tracing import open_trace

    open_trace(folder).to_html(page)
    console.wrote(page)
    print(page)


@commands.command(app)
def export(
    folder: Annotated[Path, typer.Argument(help="A saved trace or a run folder.")],
    file: Annotated[Path, typer.Argument(help="The file to write: .csv or .parquet (a long table), .nc (netCDF).")],
    of: Annotated[
        str | None, typer.Option(help=f"Which of its maps: {MAPS}; or lens, the readout (default: {FIRST}).")
    ] = None,
    hub_card: Annotated[
        bool,
        typer.Option(
            "--hub-card",
            help="Write a new folder for a data hub instead: Parquet of all that was measured, pairs, record, page and "
            "a card. Nothing is uploaded.",
        ),
    ] = False,
) -> None:
    """A trace as a file for other programs: a row for each pair, cell and effect, or labelled arrays."""
    if hub_card and of is not None:
        raise InvalidOption("--hub-card writes all that was measured; leave out --of.")
    if not hub_card:
        console.check_page(file)
    from causal_tracing import open_trace

    trace = open_trace(folder)
    written = trace.to_hub(file) if hub_card else trace.export(file, of)
    console.wrote(written)
    print(written)


@commands.command(app)
def compare(
    first: Annotated[Path, typer.Argument(help="A saved trace or a run folder.")],
    second: Annotated[Path, typer.Argument(help="Another, of the same pairs.")],
    metric: Annotated[str | None, typer.Option(help="Of both, unless --second-metric is given.")] = None,
    second_metric: Annotated[str | None, typer.Option(help="The metric of the second.")] = None,
    of: Annotated[str | None, typer.Option(help=f"Which map of both: {MAPS} (default: {FIRST}).")] = None,
    seed: Annotated[int, typer.Option(help="Chooses the resamples and flips.")] = 0,
    out: Annotated[Path | None, typer.Option(help="A JSON file to write.")] = None,
    as_json: commands.Json = False,
) -> None:
    """The first trace minus the second, pair by pair: where they differ, with intervals and tests."""
    console.check_page(out)
    from causal_tracing import compare as run
    from causal_tracing import open_trace
    from causal_tracing.results.storage.atomic import write_text

    found = run(open_trace(first), open_trace(second), metric=metric, second_metric=second_metric, of=of, seed=seed)
    text = console.json_of(found.to_dict())
    if out is not None:
        write_text(out, text)
        console.wrote(out)
        console.note(f"wrote {out}")
    if as_json:
        print(text)
    else:
        console.show_comparison(found)
