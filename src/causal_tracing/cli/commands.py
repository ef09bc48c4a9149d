"""What all commands share: options that several take, exit codes, and how a command ends on Ctrl-C."""

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Annotated, Any

import typer

from causal_tracing.cli import config, console, flags
from causal_tracing.patching.options.declare import ENGINE, OUTPUT

PARTLY = 5

ModelName = Annotated[
    str, typer.Option("--model", help='"demo", a hub id, a folder, or a GGUF file.', rich_help_panel=ENGINE)
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a hub repository.", rich_help_panel=ENGINE)
]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32 (default), bfloat16, float16, float64 or auto.", rich_help_panel=ENGINE),
]
Device = Annotated[
    str | None, typer.Option(help="Such as cpu or cuda:0 (default: the GPU if there is one).", rich_help_panel=ENGINE)
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        help="For a model larger than a device: auto, balanced, balanced_low_0 or sequential.", rich_help_panel=ENGINE
    ),
]
Remote = Annotated[
    bool,
    typer.Option(
        "--remote",
        help="On the NDIF server that nnsight is set up for (NDIF_HOST); the weights stay there.",
        rich_help_panel=ENGINE,
    ),
]
Trust = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run model code that comes with the repository.", rich_help_panel=ENGINE),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.", rich_help_panel=OUTPUT)]


def command(app: typer.Typer, declared: type | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command that ends on Ctrl-C with a word and the usual exit code (typer would print "Aborted" and exit 1).

    With `declared` options it has their flags and --config too; it is called with its own parameters, and `options`:
    those that were given, by name, each of them checked.
    """

    def added(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def interruptible(*arguments: Any, **given: Any) -> None:
            console.begin()
            try:
                function(*arguments, **(given if declared is None else _meant(function, declared, given)))
            except KeyboardInterrupt:
                console.interrupted()
                raise typer.Exit(console.INTERRUPTED) from None

        if declared is not None:
            signature: inspect.Signature = flags.signature(function, declared)
            interruptible.__signature__ = signature  # pyright: ignore[reportAttributeAccessIssue]
        return app.command()(interruptible)

    return added


def _meant(function: Callable[..., None], declared: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given here, and what a file says beside it. Raises InvalidOption."""
    found = {name: value for name, value in given.items() if value is not None}
    file = found.pop(flags.CONFIG, None)
    if file is not None:
        found = config.read(file, function, declared, given=found) | found
    flags.complete(function, found)
    options = flags.values(found, declared)
    declared(**options)  # what cannot be meant is said before a model is loaded
    own = {name: found[name] for name in flags.own_parameters(function) if name in found}
    return own | {"options": options}
