"""The commands. Results go to stdout, progress and notes to stderr; heavy imports happen inside the commands."""

import json
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from causal_tracing import __version__
from causal_tracing.cli import commands, console, parse
from causal_tracing.cli import saved as cli_results
from causal_tracing.errors import CausalTracingError, EngineNote, InvalidOption

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


def main() -> None:
    """Runs a command; an error that is known becomes one message and its exit code."""
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

    console.show(console.traced(console.load("demo"), [Pair(**DEMO)]), out)


@commands.command(app)
def trace(
    model: commands.ModelName,
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
    dtype: commands.Dtype = None,
    device: commands.Device = None,
    revision: commands.Revision = None,
    trust_remote_code: commands.Trust = False,
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
    _check_folder(out, many=pairs is not None, in_part=shard is not None or keep != "all", overwrite=overwrite)
    loaded = console.load(model, revision=revision, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    if dry_run:
        console.estimate(loaded, asked, options, keep=keep, as_json=as_json)
        return
    if out is not None and pairs is not None:
        result = console.ran(loaded, asked, out, keep=keep, shard=parse.shard(shard), **options)
    else:
        result = console.traced(loaded, asked, **options)
        if out is not None:
            result.save(out, overwrite=overwrite)
    if out is not None:
        result.to_html(out / "report.html")
        console.note(f"wrote {out} (the trace) and {out / 'report.html'} (its page)")
    if as_json:
        from causal_tracing.report.document import document

        print(json.dumps(document(result.measurements, all_metrics=all_metrics), allow_nan=False))
    else:
        console.show(result, None)
    if result.provenance.get("failed") or result.provenance.get("pairs_missing"):
        raise typer.Exit(commands.PARTLY)


def _check_folder(out: Path | None, *, many: bool, in_part: bool, overwrite: bool) -> None:
    """Whether the result can be put there: asked before the work. Raises InvalidOption, InvalidResults."""
    from causal_tracing.results.storage.saved import check_target

    if in_part and not (many and out is not None):
        raise InvalidOption("--shard and --keep are for many pairs in a folder: give --pairs and --out too.")
    if out is not None and many and overwrite:
        raise InvalidOption("A run folder is gone on with, never overwritten. Delete it, or give --out another name.")
    if out is not None and not many:
        check_target(out, overwrite=overwrite)


@commands.command(app)
def attribute(
    model: commands.ModelName,
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
    dtype: commands.Dtype = None,
    device: commands.Device = None,
    revision: commands.Revision = None,
    trust_remote_code: commands.Trust = False,
    out: Annotated[Path | None, typer.Option(help="A folder to write: what open_trace opens.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is saved at --out.")] = False,
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
        console.note(f"wrote {found.save(out, overwrite=overwrite)}")
    if page is not None:
        found.to_html(page)
        console.note(f"wrote {page}")
    print(json.dumps(found.to_dict(), allow_nan=False) if as_json else found.summary())


@commands.command(app)
def check(
    model: commands.ModelName,
    revision: commands.Revision = None,
    dtype: commands.Dtype = None,
    device: commands.Device = None,
    trust_remote_code: commands.Trust = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """What works on a model, and how exactly: anatomy, engine, and the laws that patching must obey."""
    from causal_tracing.engine.checks.check import check as examine_again

    loaded = console.load(model, revision=revision, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    checkup = examine_again(loaded)
    if as_json:
        print(json.dumps(checkup.to_dict(), allow_nan=False))
    else:
        print(checkup)


app.add_typer(cli_results.app)
