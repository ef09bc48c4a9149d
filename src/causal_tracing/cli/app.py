"""The commands. Results go to stdout, progress and notes to stderr; heavy imports happen inside the commands."""

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from causal_tracing import __version__
from causal_tracing.cli import commands, console, streams
from causal_tracing.cli import saved as cli_results
from causal_tracing.errors import CausalTracingError, InvalidOption, Note
from causal_tracing.patching.declare import MANY, OUTPUT, PAIR, specs
from causal_tracing.patching.options import EstimateOptions, Options, RunOptions

# What a run of many pairs has beside the options of a trace, with the defaults.
OF_A_RUN = {name: spec.default for name, spec in specs(RunOptions).items() if name not in specs(Options)}
DEMO: dict[str, Any] = {
    "clean": "The Colosseum is located in the city of",
    "corrupt": "The Eiffel Tower is located in the city of",
    "answer": " Rome",
    "foil": " Paris",
    "subject": "The Colosseum",
    "corrupt_subject": "The Eiffel Tower",
}

CORRUPT = typer.Option(help="The corrupt prompt, with equally many tokens.", rich_help_panel=PAIR)
ANSWER = typer.Option(
    help="What follows the clean prompt, leading space included: ' Rome'; a set as a JSON list: '[\" he\", \" his\"]'.",
    rich_help_panel=PAIR,
)
Corrupt = Annotated[str | None, CORRUPT]
Foil = Annotated[str | None, typer.Option(help="What follows the corrupt prompt; as --answer.", rich_help_panel=PAIR)]
Clean = Annotated[str | None, typer.Option("--clean", "--prompt", help="The clean prompt.", rich_help_panel=PAIR)]
SUBJECT = "A stretch of the clean prompt; names the roles of tokens."
Subject = Annotated[str | None, typer.Option(help=SUBJECT, rich_help_panel=PAIR)]
CorruptSubject = Annotated[
    str | None, typer.Option(help="The same stretch of the corrupt prompt.", rich_help_panel=PAIR)
]
OCCURRENCE = "Which of the subject's places is meant, where there are several: 0 is the first, -1 the last."
Occurrence = Annotated[int | None, typer.Option(help=OCCURRENCE, rich_help_panel=PAIR)]
Chat = Annotated[
    bool, typer.Option("--chat", help="Put the prompts through the tokenizer's chat template.", rich_help_panel=PAIR)
]
MANY_PAIRS = "Many pairs: a file (JSON Lines, CSV, Parquet), or a built-in set such as facts."
Pairs = Annotated[str | None, typer.Option(help=MANY_PAIRS, rich_help_panel=MANY)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a saved trace at --out.", rich_help_panel=OUTPUT)]

app = typer.Typer(
    help="Which parts of a language model carry a behaviour: exact causal tracing on any Hugging Face decoder.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Runs a command; an error that is known becomes one message and its exit code."""
    streams.ready()
    try:
        app()
    except CausalTracingError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


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
    console.show(console.traced(console.load("demo"), [Pair(**DEMO)]), out)


@commands.command(app, RunOptions)
def trace(
    model: commands.ModelName,
    options: dict[str, Any],
    clean: Clean = None,
    corrupt: Corrupt = None,
    answer: Annotated[str | None, ANSWER] = None,
    foil: Foil = None,
    subject: Subject = None,
    corrupt_subject: CorruptSubject = None,
    occurrence: Occurrence = None,
    chat: Chat = False,
    pairs: Pairs = None,
    dtype: commands.Dtype = None,
    device: commands.Device = None,
    device_map: commands.DeviceMap = None,
    remote: commands.Remote = False,
    revision: commands.Revision = None,
    trust_remote_code: commands.Trust = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Say what it would take (worlds, memory, time), and stop.", rich_help_panel=OUTPUT
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A folder to write: the trace, its page, and the file that makes it again. A file of pairs goes on "
            "there.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: commands.Json = False,
    all_metrics: Annotated[
        bool, typer.Option("--all-metrics", help="With --json: every metric's effects.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Traces one pair, or a file of pairs: what comes back, and what is lost, at every site."""
    fields = {
        "clean": clean, "corrupt": corrupt, "answer": answer, "foil": foil,
        "subject": subject, "corrupt_subject": corrupt_subject, "occurrence": occurrence,
    }  # fmt: skip
    asked = console.pairs(pairs, fields, chat=chat)
    many = pairs is not None
    of_a_run = {name: options.pop(name) for name in [*options] if name in OF_A_RUN}
    console.check(asked, options, alone=out is None or not many)
    _check_folder(out, many=many, of_a_run=of_a_run, overwrite=overwrite)
    loaded = console.load(
        model, revision=revision, dtype=dtype, device=device, device_map=device_map, remote=remote or None,
        trust_remote_code=trust_remote_code,
    )  # fmt: skip
    if dry_run:
        console.estimate(loaded, asked, options, keep=of_a_run.get("keep", "all"), as_json=as_json)
        return
    if out is not None and many:
        result = console.ran(loaded, asked, out, **of_a_run, **options)
    else:
        result = console.traced(loaded, asked, **options)
    if out is not None:
        console.kept(result, loaded, asked, out, options, saved=many, overwrite=overwrite)
    console.say(result, as_json=as_json, all_metrics=all_metrics)
    if result.provenance.get("failed") or result.provenance.get("pairs_missing"):
        raise typer.Exit(commands.PARTLY)


def _check_folder(out: Path | None, *, many: bool, of_a_run: Mapping[str, Any], overwrite: bool) -> None:
    """Whether the result can be put there: asked before the work. Raises InvalidOption, InvalidResults."""
    from causal_tracing.results.storage.places import check_run_folder, check_target

    given = [f"--{name.replace('_', '-')}" for name, value in of_a_run.items() if value != OF_A_RUN[name]]
    if given and not (many and out is not None):
        raise InvalidOption(f"{', '.join(given)}: for many pairs in a folder. Give --pairs and --out too.")
    if out is not None and many and overwrite:
        raise InvalidOption("A run folder is gone on with, never overwritten. Delete it, or give --out another name.")
    if out is not None and many:
        check_run_folder(out)
    elif out is not None:
        check_target(out, overwrite=overwrite)


@commands.command(app, EstimateOptions)
def attribute(
    model: commands.ModelName,
    options: dict[str, Any],
    clean: Clean = None,
    corrupt: Corrupt = None,
    answer: Annotated[str | None, ANSWER] = None,
    foil: Foil = None,
    subject: Subject = None,
    corrupt_subject: CorruptSubject = None,
    occurrence: Occurrence = None,
    chat: Chat = False,
    pairs: Pairs = None,
    dtype: commands.Dtype = None,
    device: commands.Device = None,
    device_map: commands.DeviceMap = None,
    revision: commands.Revision = None,
    trust_remote_code: commands.Trust = False,
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
    fields = {
        "clean": clean, "corrupt": corrupt, "answer": answer, "foil": foil,
        "subject": subject, "corrupt_subject": corrupt_subject, "occurrence": occurrence,
    }  # fmt: skip
    asked = console.pairs(pairs, fields, chat=chat)
    console.check(asked, options, alone=True)
    _check_folder(out, many=False, of_a_run={}, overwrite=overwrite)
    console.check_page(page)
    loaded = console.load(
        model, revision=revision, dtype=dtype, device=device, device_map=device_map, trust_remote_code=trust_remote_code
    )
    from causal_tracing import attribute as run  # after the model is found: it takes seconds

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Note)  # said below, as a note
        found = run(loaded, asked, **options)
    if found.provenance["engine_note"]:
        console.note(f"note: {found.provenance['engine_note']}")
    if out is not None:
        console.wrote(found.save(out, overwrite=overwrite))
        console.note(f"wrote {out}")
    if page is not None:
        found.to_html(page)
        console.wrote(page)
        console.note(f"wrote {page}")
    print(console.json_of(found.to_dict()) if as_json else found.summary())


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
        print(checkup)
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


app.add_typer(cli_results.app)
