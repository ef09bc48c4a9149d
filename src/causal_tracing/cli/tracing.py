"""What a command that traces does: pairs and options are checked, the model is loaded, and the result kept and said."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import typer

from causal_tracing.cli import commands, console
from causal_tracing.cli.asked import Asked
from causal_tracing.cli.groups import OutputFlags
from causal_tracing.errors import InvalidOption
from causal_tracing.patching.options.declare import specs

Finish = Callable[[Any, list[Any], Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is traced: pairs (`many`: of a file), a model and how it is loaded, and options.

    `finish` makes the options of the model and the pairs, where these must be known first.
    """

    pairs: Asked
    many: bool
    model: str
    loading: Mapping[str, Any]
    options: Mapping[str, Any]
    finish: Finish | None = None


def carry_out(wanted: Wanted, output: OutputFlags) -> None:
    """Traces what is asked for; exits with `PARTLY` where some pairs could not be. Raises what a trace raises."""
    options, many, out = dict(wanted.options), wanted.many, output.out
    of_a_run = {name: options.pop(name) for name in [*options] if name in _of_a_run()}
    # A single pair that is wrong is an error; of many in a folder it is a row with its reason.
    alone = out is None or not many
    # All that can be wrong without a model is said first: loading one takes from seconds to minutes.
    wanted.pairs.check(options, alone=alone)
    check_folder(out, many=many, of_a_run=of_a_run, overwrite=output.overwrite)
    if output.all_metrics and not output.as_json:
        raise InvalidOption("--all-metrics says what --json prints: give --json too, or leave it out.")
    model = console.load(wanted.model, **wanted.loading)
    pairs = wanted.pairs.on(model, options, alone=alone)
    if wanted.finish is not None:
        options = wanted.finish(model, pairs, options)
    if output.dry_run:
        console.estimate(model, pairs, options, keep=of_a_run.get("keep", "all"), as_json=output.as_json)
        return
    if out is not None and many:
        result = console.ran(model, pairs, out, **of_a_run, **options)
    else:
        result = console.traced(model, pairs, **options)
    if out is not None:
        console.kept(result, model, pairs, out, options, saved=many, overwrite=output.overwrite)
    console.say(result, as_json=output.as_json, all_metrics=output.all_metrics)
    if result.provenance.get("failed") or result.provenance.get("pairs_missing"):
        raise typer.Exit(commands.PARTLY)


@cache
def _of_a_run() -> Mapping[str, Any]:
    """What a run of many pairs has beside the options of a trace, with the defaults."""
    from causal_tracing.patching.options.trace import Options, RunOptions

    return {name: spec.default for name, spec in specs(RunOptions).items() if name not in specs(Options)}


def check_folder(out: Path | None, *, many: bool, of_a_run: Mapping[str, Any], overwrite: bool) -> None:
    """Whether the result can be put there: asked before the work. Raises InvalidOption, InvalidResults."""
    from causal_tracing.results.storage.places import check_run_folder, check_target

    given = [f"--{name.replace('_', '-')}" for name, value in of_a_run.items() if value != _of_a_run()[name]]
    if given and not (many and out is not None):
        raise InvalidOption(f"{', '.join(given)}: for many pairs in a folder. Give --pairs and --out too.")
    if out is None and overwrite:
        raise InvalidOption("--overwrite replaces what lies at --out: give --out too, or leave it out.")
    if out is not None and many and overwrite:
        raise InvalidOption("A run folder is gone on with, never overwritten. Delete it, or give --out another name.")
    if out is not None and many:
        check_run_folder(out)
    elif out is not None:
        check_target(out, overwrite=overwrite)
