"""A row of a foreign file, read by its keys: what is missing, or of another kind, is one error that says where."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from causal_tracing.errors import InvalidPair
from causal_tracing.prompts.tokens import occurrences

SLOT = "{}"  # where a template has its subject


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenId:
    """A text that a file names by a token of one tokenizer."""

    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A pair's fields, where they stand in their source, and what was left out or made of them."""

    place: str
    values: Any
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """An object of a file of this format. `path` is where it lies in its row, such as "requested_rewrite."."""

    place: str
    format: str
    values: Mapping[str, Any]
    path: str = ""

    def row(self, *, notes: tuple[str, ...] = (), labels: Mapping[str, Any] | None = None, **values: Any) -> Row:
        """The row as a pair's fields; what is None is left out."""
        given = {name: value for name, value in values.items() if value is not None}
        return Row(place=self.place, values=given | {"labels": dict(labels or {})}, notes=notes)

    def text(self, key: str) -> str:
        """A text. Raises InvalidPair."""
        return self._typed(key, str, "a text")

    def name(self, key: str) -> str:
        """A text or a whole number, as a text. Raises InvalidPair."""
        return str(self._typed(key, (str, int), "a text or a whole number"))

    def whole(self, key: str) -> int:
        """A whole number, as a number or (in CSV) as a text. Raises InvalidPair."""
        value = self._value(key)
        if isinstance(value, str) and value.isdecimal():
            return int(value)
        if isinstance(value, float) and value.is_integer():  # a column with gaps
            return int(value)
        return self._typed(key, int, "a whole number")

    def flag(self, key: str) -> bool:
        """Whether it is so: true or false, 1 or 0. Raises InvalidPair."""
        value = self._value(key)
        if value not in (True, False, "1", "0", "true", "false"):
            raise self.wrong(f"{self.path}{key} must be true or false, and is {value!r:.80}.")
        return value in (True, "1", "true")

    def inside(self, key: str) -> "Fields":
        """An object within this one. Raises InvalidPair."""
        values = self._typed(key, Mapping, "an object")
        return Fields(place=self.place, format=self.format, values=values, path=f"{self.path}{key}.")

    def listed(self, key: str) -> list[Any]:
        """A list, with something in it. Raises InvalidPair."""
        value = self._value(key)
        found = value.tolist() if hasattr(value, "tolist") else value  # a table's cell may be an array
        if not isinstance(found, (list, tuple)) or not found:
            raise self.wrong(f"{self.path}{key} must be a list with something in it, and is {value!r:.80}.")
        return list(found)

    def texts(self, key: str) -> list[str]:
        """A list of texts. Raises InvalidPair."""
        found = self.listed(key)
        for number, value in enumerate(found):
            if not isinstance(value, str):
                raise self.wrong(f"{self.path}{key}[{number}] must be a text, and is {value!r:.80}.")
        return found

    def each(self, key: str) -> Iterator["Fields"]:
        """The objects of a list. Raises InvalidPair."""
        for number, value in enumerate(self.listed(key)):
            place = f"{self.path}{key}[{number}]"
            if not isinstance(value, Mapping):
                raise self.wrong(f"{place} must be an object, and is {value!r:.80}.")
            yield Fields(place=self.place, format=self.format, values=value, path=f"{place}.")

    def rest(self, *used: str) -> dict[str, Any]:
        """What is not used otherwise, where it is a single value: a pair's labels."""
        return {
            str(key): value
            for key, value in self.values.items()
            if key and key not in used and isinstance(value, (str, int, float, bool))
        }

    def filled(self, template: str, subject: str) -> dict[str, Any]:
        """The prompt that a template and its subject make, and which place is the subject's. Raises InvalidPair."""
        if template.count(SLOT) != 1:
            raise self.wrong(f"the template {template!r:.80} must have one {SLOT}, where the subject stands.")
        clean, start = template.replace(SLOT, subject), template.index(SLOT)
        return {"clean": clean, "subject": subject, "occurrence": occurrences(clean, subject).index(start)}

    def wrong(self, what: str) -> InvalidPair:
        """The error that says where, and of which format."""
        return InvalidPair(f"{self.place}, read as {self.format}: {what}")

    def _value(self, key: str) -> Any:
        if self.values.get(key) is None:
            there = ", ".join(repr(str(name))[:40] for name in self.values) or "nothing"
            raise self.wrong(f"{self.path}{key} is missing; here is {there}.")
        return self.values[key]

    def _typed(self, key: str, kind: Any, called: str) -> Any:
        value = self._value(key)
        # true is a number to Python, and none in a file.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.wrong(f"{self.path}{key} must be {called}, and is {value!r:.80}.")
        return value
