"""Commands made of declarations: the flags that spell a command's options, and the values that were meant."""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from copy import copy
from dataclasses import Field, fields
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from causal_tracing.errors import InvalidOption
from causal_tracing.patching.options.declare import GROUPS, OUTPUT, Spec, plain, specs

CONFIG = "config"
Config = Annotated[
    Path | None,
    typer.Option(
        help="A TOML file with any of these by name, such as layers = [0, 1]; flags given here win.",
        rich_help_panel=OUTPUT,
    ),
]


class Group:
    """Flags that belong together: a command that has them takes them as one parameter, of a dataclass of these."""


def own_flags(function: Callable[..., Any], without: Collection[str] = ()) -> dict[str, inspect.Parameter]:
    """The command's own flags by name: its parameters, a group as its fields; not `options`, nor those `without`."""
    found: dict[str, inspect.Parameter] = {}
    for name, each in inspect.signature(function).parameters.items():
        group = _group_of(each)
        found |= {name: each} if group is None else {one.name: _as_parameter(one) for one in fields(group)}
    return {name: each for name, each in found.items() if name not in ("options", *without)}


def gathered(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of its own flags as the command takes them: those of a group as one."""
    found: dict[str, Any] = {}
    for name, each in inspect.signature(function).parameters.items():
        group = _group_of(each)
        if group is not None:
            found[name] = group(**{one.name: values[one.name] for one in fields(group) if one.name in values})
        elif name in values:
            found[name] = values[name]
    return found


def signature(own: Mapping[str, inspect.Parameter], declared: type) -> inspect.Signature:
    """What typer reads: the command's own flags, --config, and a flag for all that is declared, by group.

    A flag that is not given is None, whatever its default: a file may say it.
    """
    config = inspect.Parameter(CONFIG, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Config)
    found: dict[str, inspect.Parameter] = {}
    for name, spec in specs(declared).items():
        for each in _flags(name, spec):
            found.setdefault(each.name, each)  # two options may share a flag
    return inspect.Signature(sorted([*map(_left_open, own.values()), *found.values(), config], key=_place))


def values(flags: Mapping[str, Any], declared: type) -> dict[str, Any]:
    """The options that these flags spell. Raises InvalidOption."""
    return {
        name: spec.text.read(name, flags)
        for name, spec in specs(declared).items()
        if spec.text and flags.keys() & {name, *(flag.name for flag in spec.text.more)}
    }


def complete(own: Mapping[str, inspect.Parameter], given: Mapping[str, Any]) -> None:
    """Raises InvalidOption where something is missing that the command cannot do without."""
    needed = [name for name, each in own.items() if each.default is inspect.Parameter.empty]
    missing = [f"--{name}" for name in needed if name not in given]
    if missing:
        raise InvalidOption(f"{' and '.join(missing)} missing. Give it here, or in the file of --config.")


def _group_of(parameter: inspect.Parameter) -> Any:
    """The group that a parameter is; None where it is one flag."""
    kind = parameter.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Group) else None


def _as_parameter(field: Field[Any]) -> inspect.Parameter:
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)


def _flags(name: str, spec: Spec) -> Iterator[inspect.Parameter]:
    """The flags of an option: the one of its name, and those that say more of it."""
    text = spec.text
    if text is None:
        return
    # As the flag would be written: the help shows what can be typed.
    # 0 equals False, and is a default that is told.
    silent = spec.default is None or spec.default is False or spec.default in ((), "")
    usual = None if silent else text.write(name, plain(spec.kept(spec.default))).get(name)
    default = "" if usual is None else f"Default: {'on' if text.kind is bool else usual}."
    yield _parameter(name, text.kind, " ".join(filter(None, (spec.help, text.example, default))), spec)
    for flag in text.more:
        yield _parameter(flag.name, flag.kind, flag.help, spec)


def _parameter(name: str, kind: type, help: str, spec: Spec) -> inspect.Parameter:
    def completed(incomplete: str) -> list[str]:
        return [each for each in spec.names if each.startswith(incomplete)]

    offered = completed if spec.names and kind is str else None
    flag = typer.Option(help=help, rich_help_panel=spec.group, autocompletion=offered)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, flag]
    )


def kind_of(parameter: inspect.Parameter) -> type:
    """What a flag takes."""
    annotated = get_args(parameter.annotation)[0]
    return next((kind for kind in get_args(annotated) if kind is not type(None)), annotated)


def flag_of(parameter: inspect.Parameter) -> Any:
    """What typer knows of a flag."""
    return get_args(parameter.annotation)[1]


def _left_open(parameter: inspect.Parameter) -> inspect.Parameter:
    """The parameter as one that need not be given: what is missing may stand in the file."""
    # A copy, because commands share their flags, and each of them would say it once more.
    flag = copy(flag_of(parameter))
    if parameter.default is inspect.Parameter.empty:
        flag.help += " Required."
    annotation = Annotated[kind_of(parameter) | None, flag]
    return parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _place(parameter: inspect.Parameter) -> int:
    return GROUPS.index(flag_of(parameter).rich_help_panel)
