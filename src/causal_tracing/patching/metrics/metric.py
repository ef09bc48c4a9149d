"""A metric as a value: a name, a unit, and the function that makes one number a world of what was read there.

The built-in ones are such values too (`built_in.py`). Nothing heavy is loaded here: options hold them.
"""

import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from types import CodeType, FunctionType
from typing import Any

from causal_tracing.errors import InvalidOption, nearest
from causal_tracing.results.units import METRICS

LOGITS, LOG_PROBS = "logits", "log_probs"
PLAIN = (str, bytes, int, float, complex, bool, type(None))  # whose repr says all of them
# What a table's other columns are called, so that no metric's may be.
TAKEN = (
    "pair", "cluster", "component", "layer", "head", "neuron", "expert", "query", "position", "role", "clean_token",
    "corrupt_token", "effect", "status", "metric", "unit",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of your own, for `metric=`: a number a world, in its unit. More must mean cleaner: that is its promise.

    name: how tables, pages and files call it: a Python name that no other metric has.
    unit: what its numbers are in, such as "logits".
    measure: a function of plain torch, (logits [world, vocab], clean [one or world, vocab], answers [world, answer],
        foils [world, foil]) -> [world]. `clean` are the log-probabilities of the worlds' clean runs, one row where all
        have the same. `answers` and `foils` are token ids, of worlds with equally many of them; `foils` has no column
        where a pair has none, or one of several tokens. It gets float32 at least, and a world's number may depend on
        its own row alone.
    takes: "logits", or "log_probs" for their log-softmax in their place.
    needs_foil: it is undefined (NaN) for pairs without a foil.
    reads_texts: False where it looks at neither answers nor foils, so that it is defined whatever they are.
    few: True where it looks at the logits of answers and foils alone: the others need not be computed. Its `logits` and
        `clean` may then be those of few words, which answers and foils number.
    of_texts: for texts of several tokens, (log-probability of the answers, of the foils) as float64 numbers, NaN
        without a foil, -> the number. Without it, the metric is undefined for them, with the reason.

    Raises InvalidOption for a value that cannot be meant.

        >>> Metric("margin", "logits", lambda logits, clean, answers, foils: logits[:, 0] - logits[:, 1])
    """

    name: str
    unit: str
    measure: Callable[..., Any]
    _: KW_ONLY
    takes: str = LOGITS
    needs_foil: bool = False
    reads_texts: bool = True
    of_texts: Callable[..., Any] | None = None
    few: bool = False

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and self.name.isidentifier()) or self.name in TAKEN:
            raise InvalidOption(
                f"A metric's name must be a Python name, and none of {', '.join(TAKEN)}; it is {self.name!r}."
            )
        if not isinstance(self.unit, str) or not self.unit.strip():
            raise InvalidOption(f"metric {self.name}: the unit must be a text, such as 'logits'; it is {self.unit!r}.")
        if self.takes not in (LOGITS, LOG_PROBS):
            raise InvalidOption(f"metric {self.name}: takes must be 'logits' or 'log_probs'; it is {self.takes!r}.")
        if self.few is True and self.takes == LOG_PROBS:
            raise InvalidOption(f"metric {self.name}: log-probabilities need all logits: leave few= or takes= out.")
        for name in ("needs_foil", "reads_texts", "few"):
            if type(getattr(self, name)) is not bool:
                raise InvalidOption(f"metric {self.name}: {name} must be True or False; it is {getattr(self, name)!r}.")
        for name, function in (("measure", self.measure), ("of_texts", self.of_texts)):
            if not isinstance(function, FunctionType) and (name == "measure" or function is not None):
                raise InvalidOption(
                    f"metric {self.name}: {name} must be a function (def or lambda), so that it can be recorded; it is "
                    f"{function!r}."
                )

    def record(self) -> dict[str, Any]:
        """What is kept of it with a result: its name and unit, and a hash of all that says how it measures.

        Raises InvalidOption where a function uses a value that cannot be told from another.
        """
        found = hashlib.sha256(repr((self.takes, self.needs_foil, self.reads_texts)).encode())
        # Hashed only where it is set: records of metrics made before there was such a thing stay the same.
        if self.few:
            found.update(b"few")
        for function in (self.measure, self.of_texts):
            for part in _said(self.name, function):
                found.update(len(part).to_bytes(8, "big") + part)
        return {"name": self.name, "unit": self.unit, "source_sha256": found.hexdigest()}


def _said(name: str, value: Any) -> Iterator[bytes]:
    """What tells a function from others: its code, its defaults, what it closes over, functions it calls by name."""
    if isinstance(value, PLAIN):
        yield repr(value).encode()
    elif isinstance(value, (tuple, list)):
        yield f"{type(value).__name__} {len(value)}".encode()
        for each in value:
            yield from _said(name, each)
    elif isinstance(value, FunctionType):
        yield from _of_code(value.__code__)
        yield from _said(name, value.__defaults__)
        yield from _said(name, [*(value.__kwdefaults__ or {}).items()])
        used = inspect.getclosurevars(value)
        for each, held in sorted({**used.globals, **used.nonlocals}.items()):
            yield each.encode()
            if held is not value:  # a function may call itself
                yield from _said(name, held)
    elif inspect.ismodule(value) or inspect.isbuiltin(value) or inspect.isclass(value):
        yield f"{value.__name__}".encode()
    elif hasattr(value, "numpy") and hasattr(value, "detach"):  # a tensor
        array = value.detach().cpu().numpy()
        yield f"{array.dtype} {array.shape}".encode()
        yield array.tobytes()
    else:
        raise InvalidOption(
            f"metric {name}: its function uses {type(value).__name__} {str(value)[:60]!r} from outside, and a result "
            "could not say which. Use numbers, texts, tensors and functions, or write it inside the function."
        )


def _of_code(code: CodeType) -> Iterator[bytes]:
    """The text that a function was written as; where that is not to be had, what it was compiled to."""
    try:
        yield inspect.getsource(code).strip().encode()
    except (OSError, TypeError):
        yield code.co_code
        yield repr([each for each in code.co_consts if isinstance(each, PLAIN)]).encode()
        yield repr(code.co_names).encode()


Asked = str | Metric


def listed(asked: Asked | Sequence[Asked] | None) -> tuple[Asked, ...]:
    """What `metric=` names, one by one; none of None."""
    return () if asked is None else (asked,) if isinstance(asked, (str, Metric)) else tuple(asked)


def check_metrics(asked: Any, valid: Sequence[str]) -> None:
    """Raises InvalidOption where these are no metrics to trace by, or two of one name."""
    if asked is not None and not isinstance(asked, (str, Metric, list, tuple)):
        raise InvalidOption(f"metric= is a name, a Metric, or a list of such; it is {asked!r}.")
    found = listed(asked)
    if asked is not None and not found:
        raise InvalidOption(f"No metric was asked for. Valid: {', '.join(valid)}.")
    for each in found:
        if not isinstance(each, (str, Metric)):
            raise InvalidOption(f"metric= holds names and Metrics; it holds {each!r}.")
        if isinstance(each, str) and each not in valid:
            raise InvalidOption(f"There is no metric {each!r} to trace by. {nearest(each, valid)}")
        if isinstance(each, Metric) and each.name in METRICS:
            raise InvalidOption(f"There is a metric {each.name!r} already: give yours another name.")
    names = [name_of(each) for each in found]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InvalidOption(f"The metric {twice[0]!r} is asked for twice. Name each once.")


def name_of(asked: Asked) -> str:
    """What a metric is called."""
    return asked.name if isinstance(asked, Metric) else asked


def kept(asked: Asked | Sequence[Asked] | None) -> Any:
    """What a record has of `metric=`: a name, a function's record, or a list of such."""
    found = [each.record() if isinstance(each, Metric) else each for each in listed(asked)]
    return found[0] if len(found) == 1 else found or None
