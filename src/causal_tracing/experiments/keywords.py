"""The Python face: a verb takes the options that a dataclass declares, as keywords of its own.

To a type checker the keywords are those of the dataclass's constructor, so that a wrong name or type is seen where the
verb is called. To `help()` they are the signature, and are explained by group.
"""

import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, overload, runtime_checkable

from causal_tracing.errors import InvalidOption, nearest
from causal_tracing.models.at_rest import made_on_cpu
from causal_tracing.models.model import Model
from causal_tracing.patching.options.declare import GROUPS, specs
from causal_tracing.prompts.cells import as_python
from causal_tracing.prompts.pairs import Pair

P = ParamSpec("P")
Options = TypeVar("Options")
Result = TypeVar("Result")
Given = TypeVar("Given", covariant=True)  # what a verb gives back
EXAMPLE = "\n\nExample:"


@runtime_checkable
class OfPairs(Protocol[P, Given]):
    """A verb of one pair or several."""

    def __call__(self, model: Model, pairs: Pair | Sequence[Pair], *_: P.args, **options: P.kwargs) -> Given:
        """Its options are keywords."""
        ...


@runtime_checkable
class IntoFolder(Protocol[P, Given]):
    """A verb that writes what it finds of many pairs into a folder."""

    def __call__(
        self, model: Model, pairs: Pair | Sequence[Pair], folder: str | Path, *_: P.args, **options: P.kwargs
    ) -> Given:
        """Its options are keywords."""
        ...


class Keywords(Generic[P, Options]):
    """Decorates a verb whose last parameter, `options`, is a value of this dataclass: its fields become keywords."""

    def __init__(self, declared: Callable[P, Options]) -> None:
        self.declared = declared

    @overload
    def __call__(self, verb: Callable[[Model, Pair | Sequence[Pair], Options], Result]) -> OfPairs[P, Result]: ...

    @overload
    def __call__(
        self, verb: Callable[[Model, Pair | Sequence[Pair], str | Path, Options], Result]
    ) -> IntoFolder[P, Result]: ...

    def __call__(self, verb: Callable[..., Any]) -> Any:
        """The verb with these keywords."""
        declared: Callable[..., Options] = self.declared
        shown = _signature(verb, declared)
        names = specs(declared)

        @wraps(verb)
        def called(*given: Any, **named: Any) -> Any:
            # Before Python's own TypeError, which knows no nearest name.
            for name in named:
                if name not in shown.parameters:
                    raise InvalidOption(f"There is no option {name!r}. {nearest(name, names)}")
            bound = shown.bind(*given, **named).arguments  # TypeError for what is missing, as of any function
            # Arrays are lists here: what is asked of an option is asked of lists, texts and numbers.
            options = declared(**{name: as_python(bound.pop(name)) for name in names if name in bound})
            with made_on_cpu():
                return verb(**bound, options=options)

        called.__signature__ = shown  # pyright: ignore[reportAttributeAccessIssue]
        called.__doc__ = _documented(verb, declared)
        return called


def _signature(verb: Callable[..., Any], declared: Any) -> inspect.Signature:
    """The verb's own parameters, and a keyword for each option."""
    of_verb = inspect.signature(verb)
    own = [each for each in of_verb.parameters.values() if each.name != "options"]
    keywords = [
        inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=each.type)
        for each in fields(declared)
    ]
    return of_verb.replace(parameters=[*own, *keywords])


def _documented(verb: Callable[..., Any], declared: Any) -> str:
    """What the verb says of itself, what is declared of its options, and its example."""
    said, _, example = inspect.cleandoc(verb.__doc__ or "").partition(EXAMPLE)
    groups = [_group(name, specs(declared)) for name in GROUPS]
    return "\n\n".join([said, *filter(None, groups)]) + (f"{EXAMPLE}{example}" if example else "")


def _group(name: str, found: Mapping[str, Any]) -> str:
    lines = [f"{option}: {spec.help} {spec.python}".rstrip() for option, spec in found.items() if spec.group == name]
    wrapped = [textwrap.fill(line, 100, initial_indent="    ", subsequent_indent="        ") for line in lines]
    return "\n".join([f"{name}:", *wrapped]) if lines else ""
