"""The package's annotations, checked by beartype and jaxtyping as the tests run: a lighter `jaxtyping.jaxtyped`.

jaxtyping's own wraps each function in four, binds the arguments of each call, and compiles the checks of a nested
function anew whenever the function around it runs; with tiny models that was most of the suite's time. Here
1. a function without a tensor's shape in its annotations is checked by beartype alone;
2. one with shapes is checked in a scope of its own for the names of axes, as jaxtyping has it;
3. checks are compiled when a function is first called, those of a nested one once: each closure gets a copy;
4. an array whose axes all have names is compared with their sizes at once; where it does not fit, jaxtyping says why;
5. a function is checked in its first calls of each test (`begin_anew`), and not in the thousands of a loop: no wrapper
   stays around it, for the code of the function itself leads to its checks as long as there are some left.
"""

import dataclasses
import functools
import inspect
import random
import typing
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, TypeCheckError
from jaxtyping._array_types import _NamedDim
from jaxtyping._storage import get_shape_memo, pop_shape_memo, push_shape_memo

# Python 3.11 works out anew at every isinstance what a protocol's attributes are; 3.12 remembers them.
typing._get_protocol_attrs = functools.cache(typing._get_protocol_attrs)  # pyright: ignore[reportAttributeAccessIssue]
whole = jaxtyping.jaxtyped
typed = beartype(conf=BeartypeConf(violation_type=TypeCheckError))  # a TypeError, as jaxtyping raises it
own_random = random.Random(0)  # beartype samples the items of a list: Python's generator is left to the tests
nested: dict[Any, "Checks"] = {}  # by code and annotations
CALLS = 8  # of a function in one test are checked
spent: list["Checks"] = []  # those of functions that were called as often in this test


def begin_anew() -> None:
    """A test begins: the next calls of every function are checked."""
    for checks in spent:
        checks.begin()
    spent.clear()


def jaxtyped(made: Any = None, *, typechecker: Any = None) -> Any:
    """Stands in for `jaxtyping.jaxtyped`, with which jaxtyping's import hook decorates all functions and classes."""
    if made is None:
        return functools.partial(jaxtyped, typechecker=typechecker)
    if not inspect.isclass(made):
        return checked(made)
    if dataclasses.is_dataclass(made) and "__init__" in vars(made):
        setattr(made, "__init__", checked(made.__init__))  # noqa: B010
    return made


def checked(function: FunctionType) -> Callable[..., Any]:
    """The function; a nested one, which is made anew again and again, within its checks as long as there are some."""
    # Not what has free variables: where a frame lacks their cells, a traceback that looks into it ends Python.
    if "<locals>" not in function.__qualname__ and not function.__code__.co_freevars:
        checks = Checks(copied(function), led=function)
        checks.way = leading_to(checks.call)
        checks.begin()
        setattr(function, "__wrapped__", checks.function)  # noqa: B010 - whose signature is told in any case
        return function
    key = (function.__code__, *function.__annotations__.items())
    checks = nested[key] if key in nested else nested.setdefault(key, Checks(function))
    return sparing(checks, function) if checks.left > 0 else function


def sparing(checks: "Checks", function: FunctionType) -> Callable[..., Any]:
    """The function, within its checks as long as there are some left."""
    strict: Any = None

    @functools.wraps(function)
    def called(*args: Any, **options: Any) -> Any:
        nonlocal strict
        if not checks.spend():
            return function(*args, **options)
        strict = strict or checks.around(function)
        return strict(*args, **options)

    return called


def leading(*args: Any, **options: Any) -> Any:
    """What a function does instead of its own code while it is checked."""
    checks: Any = "the checks"
    return checks(*args, **options)


def leading_to(checks: Callable[..., Any]) -> CodeType:
    """Code that calls these checks."""
    constants = tuple(checks if each == "the checks" else each for each in leading.__code__.co_consts)
    return leading.__code__.replace(co_consts=constants)


def scoped(function: FunctionType) -> Callable[..., Any]:
    """Within one call of the function an axis has one size."""

    @functools.wraps(function)
    def called(*args: Any, **options: Any) -> Any:
        push_shape_memo({})
        try:
            return function(*args, **options)
        finally:
            pop_shape_memo()

    return called


judged: Any = type(AbstractArray).__instancecheck__  # jaxtyping's own way
seen: set[Any] = set()  # annotation, type and numbers' type that were right before


