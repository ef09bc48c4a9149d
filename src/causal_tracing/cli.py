"""The commands. Results go to stdout, progress and notes to stderr; heavy imports happen inside the commands."""

import json
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from causal_tracing import __version__, console, parse
from causal_tracing.errors import CausalTracingError, EngineNote, InvalidOption

PARTLY = 5
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
            console.note("Interrupted. Nothing was written.")
            raise typer.Exit(console.INTERRUPTED) from None

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

    console.show(console.traced(console.load("demo"), [Pair(**DEMO)]), out)


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
        str | None,
        typer.Option(help="Many pairs: a file (JSON Lines, CSV, Parquet), or a built-in set such as facts."),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put the prompts through the tokenizer's chat template.")
    ] = False,
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
    align: Annotated[
        str,
        typer.Option(help="How tokens are paired: strict (one by one), suffix (same end), spans (equal roles)."),
    ] = "strict",
    noise: Annotated[
        str | None,
        typer.Option(help="Corrupt the subject by noise, without a corrupt prompt: 3sigma, or a number as it is."),
    ] = None,
    draws: Annotated[
        int | None, typer.Option(help="How many draws, of noise or of the reference, are averaged (default: 10).")
    ] = None,
    draw_seed: Annotated[int | None, typer.Option(help="Chooses the draws (default: 0).")] = None,
    write: Annotated[
        str,
        typer.Option(
            help="What a patched site gets: donor (the other run's activation), zero, mean, resample, given, subspace."
        ),
    ] = "donor",
    alpha: Annotated[float, typer.Option(help="How much of it: (1 - alpha) of what is there stays.")] = 1.0,
    reference: Annotated[
        Path | None, typer.Option(help="For mean and resample: a text file, one prompt a line.")
    ] = None,
    tensors: Annotated[
        Path | None,
        typer.Option(help="For given and subspace: a safetensors file, tensors named as resid_post.12."),
    ] = None,
    control: Annotated[
        str | None, typer.Option(help="The same where there is nothing to find: random-weights or shuffled-pairs.")
    ] = None,
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
    keep: Annotated[
        str,
        typer.Option(help="Of a file's pairs: all, or what the clean run gets right: first_choice, preferred."),
    ] = "all",
    shard: Annotated[str | None, typer.Option(help="With --pairs and --out: the i-th of n parts, such as 0/4.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="A folder to write: the trace and its page. A file of pairs goes on there.")
    ] = None,
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
    asked = console.pairs(pairs, pair_fields, chat=chat)
    options = {
        "components": parse.names(components),
        "layers": parse.layers(layers),
        "positions": parse.positions(positions),
        "metric": metric,
        "directions": None if directions is None else parse.names(directions),
        "noise": parse.noise(noise, draws=draws, seed=draw_seed, write=write),
        "write": parse.write(write, alpha=alpha, reference=reference, tensors=tensors, draws=draws, seed=draw_seed),
        "control": control,
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
    run_folder = out if pairs is not None else None
    if run_folder is None and (shard is not None or keep != "all"):
        raise InvalidOption("--shard and --keep are for many pairs in a folder: give --pairs and --out too.")
    if run_folder is not None and overwrite:
        raise InvalidOption("A run folder is gone on with, never overwritten. Delete it, or give --out another name.")
    if out is not None and run_folder is None:
        check_target(out, overwrite=overwrite)  # before the work, not after it
    loaded = console.load(model, revision=revision, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    if dry_run:
        console.estimate(loaded, asked, options, keep=keep, as_json=as_json)
        return
    if run_folder is not None:
        result = console.ran(loaded, asked, run_folder, keep=keep, shard=parse.shard(shard), **options)
    else:
        result = console.traced(loaded, asked, **options)
    if out is not None and run_folder is None:
        result.save(out, overwrite=overwrite)
    if out is not None:
        result.to_html(out / "report.html")
        console.note(f"wrote {out} (the trace) and {out / 'report.html'} (its page)")
    if as_json:
        from causal_tracing.documents import document

        print(json.dumps(document(result.measurements, all_metrics=all_metrics), allow_nan=False))
    else:
        console.show(result, None)
    if result.provenance.get("failed") or result.provenance.get("pairs_missing"):
        raise typer.Exit(PARTLY)


@_command
def datasets(
    name: Annotated[str | None, typer.Argument(help="A set, or a part of one such as facts:capital.")] = None,
) -> None:
    """The built-in sets of pairs; of one that is named, its pairs as JSON Lines."""
    from causal_tracing.datasets import NAMES, about, kinds, rows

    if name is not None:
        from causal_tracing import read_pairs

        read_pairs(name)  # says what is wrong with the name
        for row in rows(name):
            print(json.dumps(row, ensure_ascii=False))
        return
    for each in NAMES:
        said = about(each)
        parts = ", ".join(f"{each}:{kind}" for kind in kinds(each))
        print(f"{each}: {len(rows(each))} pairs\n  {said['what']}\n  {said['source']}\n  Parts: {parts}\n")


@_command
def merge(
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    shards: Annotated[list[Path], typer.Argument(help="The folders of the shards.")],
) -> None:
    """Puts the shards of one run together."""
    from causal_tracing import open_trace
    from causal_tracing.run_folders import listed
    from causal_tracing.run_folders import merge as run

    missing = run(out, shards)
    open_trace(out).to_html(out / "report.html")
    console.note(f"wrote {out}")
    if missing:
        console.note(f"{len(missing)} chunks are in none of the shards: {listed(map(str, missing))}")
        raise typer.Exit(PARTLY)


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
    page: Annotated[Path | None, typer.Option(help="A page to write: agreement, scatter, sites.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """Estimates by gradient of every site, checked by patching the strongest and a random sample of the rest."""
    from causal_tracing import Pair
    from causal_tracing import attribute as run

    loaded = console.load(model, revision=revision, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
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
        console.note(f"note: {found.provenance['engine_note']}")
    if out is not None:
        console.note(f"wrote {found.save(out)}")
    if page is not None:
        found.to_html(page)
        console.note(f"wrote {page}")
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

    loaded = console.load(model, revision=revision, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    checkup = examine_again(loaded)
    if as_json:
        print(json.dumps(checkup.to_dict(), allow_nan=False))
    else:
        print(checkup)


@_command
def report(
    folder: Annotated[Path, typer.Argument(help="A saved trace or a run folder.")],
    out: Annotated[Path | None, typer.Option(help="The page to write (default: report.html in the folder).")] = None,
) -> None:
    """The page again, from a saved trace or what a run folder holds so far."""
    from causal_tracing import open_trace

    page = out or folder / "report.html"
    open_trace(folder).to_html(page)
    print(page)


@_command
def export(
    folder: Annotated[Path, typer.Argument(help="A saved trace or a run folder.")],
    file: Annotated[Path, typer.Argument(help="The file to write: .csv or .parquet (a long table), .nc (netCDF).")],
    of: Annotated[str, typer.Option(help="blocks, heads or neurons.")] = "blocks",
) -> None:
    """A trace as a file for other programs: a row for each pair, cell and effect, or labelled arrays."""
    from causal_tracing import open_trace

    print(open_trace(folder).export(file, of))


@_command
def compare(
    first: Annotated[Path, typer.Argument(help="A saved trace or a run folder.")],
    second: Annotated[Path, typer.Argument(help="Another, of the same pairs.")],
    metric: Annotated[str | None, typer.Option(help="Of both, unless --second-metric is given.")] = None,
    second_metric: Annotated[str | None, typer.Option(help="The metric of the second.")] = None,
    seed: Annotated[int, typer.Option(help="Chooses the resamples and flips.")] = 0,
    out: Annotated[Path | None, typer.Option(help="A JSON file to write.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """The first trace minus the second, pair by pair: where they differ, with intervals and tests."""
    from causal_tracing import compare as run
    from causal_tracing import open_trace
    from causal_tracing.files import write_text

    found = run(open_trace(first), open_trace(second), metric=metric, second_metric=second_metric, seed=seed)
    text = json.dumps(found.to_dict(), allow_nan=False)
    if out is not None:
        write_text(out, text)
        console.note(f"wrote {out}")
    if as_json:
        print(text)
    else:
        console.show_comparison(found)
