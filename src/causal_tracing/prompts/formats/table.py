"""The table of formats, and how a row's is found: by its exact keys, or by the name that is given."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from causal_tracing.errors import InvalidPair
from causal_tracing.prompts.formats import circuits, facts, grammar, mib
from causal_tracing.prompts.formats.fields import Fields, Row
from causal_tracing.prompts.formats.format import Format
from causal_tracing.prompts.formats.targets import spaced
from causal_tracing.validation import one_of

AUTO = "auto"
PAIRS = Format(
    name="pairs",
    keys=frozenset({"clean", "answer"}),
    about="this package's own rows: JSON, CSV, Parquet, tables",
    source="causal-tracing",
    gives="the fields of Pair; other fields become labels",
    example='{"clean": "Lake Nyos can be found in", "corrupt": "Lake Mead can be found in", "answer": " Cameroon"}',
    read=lambda row: [Row(place=row.place, values=row.values)],
)
FORMATS = (PAIRS, *facts.FORMATS, *mib.FORMATS, *circuits.FORMATS, *grammar.FORMATS)
NAMES = tuple(each.name for each in FORMATS)
ALIKE = 0.5  # of a format's keys: a row that has so many of them is meant to be one


def translated(rows: Iterable[tuple[str, Any]], asked: str = AUTO) -> Iterator[tuple[Format, Row]]:
    """Every row's format, and what it is as a pair's fields. Raises InvalidOption, InvalidPair."""
    if asked != AUTO:
        one_of("format", asked, (AUTO, *NAMES))
    first: tuple[Format, str] | None = None
    for place, row in rows:
        found = next(each for each in FORMATS if each.name == asked) if asked != AUTO else _recognised(row, place)
        first = first or (found, place)
        # By the first row: two formats in one file are more likely a mistake than meant.
        if found is not first[0]:
            before = first[1].rpartition(", ")[2]
            raise InvalidPair(
                f"{place}: this row is of the format {found.name}, and {before} is {first[0].name}. A file has rows of "
                "one format: part them, or say which is meant (format=, --format)."
            )
        if found is PAIRS or not isinstance(row, Mapping):
            yield PAIRS, Row(place=place, values=row)
            continue
        for each in found.read(Fields(place=place, format=found.name, values=row)):
            yield found, spaced(each) if found.bare else each


def _recognised(row: Any, place: str) -> Format:
    """The format whose keys a row has; this package's own where it has none's. Raises InvalidPair."""
    if not isinstance(row, Mapping):
        return PAIRS
    keys = {str(key) for key, value in row.items() if value is not None}
    own = {key.strip("\ufeff \t").lower() for key in keys}  # their capitals do not count
    fitting = [each for each in FORMATS if each.keys <= (own if each is PAIRS else keys)]
    # A format whose keys include another's is meant where all of them are there.
    fitting = [each for each in fitting if not any(each.keys < other.keys for other in fitting)]
    if len(fitting) > 1:
        names = " and ".join(each.name for each in fitting)
        raise InvalidPair(
            f"{place}: the keys of {names} are all here. Say which is meant: format={fitting[0].name!r} "
            f"(--format {fitting[0].name}), or take the other's out."
        )
    return fitting[0] if fitting else _nearly(keys, place)


def _nearly(keys: set[str], place: str) -> Format:
    """This package's own. Raises InvalidPair where a row has most of another format's keys, and lacks some."""
    near = max(FORMATS[1:], key=lambda each: len(each.keys & keys) / len(each.keys))
    # One key alone, such as "prompt", is no sign of any format.
    if len(near.keys & keys) / len(near.keys) < ALIKE or len(near.keys & keys) < 2:
        return PAIRS
    missing = ", ".join(sorted(near.keys - keys))
    raise InvalidPair(
        f"{place}: this looks like {near.name} ({near.about}), and lacks {missing}. causal-tracing datasets --formats "
        "shows what each format has; format= (--format) names the one that is meant."
    )


def as_text() -> str:
    """The table, as it is printed."""
    lines = []
    for each in FORMATS:
        lines += [
            f"{each.name}: {each.about}",
            f"  keys    {', '.join(sorted(each.keys))}",
            f"  gives   {each.gives}",
            f"  source  {each.source}",
            f"  row     {each.example}",
            "",
        ]
    return "\n".join(lines)
