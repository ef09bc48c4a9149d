"""How an option is declared: name and type as a field, and with them default, help, group, check and texts, once.

Of the declarations are made: the keywords of the Python functions and what `help()` says of them, the flags of the
command line, the keys of a configuration file, what is kept of the options with a result, and the command or the file
that makes the result again.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any

from causal_tracing.errors import InvalidOption
from causal_tracing.patching.options.spelling import Text

PAIR, PATCHED, TOGETHER = "The pair", "What is patched", "What is patched together"
PATHS, CIRCUIT, ATTENTION, CHANGES = "Paths", "Circuits", "Attention", "Noise and ablation"
MANY, ENGINE, OUTPUT = "Many pairs", "Model and engine", "Output"
GROUPS = (PAIR, PATCHED, TOGETHER, PATHS, CIRCUIT, ATTENTION, CHANGES, MANY, ENGINE, OUTPUT)  # as they are shown

PLAIN = (str, float, int, bool, type(None))


def plain(value: Any) -> Any:
    """Lists and numbers of any library as JSON has them."""
    if type(value) in PLAIN:  # nearly all, and asking what another type can do takes twenty times as long
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [plain(each) for each in value]
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What is declared of an option beside its name and type.

    `check` raises InvalidOption for a value that cannot be meant. `text` is how a command line and a file spell it;
    None: they cannot. `python` is said in Python only. `names` are what a shell offers to complete it. `kept` makes the
    plain value that the record has.

    `recorded`: is a part of what was measured. `always`: is written out where a result is made again, and not only
    where it differs from its default. `beside`: counts only where that option is asked for. `unless`: that option sets
    it.
    """

    default: Any
    help: str
    python: str
    group: str
    text: Text | None
    check: Callable[[Any], object] | None
    names: Sequence[str]
    kept: Callable[[Any], Any]
    recorded: bool
    always: bool
    beside: str | None
    unless: str | None


def option(
    default: Any,
    *,
    help: str,
    group: str,
    python: str = "",
    text: Text | None = None,
    check: Callable[[Any], object] | None = None,
    names: Sequence[str] = (),
    kept: Callable[[Any], Any] = plain,
    recorded: bool = True,
    always: bool = False,
    beside: str | None = None,
    unless: str | None = None,
) -> Any:
    """A field of a dataclass of options: its default, and what `Spec` explains. To a type checker, the default."""
    spec = Spec(
        default=default,
        help=help,
        python=python,
        group=group,
        text=text,
        check=check,
        names=names,
        kept=kept,
        recorded=recorded,
        always=always,
        beside=beside,
        unless=unless,
    )
    return field(default=default, metadata={"option": spec})


def same(declared: Any, name: str, **changes: Any) -> Any:
    """A field that is the option of another dataclass once more, with these changes to its `Spec`."""
    # What counted only beside another option is one of its own among these.
    spec = replace(specs(declared)[name], **{"beside": None, **changes})
    return field(default=spec.default, metadata={"option": spec})


def specs(declared: Any) -> dict[str, Spec]:
    """The options that a dataclass (or a value of it) declares, by name, in the order of its fields."""
    return {each.name: each.metadata["option"] for each in fields(declared)}


def check_values(options: Any) -> None:
    """Checks every option by itself, but for those that are left out. Raises InvalidOption."""
    for name, spec in specs(options).items():
        value = getattr(options, name)
        # None is how an option is left out, where that is its default.
        if spec.check is not None and not (value is None and spec.default is None):
            spec.check(value)
        if spec.text is not None and spec.text.kind is bool and not isinstance(value, bool):
            raise InvalidOption(f"{name}= is True or False; it is {value!r}.")


def check_beside(options: Any) -> None:
    """Raises InvalidOption for an option that would be asked for in vain: it counts beside another one alone."""
    for name, spec in specs(options).items():
        if spec.beside in (None, name) or getattr(options, spec.beside):
            continue
        value = plain(spec.kept(getattr(options, name)))
        if value != plain(spec.kept(spec.default)):
            raise InvalidOption(
                f"{name}={value!r} counts beside {spec.beside}= alone, and that is not asked for: ask for it, or leave "
                f"{name}= out."
            )


def values_of(options: Any) -> dict[str, Any]:
    """The options by name, as they are."""
    return {each.name: getattr(options, each.name) for each in fields(options)}


def record(options: Any) -> dict[str, Any]:
    """The options as JSON holds them: what belongs to others only beside those."""
    return {
        name: plain(spec.kept(getattr(options, name)))
        for name, spec in specs(options).items()
        if spec.recorded and (spec.beside is None or getattr(options, spec.beside))
    }


def said(declared: Any, kept: Mapping[str, Any]) -> dict[str, Any]:
    """Of a record, what must be said to ask for the same again."""
    return {
        name: kept[name]
        for name, spec in specs(declared).items()
        if name in kept
        and not (spec.unless and kept.get(spec.unless))
        and (spec.always or kept[name] != plain(spec.kept(spec.default)))
    }
