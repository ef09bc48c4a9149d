"""The command that opens the live explorer, or saved traces to be read."""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from causal_tracing.cli import commands, console
from causal_tracing.errors import InvalidOption
from causal_tracing.explorer import LIMIT_TOKENS

app = typer.Typer()
FOLDERS = "Saved traces or run folders, to be read without a model."


@commands.command(app)
def explore(
    folders: Annotated[list[Path] | None, typer.Argument(help=FOLDERS)] = None,
    model: Annotated[str, typer.Option(help='"demo", a hub id, a folder, or a GGUF file.')] = "demo",
    port: Annotated[int, typer.Option(help="Where to listen (0: any free port).")] = 0,
    host: Annotated[str, typer.Option(help="Where to listen; beyond this machine with --allow-host.")] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name by which the page may be reached, with its port if it has one.")
    ] = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Do not open a browser.")] = False,
    out: Annotated[Path, typer.Option(help="The folder in which traces are saved.")] = Path(),
    limit_tokens: Annotated[int, typer.Option(help="How many tokens a prompt may have.")] = LIMIT_TOKENS,
    dtype: commands.Dtype = None,
    device: commands.Device = None,
    revision: commands.Revision = None,
    trust_remote_code: commands.Trust = False,
) -> None:
    """A page that traces what is typed, and looks into heads and neurons; or opens saved traces. Prints its address."""
    from causal_tracing.explorer.serve import Address, require_free
    from causal_tracing.explorer.start import explore as run
    from causal_tracing.explorer.start import stay
    from causal_tracing.results.storage.places import check_shelf

    # Ends as Ctrl-C does, also where a shell has started it in the background, which takes Ctrl-C away.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    allowed = tuple(allow_host or ())
    if folders:
        from causal_tracing.explorer.saved import Saved

        stay(Saved(folders), Address(host=host, port=port, allowed=allowed), open=not no_open)
    else:
        if out != Path():  # whoever names no folder may not mean to save anything
            check_shelf(out)
        require_free(Address(host=host, port=port, allowed=allowed))  # what is wrong is said before a model is loaded
        if limit_tokens < 1:
            raise InvalidOption(f"--limit-tokens must be at least 1; it is {limit_tokens}.")
        loaded = console.load(model, revision=revision, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        run(loaded, port=port, open=not no_open, out=out, limit_tokens=limit_tokens, host=host, allow_hosts=allowed)
    _leave()


def _leave() -> None:
    """Ends the process at once. All is closed by now, and Python takes seconds to take torch's modules apart."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
