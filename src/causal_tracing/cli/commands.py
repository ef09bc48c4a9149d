"""What all commands share: options that several take, exit codes, and how a command ends on Ctrl-C."""

from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from causal_tracing.cli import console

PARTLY = 5

ModelName = Annotated[str, typer.Option("--model", help='"demo", a hub id, a folder, or a GGUF file.')]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub repository.")]
Dtype = Annotated[str | None, typer.Option(help="float32 (default), bfloat16, float16, float64 or auto.")]
Device = Annotated[str | None, typer.Option(help="Such as cpu or cuda:0 (default: the GPU if there is one).")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run model code that comes with the repository.")]


def command(app: typer.Typer) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command that ends on Ctrl-C with a word and the usual exit code (typer would print "Aborted" and exit 1)."""

    def added(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def interruptible(*arguments: Any, **options: Any) -> None:
            try:
                function(*arguments, **options)
            except KeyboardInterrupt:
                console.note("Interrupted. Nothing was written.")
                raise typer.Exit(console.INTERRUPTED) from None

        return app.command()(interruptible)

    return added
