"""The commands. Results go to stdout, progress and notes to stderr; heavy imports happen inside the commands."""

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from causal_tracing import __version__, parse
from causal_tracing.errors import CausalTracingError, EngineNote, InvalidOption
from causal_tracing.sites import COMPONENTS

if TYPE_CHECKING:
    from causal_tracing.model import Model
    from causal_tracing.prompts import Pair
    from causal_tracing.traces import Trace

INTERRUPTED = 130
DEMO: dict[str, Any] = {
    "clean": "The Colosseum is located in the city of",
    "corrupt": "The Eiffel Tower is located in the city of",
    "answer": " Rome",
    "foil": " Paris",
    "subject": "The Colosseum",
    "corrupt_subject": "The Eiffel Tower",
}

app = typer.Typer(
    help="Which parts of a language model carry a behaviour: exact causal tracing on any Hugging Face decoder.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ModelName = Annotated[str, typer.Option("--model", help='"demo", a hub id, a folder, or a GGUF file.')]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub repository.")]
Dtype = Annotated[str | None, typer.Option(help="float32 (default), bfloat16, float16, float64 or auto.")]
Device = Annotated[str | None, typer.Option(help="Such as cpu or cuda:0 (default: the GPU if there is one).")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run model code that comes with the repository.")]


def main() -> None:
    """Runs a command; an error that is known becomes one message and its exit code."""
    try:
        app()
    except CausalTracingError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """A command that ends on Ctrl-C with a word and the usual exit code (typer would print "Aborted" and exit 1)."""

    @wraps(function)
    def interruptible(*arguments: Any, **options: Any) -> None:
        try:
            function(*arguments, **options)
        except KeyboardInterrupt:
            _note("Interrupted. Nothing was written.")
            raise typer.Exit(INTERRUPTED) from None

    return app.command()(interruptible)


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


@_command
def demo(
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
) -> None:
    """The main job on the embedded model: the Colosseum against the Eiffel Tower. Writes a page."""
    from causal_tracing import Pair

    _show(_traced(_load("demo"), [Pair(**DEMO)]), out)


@_command
def trace(
    model: ModelName,
    clean: Annotated[str | None, typer.Option("--clean", "--prompt", help="The clean prompt.")] = None,
    corrupt: Annotated[str | None, typer.Option(help="The corrupt prompt, with equally many tokens.")] = None,
    answer: Annotated[
        str | None, typer.Option(help='What follows the clean prompt, leading space included: " Rome".')
    ] = None,
    foil: Annotated[str | None, typer.Option(help="What follows the corrupt prompt.")] = None,
    subject: Annotated[
        str | None, typer.Option(help="A stretch of the clean prompt; names the roles of tokens.")
    ] = None,
    corrupt_subject: Annotated[str | None, typer.Option(help="The same stretch of the corrupt prompt.")] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="A file of pairs, one JSON object a line, instead of one pair.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="logit_diff (default), log_prob (without a foil), logit, prob, neg_kl, neg_rank.")
    ] = None,
    components: Annotated[
        str, typer.Option(help="Of resid_pre, attn_out, resid_mid, mlp_out, resid_post.")
    ] = "resid_post,attn_out,mlp_out",
    layers: Annotated[str | None, typer.Option(help="Such as 0-5,11 (default: all).")] = None,
    positions: Annotated[
        str, typer.Option(help='"each", "together", or positions and roles such as 3,subject_last,last.')
    ] = "each",
    directions: Annotated[
        str | None, typer.Option(help="Of restoration, disruption (default: both; with noise, restoration).")
    ] = None,
    align: Annotated[str, typer.Option(help="How prompts are matched: strict.")] = "strict",
    noise: Annotated[
        str | None,
        typer.Option(help="Corrupt the subject by noise, without a corrupt prompt: 3sigma, or a number as it is."),
    ] = None,
    draws: Annotated[int | None, typer.Option(help="How many draws of noise are averaged (default: 10).")] = None,
    noise_seed: Annotated[int | None, typer.Option(help="Chooses the draws of noise (default: 0).")] = None,
    window: Annotated[
        str | None, typer.Option(help="Layers patched together: 10, or by component, attn_out=10,mlp_out=10.")
    ] = None,
    window_sums: Annotated[
        bool, typer.Option(help="Beside a window, the sum of what each of its layers does alone.")
    ] = True,
    sever: Annotated[
        str | None, typer.Option(help="Freeze what comes behind a restored state: of mlp_out, attn_out.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help='"rome": noise, windows and metric as in ROME\'s code.')] = None,
    heads: Annotated[str | None, typer.Option(help="Single heads too, by any of q, k, v, pattern, z.")] = None,
    head_positions: Annotated[str, typer.Option(help="Where heads are patched; as --positions.")] = "each",
    neurons: Annotated[
        str | None, typer.Option(help='Single neurons too: "all", or layers and neurons such as 5,20:14+1035.')
    ] = None,
    neuron_positions: Annotated[str, typer.Option(help="Where neurons are patched; as --positions.")] = "last",
    engine: Annotated[str, typer.Option(help="auto, packed or replay.")] = "auto",
    dtype: Dtype = None,
    device: Device = None,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    seed: Annotated[int, typer.Option(help="Chooses the cells that are checked again.")] = 0,
    budget: Annotated[str | None, typer.Option(help="Memory that a batch may take, such as 512MB.")] = None,
    spot_checks: Annotated[int, typer.Option(help="How many random cells are run again alone; 0 turns it off.")] = 8,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would take (worlds, memory, time), and stop.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="A folder to write: the trace, and its page.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a saved trace at --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
    all_metrics: Annotated[bool, typer.Option("--all-metrics", help="With --json: every metric's effects.")] = False,
) -> None:
    """Traces one pair, or a file of pairs: what comes back, and what is lost, at every site."""
    from causal_tracing.results import check_target

    pair_fields = {
        "clean": clean, "corrupt": corrupt, "answer": answer, "foil": foil,
        "subject": subject, "corrupt_subject": corrupt_subject,
    }  # fmt: skip
    asked = _pairs(pairs, pair_fields)
    options = {
        "components": parse.names(components),
        "layers": parse.layers(layers),
        "positions": parse.positions(positions),
        "metric": metric,
        "directions": None if directions is None else parse.names(directions),
        "noise": parse.noise(noise, draws=draws, seed=noise_seed),
        "window": parse.window(window),
        "window_sums": window_sums,
        "sever": parse.names(sever or ""),
        "preset": preset,
        "align": align,
        "heads": parse.names(heads or ""),
        "head_positions": parse.positions(head_positions),
        "neurons": parse.neurons(neurons),
        "neuron_positions": parse.positions(neuron_positions),
        "engine": engine,
        "seed": seed,
        "budget": parse.size(budget),
        "spot_checks": spot_checks,
    }
    if out is not None:
        check_target(out, overwrite=overwrite)  # before the work, not after it
    loaded = _load(model, revision=revision, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    if dry_run:
        _estimate(loaded, asked, options, as_json=as_json)
        return
    result = _traced(loaded, asked, **options)
    if out is not None:
        result.save(out, overwrite=overwrite)
        result.to_html(out / "report.html")
        _note(f"wrote {out} (the trace) and {out / 'report.html'} (its page)")
    if as_json:
        from causal_tracing.documents import document

        print(json.dumps(document(result.measurements, all_metrics=all_metrics), allow_nan=False))
    else:
        _show(result, None)


@_command
def attribute(
    model: ModelName,
    clean: Annotated[str, typer.Option(help="The clean prompt.")],
    corrupt: Annotated[str, typer.Option(help="The corrupt prompt, with equally many tokens.")],
    answer: Annotated[str, typer.Option(help="What follows the clean prompt, leading space included.")],
    foil: Annotated[str | None, typer.Option(help="What follows the corrupt prompt.")] = None,
    components: Annotated[
        str, typer.Option(help="Of those of trace, and q, k, v, pattern, z, neurons.")
    ] = "resid_post,attn_out,mlp_out",
    method: Annotated[str, typer.Option(help="atp (attribution patching) or ig (integrated gradients).")] = "atp",
    steps: Annotated[int, typer.Option(help="Of the way from base to donor, for ig.")] = 10,
    direction: Annotated[str, typer.Option(help="restoration or disruption.")] = "restoration",
    metric: Annotated[str | None, typer.Option(help="logit_diff (default), log_prob, logit or prob.")] = None,
    verify: Annotated[int, typer.Option(help="How many of the strongest of each component are patched.")] = 30,
    sample: Annotated[int, typer.Option(help="How many of the rest, at random.")] = 100,
    engine: Annotated[str, typer.Option(help="Of the exact patches: auto, packed or replay.")] = "auto",
    seed: Annotated[int, typer.Option(help="Chooses the random ones.")] = 0,
    dtype: Dtype = None,
    device: Device = None,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    out: Annotated[Path | None, typer.Option(help="A JSON file to write.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """Estimates by gradient of every site, checked by patching the strongest and a random sample of the rest."""
    from causal_tracing import Pair
    from causal_tracing import attribute as run

    loaded = _load(model, revision=revision, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EngineNote)  # said below, as a note
        found = run(
            loaded,
            Pair(clean=clean, corrupt=corrupt, answer=answer, foil=foil),
            components=parse.names(components),
            method=method,
            steps=steps,
            direction=direction,
            metric=metric,
            verify=verify,
            sample=sample,
            engine=engine,
            seed=seed,
        )
    if found.provenance["engine_note"]:
        _note(f"note: {found.provenance['engine_note']}")
    if out is not None:
        _note(f"wrote {found.save(out)}")
    print(json.dumps(found.to_dict(), allow_nan=False) if as_json else found.summary())


@_command
def check(
    model: ModelName,
    revision: Revision = None,
    dtype: Dtype = None,
    device: Device = None,
    trust_remote_code: Trust = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """What works on a model, and how exactly: anatomy, engine, and the laws that patching must obey."""
    from causal_tracing.engine.check import check as examine_again

    loaded = _load(model, revision=revision, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    checkup = examine_again(loaded)
    if as_json:
        print(json.dumps(checkup.to_dict(), allow_nan=False))
    else:
        print(checkup)


@_command
def report(
    folder: Annotated[Path, typer.Argument(help="A saved trace.")],
    out: Annotated[Path | None, typer.Option(help="The page to write (default: report.html in the folder).")] = None,
) -> None:
    """The page again, from a saved trace."""
    from causal_tracing import open_trace

    page = out or folder / "report.html"
    open_trace(folder).to_html(page)
    print(page)


def _load(name: str, **options: Any) -> "Model":
    from causal_tracing import load

    model = load(name, **options)
    for component, reason in model.anatomy.refused:
        if component in COMPONENTS:  # heads and neurons are an error where they are asked for
            _note(f"{component} is not offered on this model: {reason}")
    return model


def _traced(model: "Model", pairs: "list[Pair]", **options: Any) -> "Trace":
    """The trace, with what was understood shown before it and progress while it runs."""
    from causal_tracing import preview
    from causal_tracing import trace as run

    noise = options.get("noise") or options.get("preset")
    for shown in preview(model, pairs, align=options.get("align", "strict"), noise=noise):
        _note(str(shown))
    with _progress() as report_progress, warnings.catch_warnings():
        warnings.simplefilter("ignore", EngineNote)  # said below, as a note
        result = run(model, pairs, **options, progress=report_progress)
    if result.provenance["engine_note"]:
        _note(f"note: {result.provenance['engine_note']}")
    checked = result.provenance["spot_checks"]
    if checked["cells"]:
        _note(f"{checked['cells']} random cells run again alone differ by at most {checked['largest_difference']:.1e}")
    return result


def _estimate(model: "Model", pairs: "list[Pair]", options: dict[str, Any], *, as_json: bool) -> None:
    from causal_tracing import estimate

    found = estimate(model, pairs, **options)
    print(json.dumps(found.to_dict(), allow_nan=False) if as_json else found)


def _show(result: "Trace", page: Path | None) -> None:
    """Words, then maps; and the page, if one is wanted."""
    from rich.console import Console

    from causal_tracing.terminal import heat_map

    console = Console(highlight=False, markup=False)
    console.print(result.summary(), soft_wrap=True)
    measured = result.measurements
    for pair in [str(pair) for pair in measured.data.pair.values]:
        for component in [str(name) for name in measured.data.component.values]:
            shown = heat_map(
                measured, component, measured.directions[0], pair=pair, colour=console.color_system is not None
            )
            console.print()
            console.print(shown, soft_wrap=True)
    if page is not None:
        result.to_html(page)
        console.print(f"\nThe page: {page}", soft_wrap=True)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal; elsewhere a line for every tenth of the work."""
    if not sys.stderr.isatty():
        reached = -1

        def line(done: int, total: int) -> None:
            nonlocal reached
            if (tenth := 10 * done // total) > reached:
                reached = tenth
                _note(f"tracing, {10 * tenth} %")

        yield line
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("tracing", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _pairs(path: Path | None, given: dict[str, str | None]) -> "list[Pair]":
    from causal_tracing import Pair, read_pairs

    named = {name: value for name, value in given.items() if value is not None}
    if path is not None:
        if named:
            raise InvalidOption(f"--pairs holds whole pairs; leave out {', '.join('--' + name for name in named)}.")
        return read_pairs(path)
    missing = [f"--{name}" for name in ("clean", "answer") if name not in named]
    if missing:
        raise InvalidOption(
            f"{' and '.join(missing)} missing. Give --clean, --corrupt, --answer and --foil, or --pairs FILE."
        )
    return [Pair(**named)]  # pyright: ignore[reportArgumentType]
