"""What is known of a format: its name, the keys that it is recognised by, and how its rows become pairs."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from causal_tracing.prompts.formats.fields import Fields, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A kind of file. A row, or a whole JSON object, that has all of `keys` is of this format.

    `about` says which file that is, and `gives` what becomes what; `example` is one row of it, as JSON. `bare`: targets
    are written without the space that a model's token has.
    """

    name: str
    keys: frozenset[str]
    about: str
    source: str
    gives: str
    example: str
    read: Callable[[Fields], Iterable[Row]]
    bare: bool = False
