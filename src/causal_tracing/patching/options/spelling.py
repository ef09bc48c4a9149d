"""How an option is spelled, as a value: what a flag means, how it is written again, what a file may hold instead."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from causal_tracing.errors import InvalidOption

Flags = Mapping[str, Any]  # by name as Python has it: a text, or what a file holds in its place


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """A flag of the command line beside the one that is named as its option: its name, type and help."""

    name: str
    kind: type
    help: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """How an option is spelled, in a flag of its own name (and `more`).

    `read(name, flags)` makes the option's value of the flags that were given; `write(name, value)` makes the flags of a
    plain value, as the record and a configuration file have it. `fits` says whether a file's value is of the `form`.
    `kind` is what the flag takes; `example` is shown with its help.
    """

    read: Callable[[str, Flags], Any]
    write: Callable[[str, Any], dict[str, Any]]
    fits: Callable[[Any], bool]
    form: str
    kind: type = str
    example: str = ""
    more: tuple[Flag, ...] = ()

    def from_file(self, name: str, value: Any) -> dict[str, Any]:
        """The flags of a value in a configuration file: a text as the flag takes it, or a plain value.

        Raises InvalidOption where it is of another type.
        """
        if self.kind is str and isinstance(value, str):
            return {name: value}
        if not self.fits(value):
            raise InvalidOption(f"It must be {self.form}; it is {value!r}.")
        return self.write(name, value)


def one(
    parse: Callable[[Any], Any],
    spell: Callable[[Any], Any],
    *,
    fits: Callable[[Any], bool],
    form: str,
    kind: type = str,
    example: str = "",
) -> Text:
    """A value that is spelled in one flag."""
    return Text(
        read=lambda name, flags: parse(flags[name]),
        # False is said by leaving the flag out, except of a switch, which may be on by default.
        write=lambda name, value: {} if value is False and kind is not bool else {name: spell(value)},
        fits=fits,
        form=form,
        kind=kind,
        example=example,
    )


def is_a(value: Any, *kinds: type) -> bool:
    """Whether a file's value is of one of these types; true and false are no numbers."""
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))


def list_of(*kinds: type) -> Callable[[Any], bool]:
    """A check that a file's value is a list of such."""
    return lambda value: isinstance(value, list) and all(is_a(each, *kinds) for each in value)


def itself(value: Any) -> Any:
    """What is spelled as it is."""
    return value


def joined(values: Sequence[Any] | str) -> str:
    """a,b of a list; a text as it is."""
    return values if isinstance(values, str) else ",".join(map(str, values))
