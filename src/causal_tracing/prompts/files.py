"""Pairs from rows: JSON Lines, CSV, Parquet, a Hugging Face Dataset, a list, or a built-in set.

A row has the fields of Pair; other fields become labels. Whatever it comes from, a row is checked in one place, and an
error names the line or row.
"""

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from causal_tracing.errors import InvalidPair, MachineError
from causal_tracing.prompts import datasets
from causal_tracing.prompts.pairs import Pair

LONGEST = 200_000  # letters: more than any prompt that could be traced, and short enough to be tokenised in a moment
FIELDS = tuple(field.name for field in fields(Pair))
SPAN = "spans."  # how a CSV file heads the column of a named span
# Characters that show text in another order than it has.
EMBEDDINGS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
Rows = Iterator[tuple[str, Mapping[str, Any]]]  # where a row stands, and the row


def read_pairs(source: Any, *, chat: bool = False) -> list[Pair]:
    """The pairs of a source, in its order; fields that Pair does not have are kept as labels.

    `source` is a file (`.csv`, `.parquet`, else JSON Lines: one object a line), the name of a built-in set ("facts",
    or a part of it, "facts:capital"), a Hugging Face Dataset, or rows as mappings. In CSV, empty cells are missing
    fields and `spans.NAME` heads a named span. `chat` puts every prompt through the tokenizer's chat template.

    Raises InvalidPair, naming the line or row: not JSON, a missing or wrong field, an id that was used before,
    characters that hide or reorder text; MachineError where Parquet cannot be read for want of pyarrow.
    """
    if isinstance(source, (str, Path)):
        named, rows = str(source), _rows_of_path(Path(source))
    elif isinstance(source, Iterable) and not isinstance(source, Mapping):
        named, rows = "the rows", ((f"row {n}", row) for n, row in enumerate(source))
    else:
        raise InvalidPair(
            f"Pairs come from a file, a Dataset or a list of rows; this is {type(source).__name__}. Of a DatasetDict "
            "name the split."
        )
    pairs: list[Pair] = []
    places: dict[str, str] = {}
    for place, row in rows:
        pair = row if isinstance(row, Pair) else _pair(row, place)
        if pair.id in places:
            raise InvalidPair(f"{place}: the id {pair.id!r} was used in {places[pair.id]} already.")
        if pair.id is not None:
            places[pair.id] = place.removeprefix(f"{named}, ")
        pairs.append(replace(pair, chat=True) if chat else pair)
    if not pairs:
        raise InvalidPair(f"{named} has no pairs. Every row is a pair, with clean and answer at least.")
    return pairs


def _rows_of_path(path: Path) -> Rows:
    """The rows of a file, or of the built-in set of this name. Raises InvalidPair."""
    if not _is_there(path):
        if datasets.is_name(str(path)):
            return ((f"{path}, row {n}", row) for n, row in enumerate(datasets.rows(str(path))))
        raise InvalidPair(
            f"{path} is not there, and no built-in set is called so. Name a file of pairs (one JSON object a line, CSV "
            f"or Parquet), or one of {', '.join(datasets.NAMES)}."
        )
    read = {".csv": _csv_rows, ".parquet": _parquet_rows}.get(path.suffix.lower(), _json_rows)
    return read(path)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long for a name, or with a NUL
        return False


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidPair(f"{path} cannot be read as text (UTF-8): {error}") from None


def _json_rows(path: Path) -> Rows:
    for number, line in enumerate(_text(path).split("\n"), start=1):  # not splitlines: JSON may hold U+2028
        if line.strip():
            place = f"{path}, line {number}"
            try:
                row = json.loads(line, parse_constant=_no_number, object_pairs_hook=_unique)
            except (ValueError, RecursionError) as error:
                raise InvalidPair(f"{place}: not JSON ({error}).") from None
            yield place, row


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(items)
    if len(found) < len(items):
        names = [name for name, _ in items]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def _csv_rows(path: Path) -> Rows:
    lines = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    place = f"{path}, line 1"
    try:
        header = next(lines, None)
        if header is None or len(set(header)) < len(header):
            raise InvalidPair(f"{place}: a header is needed, with every column named once; found {header}.")
        for cells in lines:
            place = f"{path}, line {lines.line_num}"
            if len(cells) != len(header):
                if not any(cells):
                    continue
                raise InvalidPair(f"{place}: {len(cells)} cells, and {len(header)} columns. Quote texts with commas.")
            yield place, _from_csv(dict(zip(header, cells, strict=True)), place)
    except csv.Error as error:
        raise InvalidPair(f"{place}: not CSV ({error}).") from None