def fits(annotation: Any, value: Any) -> bool:
    """Whether a value is such an array, its axes as large as those of the same names in this scope."""
    numbers = getattr(value, "dtype", None)
    if (annotation, type(value), numbers) not in seen:
        right = judged(annotation, value)
        if right:
            seen.add((annotation, type(value), numbers))
        return right
    names, shape, sizes = named(annotation), value.shape, get_shape_memo()[0]
    if names is None or len(names) != len(shape):
        return judged(annotation, value)
    found = dict(zip(names, shape, strict=True))
    if len(found) < len(names) or any(sizes.get(name, size) != size for name, size in found.items()):
        return judged(annotation, value)
    sizes.update(found)
    return True


@functools.cache
def named(annotation: Any) -> tuple[str, ...] | None:
    """The axes' names; None where one has none, or may be of several sizes."""
    plain = [type(axis) is _NamedDim and not axis.broadcastable and not axis.treepath for axis in annotation.dims]
    return tuple(axis.name for axis in annotation.dims) if all(plain) else None


type(AbstractArray).__instancecheck__ = fits  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(slots=True, eq=False)
class Checks:
    """The checks of a function, or of all closures of one code, and how many more calls in this test they are for.

    A function that is `led` here by a code of its own is checked in a copy.
    """

    function: Any
    left: int = CALLS
    led: Any = None
    way: CodeType | None = None
    compiled: "Compiled | None" = None
    strict: Any = None

    def begin(self) -> None:
        """The next calls are checked."""
        self.left = CALLS
        if self.led is not None:
            self.led.__code__ = self.way

    def spend(self) -> bool:
        """Whether this call is checked."""
        if self.left <= 0:
            return False
        self.left -= 1
        if not self.left:
            spent.append(self)
            if self.led is not None:
                self.led.__code__ = self.function.__code__
        return True

    def call(self, *args: Any, **options: Any) -> Any:
        """A call of the function that is led here."""
        if not self.spend():  # of another thread, begun before the last one that is checked
            return self.function(*args, **options)
        self.strict = self.strict or self.around(self.function)
        return self.strict(*args, **options)

    def around(self, function: FunctionType) -> Callable[..., Any]:
        """The function within its checks, which are compiled for the first of its closures."""
        compiled = self.compiled = self.compiled or Compiled.of(self.function)
        if not compiled.shaped:
            return compiled.calling(function)
        if inspect.isgeneratorfunction(function):  # jaxtyping's own way, in which what is yielded is not checked
            return whole(function, typechecker=lambda stub: Compiled.of(stub).calling(stub))
        return scoped(compiled.calling(function))


@dataclass(frozen=True, slots=True)
class Compiled:
    """A function, itself within beartype's checks (or as it was, without any), and whether shapes are among them."""

    function: Any
    wrapper: Any
    shaped: bool

    @classmethod
    def of(cls, function: FunctionType) -> "Compiled":
        twin = resolved(function)
        return cls(twin, typed(twin), any(map(is_shaped, twin.__annotations__.values())))

    def calling(self, function: FunctionType) -> Any:
        """The same checks around another closure: beartype's wrapper keeps what it needs as default values."""
        if self.wrapper is self.function:
            return function
        copy = FunctionType(self.wrapper.__code__, self.wrapper.__globals__)
        defaults = self.wrapper.__kwdefaults__.items()
        copy.__kwdefaults__ = {name: self.instead(value, function) for name, value in defaults}
        return functools.update_wrapper(copy, function)

    def instead(self, value: Any, function: FunctionType) -> Any:
        if value is self.function:
            return function
        return own_random.getrandbits if value == random.getrandbits else value


def resolved(function: FunctionType) -> Any:
    """A twin that is annotated by values alone; by Any for what is not defined (yet), as jaxtyping has it."""
    twin = copied(function)
    twin.__annotations__ = {name: value_of(hint, function) for name, hint in function.__annotations__.items()}
    return twin


def copied(function: FunctionType) -> Any:
    """Another function of the same code, which calls nothing but that."""
    twin: Any = FunctionType(function.__code__, function.__globals__, closure=function.__closure__)
    functools.update_wrapper(twin, function)
    del twin.__wrapped__
    twin.__defaults__, twin.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    return twin


def value_of(hint: Any, function: FunctionType) -> Any:
    def annotated() -> None: ...

    annotated.__annotations__ = {"hint": hint}
    try:
        return typing.get_type_hints(annotated, function.__globals__, include_extras=True)["hint"]
    except NameError:
        return Any


def is_shaped(hint: Any) -> bool:
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        return True
    arguments = hint if isinstance(hint, list) else typing.get_args(hint)
    return any(map(is_shaped, arguments))
