"""The commands. Results go to stdout, progress and notes to stderr; heavy imports happen inside the commands."""

import os
import shutil
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from causal_tracing import __version__
from causal_tracing.cli import circuits as cli_circuits
from causal_tracing.cli import commands, console, streams, tracing
from causal_tracing.cli import explore as cli_explore
from causal_tracing.cli import paths as cli_paths
from causal_tracing.cli import saved as cli_results
from causal_tracing.cli.groups import LoadingFlags, OutputFlags, Overwrite, PairFlags
from causal_tracing.errors import CausalTracingError, MachineError, Note
from causal_tracing.patching.options.declare import CIRCUIT, OUTPUT
from causal_tracing.prompts.example import EXAMPLE

SCORES = (
    "A file to write: each node's score in the format of EAP-IG and MIB, with the nodes of --tested (default: all) in "
    "its graph."
)
Scores = Annotated[Path | None, typer.Option(help=SCORES, rich_help_panel=CIRCUIT)]

PANELS = 80  # columns that help in panels takes
Declared = tuple[type, Callable[[dict[str, Any]], dict[str, Any]]]  # options, and those of a trace that they mean

app = typer.Typer(
    help="Which parts of a language model carry a behaviour: exact causal tracing on any Hugging Face decoder.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Runs a command; an error that is known becomes one message and its exit code."""
    streams.ready()
    if not os.environ.get("COLUMNS", "").strip("0"):  # so says a terminal that does not know
        os.environ.pop("COLUMNS", None)
    if shutil.get_terminal_size().columns < PANELS:  # where panels would cut options' names off
        app.rich_markup_mode = None
    completes = any(name.endswith("_COMPLETE") for name in os.environ)  # a shell asks, for any command
    try:
        _require_folder()
        with streams.written(), nullcontext() if completes else commands.only_named(app, sys.argv[1:]):
            app()
    except CausalTracingError as error:
        console.note(f"{type(error).__name__}: {error}")
        sys.exit(error.exit_code)


def _require_folder() -> None:
    """Raises MachineError where the command was started in a folder that has been deleted: nothing is found from it."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise MachineError("The folder that this is run in has been deleted. Change into another one.") from None


def _version(asked: bool | None) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool | None, typer.Option("--version", callback=_version, is_eager=True, help="The version.")
    ] = None,
) -> None: ...


@commands.command(app)
def demo(
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
) -> None:
    """The main job on the embedded model: the Colosseum against the Eiffel Tower. Writes a page."""
    from causal_tracing import Pair

    console.check_page(out)
    console.show(console.traced(console.load("demo"), [Pair(**EXAMPLE)]), out)


def _that_traces(
    name: str,
    declares: Callable[[], Declared],
    help: str,
    *,
    finish: tracing.Finish | None = None,
    ranks: bool = False,
) -> None:
    """Adds a command that traces: with these options, which mean those of a trace, or do when they are finished.

    Of circuits they are after a ranking.
    """

    def carried_out(
        model: commands.ModelName,
        options: dict[str, Any],
        asked: PairFlags,
        loading: LoadingFlags,
        output: OutputFlags,
        scores: Scores = None,
    ) -> None:
        console.check_page(scores)
        ranked = partial(cli_circuits.finished, scores=scores, out=output.out, dry_run=output.dry_run)
        wanted = tracing.Wanted(
            pairs=asked.read(),
            many=asked.pairs is not None,
            model=model,
            loading=loading.options(),
            options=declares()[1](options),
            finish=ranked if ranks else finish,
        )
        tracing.carry_out(wanted, output)

    # typer calls a command as its function is called, and helps with what stands in its docstring.
    carried_out.__name__, carried_out.__doc__ = name, help
    commands.command(app, lambda: declares()[0], without=() if ranks else ("scores",))(carried_out)


def _of_a_trace() -> Declared:
    from causal_tracing.patching.options.trace import RunOptions

    return RunOptions, dict


def _of_knockout() -> Declared:
    from causal_tracing.patching.options.knockout import KnockoutRunOptions, as_of_a_trace

    return KnockoutRunOptions, as_of_a_trace


def _of_paths() -> Declared:
    from causal_tracing.patching.options.follow import FollowRunOptions

    return FollowRunOptions, dict


def _of_circuits() -> Declared:
    from causal_tracing.patching.options.circuit import CircuitRunOptions

    return CircuitRunOptions, cli_circuits.meant


def _of_estimates() -> type:
    from causal_tracing.patching.options.estimate import EstimateOptions

    return EstimateOptions


_that_traces(
    "trace", _of_a_trace, "Traces one pair, or a file of pairs: what comes back, and what is lost, at every site."
)
_that_traces(
    "knockout",
    _of_knockout,
    "Attention knockout: what is lost when a query cannot see keys, by layer (or window of layers) and keys.",
)
_that_traces(
    "paths",
    _of_paths,
    "Paths through the stream: what goes from each sender (head, MLP, embedding) to each receiver (q, k, v, MLP, "
    "logits).",
    finish=cli_paths.finished,
)

_that_traces(
    "circuit",
    _of_circuits,
    "Circuits: how much of the behaviour sets of heads and MLPs, or of edges, keep when all else is ablated, by size.",
    ranks=True,
)


@commands.command(app, _of_estimates, without=("remote",))
def attribute(
    model: commands.ModelName,
    options: dict[str, Any],
    asked: PairFlags,
    loading: LoadingFlags,
    out: Annotated[
        Path | None, typer.Option(help="A folder to write: what open_trace opens.", rich_help_panel=OUTPUT)
    ] = None,
    overwrite: Overwrite = False,
    page: Annotated[
        Path | None, typer.Option(help="A page to write: agreement, scatter, sites.", rich_help_panel=OUTPUT)
    ] = None,
    as_json: commands.Json = False,
) -> None:
    """Estimates by gradient of every site, checked by patching the strongest and a random sample of the rest."""
    named = asked.read()
    # All that can be wrong without a model is said first: loading one takes from seconds to minutes.
    named.check(options, alone=True)
    tracing.check_folder(out, many=False, of_a_run={}, overwrite=overwrite)
    console.check_page(page)
    loaded = console.load(model, **loading.options())
    pairs = named.on(loaded, options, alone=True)
    from causal_tracing import attribute as run  # after the model is found: it takes seconds

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Note)  # said below, as a note
        found = run(loaded, pairs, **options)
    if found.provenance["engine_note"]:
        console.note(f"note: {found.provenance['engine_note']}")
    if out is not None:
        console.wrote(found.save(out, overwrite=overwrite))
        console.note(f"wrote {out}")
    if page is not None:
        found.to_html(page)
        console.wrote(page)
        console.note(f"wrote {page}")
    if as_json:
        print(console.json_of(found.to_dict()))
    else:
        console.told(found.summary())


@commands.command(app)
def check(
    model: commands.ModelName,
    revision: commands.Revision = None,
    dtype: commands.Dtype = None,
    device: commands.Device = None,
    device_map: commands.DeviceMap = None,
    trust_remote_code: commands.Trust = False,
    as_json: commands.Json = False,
) -> None:
    """What works on a model, and how exactly: anatomy, engine, and the laws that patching must obey.

    Ends with exit code 5 where the model is refused something (it lacks it, or a check failed), and 0 else.
    """
    loaded = console.load(
        model, revision=revision, dtype=dtype, device=device, device_map=device_map, trust_remote_code=trust_remote_code
    )
    from causal_tracing.engine.checks.check import check as examine_again  # after the model is found: it takes seconds

    checkup = examine_again(loaded)
    if as_json:
        print(console.json_of(checkup.to_dict()))
    else:
        console.told(str(checkup))
    if checkup.model.anatomy.missed:
        raise typer.Exit(commands.PARTLY)


@commands.command(app)
def cache(
    clear: Annotated[
        bool, typer.Option("--clear", help="Take the converted models out. The demo model stays.")
    ] = False,
) -> None:
    """What is kept between runs: GGUF models in float32, so that they are converted once."""
    from causal_tracing.models import gguf
    from causal_tracing.models.cache import MEGABYTE, cache_home

    if clear:
        print(f"{gguf.clear() // MEGABYTE} MB taken out of {cache_home()}")
        return
    for folder, size in gguf.kept():
        print(f"{size // MEGABYTE:>8} MB  {folder.name}")
    print(f"at most {gguf.limit() // MEGABYTE} MB in {cache_home()} ({gguf.LIMIT_VARIABLE}, in bytes)")


app.add_typer(cli_explore.app)
app.add_typer(cli_results.app)