def _from_csv(cells: Mapping[str, str], place: str) -> dict[str, Any]:
    """A row of texts as a pair's fields."""
    row: dict[str, Any] = {name: cell for name, cell in cells.items() if cell and not name.startswith(SPAN)}
    spans = {name.removeprefix(SPAN): cell for name, cell in cells.items() if cell and name.startswith(SPAN)}
    if "occurrence" in row:
        if not re.fullmatch(r"-?[0-9]{1,6}", row["occurrence"]):
            raise InvalidPair(f"{place}: occurrence must be a whole number, and is {row['occurrence']!r}.")
        row["occurrence"] = int(row["occurrence"])
    if "chat" in row:
        if row["chat"].lower() not in ("true", "false"):
            raise InvalidPair(f"{place}: chat must be true or false, and is {row['chat']!r}.")
        row["chat"] = row["chat"].lower() == "true"
    return row | ({"spans": spans} if spans else {})


def _parquet_rows(path: Path) -> Rows:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise MachineError('Parquet needs pyarrow: pip install "causal-tracing[export]".') from None
    try:
        rows = ParquetFile(path).read().to_pylist()
    except (ArrowException, OSError) as error:
        raise InvalidPair(f"{path} cannot be read as Parquet: {error}") from None
    for number, row in enumerate(rows):
        yield f"{path}, row {number}", row


def _pair(row: Any, place: str) -> Pair:
    """A row as a pair. Raises InvalidPair."""
    if not isinstance(row, Mapping):
        shown = repr(row)[:80]
        raise InvalidPair(f'{place}: a JSON object is needed, such as {{"clean": …, "answer": …}}; found {shown}.')
    row = {name: _without_gaps(value) for name, value in row.items() if value is not None}
    missing = [name for name in ("clean", "answer") if name not in row]
    if missing:
        raise InvalidPair(f"{place}: {' and '.join(missing)} missing. Every pair needs clean and answer.")
    for name in ("spans", "labels"):
        if not isinstance(row.get(name, {}), dict):
            raise InvalidPair(f"{place}: {name} must be an object of names and texts, and is {row[name]!r}.")
    _check_texts(row, place)
    known = {name: value for name, value in row.items() if name in FIELDS and name != "labels"}
    labels = {str(name): value for name, value in row.items() if name not in FIELDS} | row.get("labels", {})
    try:
        return Pair(**known, labels=labels)
    except InvalidPair as error:
        raise InvalidPair(f"{place}: {error}") from None


def _without_gaps(value: Any) -> Any:
    """A mapping without what is missing in it: tables have every key in every row."""
    return {name: each for name, each in value.items() if each is not None} if isinstance(value, Mapping) else value


def _check_texts(row: Mapping[str, Any], place: str) -> None:
    """Raises InvalidPair for texts that are too long, or have characters that hide or reorder what is shown."""
    texts = {name: value for name, value in row.items() if isinstance(value, str)}
    texts |= {f"spans.{name}": value for name, value in row.get("spans", {}).items() if isinstance(value, str)}
    for name, text in texts.items():
        if len(text) > LONGEST:
            raise InvalidPair(f"{place}: {name} has {len(text):,} letters; {LONGEST:,} are the most that is read.")
        for at, letter in enumerate(text):
            if letter == "\0" or unicodedata.bidirectional(letter) in EMBEDDINGS:
                known = f"{unicodedata.name(letter, 'NUL')} (U+{ord(letter):04X})"
                raise InvalidPair(f"{place}: {name} has a {known} at {at}: text would not look as it is.")
    for name in ("id", "cluster"):
        if re.search(r"[/\\\x00-\x1f\x7f]", texts.get(name, "")):
            raise InvalidPair(f"{place}: {name} {texts[name]!r} has a slash or a control character. Use other letters.")
