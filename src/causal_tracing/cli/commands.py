"""What all commands share: options that several take, exit codes, and how a command ends on Ctrl-C."""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, update_wrapper
from typing import Annotated, Any

import typer
from typer.models import CommandInfo

from causal_tracing.cli import config, console, flags
from causal_tracing.patching.options.declare import ENGINE, OUTPUT

PARTLY = 5  # exit code of what was done in part; 2 to 4 are those of errors

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


def command(
    app: typer.Typer, declares: Callable[[], type] | None = None, *, without: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command that ends on Ctrl-C with a word and the usual exit code (typer would print "Aborted" and exit 1).

    Where it `declares` options it has their flags and --config too; it is called with its own parameters, and
    `options`: those that were given, by name, each of them checked. Their declaration is imported when it is needed: a
    list of commands needs none. Its own may be groups of flags, some of them `without`: those keep their default.
    """

    return lambda function: app.command()(_Interruptible(function, declares, without))


class _Interruptible:
    """A command's function. Its flags are made out when someone asks for them: five commands have a hundred each."""

    def __init__(
        self, function: Callable[..., None], declares: Callable[[], type] | None, without: Collection[str]
    ) -> None:
        update_wrapper(self, function)
        self.function, self.declares, self.without = function, declares, without

    @cached_property
    def declared(self) -> type | None:
        """The class that declares its options."""
        return self.declares() if self.declares else None

    @cached_property
    def __signature__(self) -> inspect.Signature:
        if self.declared is None:
            return inspect.signature(self.function)
        return flags.signature(self.own, self.declared)

    @cached_property
    def own(self) -> Mapping[str, inspect.Parameter]:
        """The flags of its own parameters."""
        return flags.own_flags(self.function, self.without)

    def __call__(self, *arguments: Any, **given: Any) -> None:
        console.begin()
        try:
            self.function(*arguments, **(self._meant(self.declared, given) if self.declared else given))
        except KeyboardInterrupt:
            console.interrupted()
            raise typer.Exit(console.INTERRUPTED) from None

    def _meant(self, declared: type, given: Mapping[str, Any]) -> dict[str, Any]:
        """What was given here, and what a file says beside it. Raises InvalidOption."""
        # A flag that was not given is None: then the file, and behind it the default, has the word.
        found = {name: value for name, value in given.items() if value is not None}
        file = found.pop(flags.CONFIG, None)
        if file is not None:
            # Flags win over the file.
            found = config.read(file, self.own, declared, given=found) | found
        flags.complete(self.own, found)
        options = flags.values(found, declared)
        declared(**options)  # what cannot be meant is said before a model is loaded
        own = {name: found[name] for name in self.own if name in found}
        return flags.gathered(self.function, own) | {"options": options}


@contextmanager
def only_named(app: typer.Typer, words: Sequence[str]) -> Iterator[None]:
    """The app with the flags of that command alone which these words of a command line name, while this lasts.

    Of the others it knows what a list of commands shows: typer makes out the flags of every command, whichever is run.
    """
    whole, named = app.registered_commands, next((word for word in words if not word.startswith("-")), None)
    app.registered_commands = [
        each if each.callback is None or each.callback.__name__ == named else _told(each.callback) for each in whole
    ]
    try:
        yield
    finally:
        app.registered_commands = whole


def _told(function: Callable[..., Any]) -> CommandInfo:
    """A command of which only the name and the help are known."""

    def told() -> None:
        raise AssertionError("it is not the command that was named")

    return CommandInfo(name=function.__name__, callback=told, help=function.__doc__)
