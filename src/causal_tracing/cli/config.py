"""A configuration file: any of a command's options, by their names in Python, in TOML."""

import inspect
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from causal_tracing.cli.flags import flag_of, kind_of
from causal_tracing.errors import InvalidOption, nearest
from causal_tracing.patching.options.declare import Spec, specs
from causal_tracing.prompts.datasets import is_name

KINDS = {str: "a text", bool: "true or false", int: "a whole number", Path: "a path"}


def read(path: Path, flags: Mapping[str, inspect.Parameter], declared: type, given: Collection[str]) -> dict[str, Any]:
    """What the file says, as the flags of the command; not of what is `given` there. Paths are relative to the file.

    `flags` are the command's own, beside those of what is `declared`.

    Raises InvalidOption, with the file and the key, for a name that is not there or a value that cannot be meant.
    """
    own = {_key(each): each for each in flags.values()}
    options = {name: spec for name, spec in specs(declared).items() if spec.text}
    found: dict[str, Any] = {}
    for key, value in _content(path).items():
        if key not in own and key not in options:
            raise InvalidOption(f"{path}: There is no option {key!r}. {nearest(key, (*own, *options))}")
        try:
            if key in own:
                said = {own[key].name: _own(key, value, kind_of(own[key]), path.parent)}
            else:
                said = _spelled(key, value, options[key], path.parent)
        except InvalidOption as error:
            raise InvalidOption(f"{path}, {key}: {error}") from None
        # Read all the same, so that an error in the file is said even where a flag hides it.
        found |= {} if key in given else said
    return found


def _content(path: Path) -> dict[str, Any]:
    import tomllib  # only where there is a file: every --help loads this module

    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidOption(f"--config {path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise InvalidOption(f"--config {path} is no TOML: {error}.") from None


def _key(parameter: inspect.Parameter) -> str:
    """The name of a command's own parameter: that of its flag, where this is another."""
    flag = flag_of(parameter)
    written = [each for each in (flag.default, *(flag.param_decls or ())) if isinstance(each, str)]
    return written[0].removeprefix("--").replace("-", "_") if written else parameter.name


def _spelled(name: str, value: Any, spec: Spec, folder: Path) -> dict[str, Any]:
    """The flags of an option; read once, so that what cannot be meant is said of this file."""
    assert spec.text is not None, "what a file cannot say is no option of it"
    paths = {flag.name for flag in spec.text.more if flag.kind is Path}
    flags = {
        flag: folder / each if flag in paths and isinstance(each, str) else each
        for flag, each in spec.text.from_file(name, value).items()
    }
    if flags:
        meant = spec.text.read(name, flags)
        if spec.check is not None:
            spec.check(meant)
    return flags


def _own(name: str, value: Any, kind: type, folder: Path) -> Any:
    """The value of a parameter of the command itself."""
    if not isinstance(value, str if kind is Path else kind) or (kind is int and isinstance(value, bool)):
        raise InvalidOption(f"It must be {KINDS[kind]}; it is {value!r}.")
    if kind is Path:
        return folder / value
    return str(folder / value) if name == "pairs" and not is_name(value) else value
