"""Pairs from rows: JSON, CSV, Parquet, a Hugging Face Dataset, a DataFrame, a list, or a built-in set.

1. Rows are read from what holds them, each with its place (its line, or its number).
2. A row of another format (`formats/table.py`) is made the fields of Pair; other fields become labels.
3. Every row is checked in one place, and an error names the line or row.
"""

import csv
import io
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from causal_tracing.errors import FormatNote, InvalidPair, MachineError, warn
from causal_tracing.prompts import datasets
from causal_tracing.prompts.answers import meant
from causal_tracing.prompts.cells import as_python, label, without_gaps
from causal_tracing.prompts.formats.fields import Row
from causal_tracing.prompts.formats.table import AUTO, PAIRS, translated
from causal_tracing.prompts.formats.targets import in_texts, names_tokens
from causal_tracing.prompts.pairs import Pair
from causal_tracing.prompts.relations import corrupted

LONGEST = 200_000  # letters: more than any prompt that could be traced, and short enough to be tokenised in a moment
FIELDS = tuple(field.name for field in fields(Pair))
SPANS = ("spans", "corrupt_spans")  # a table heads the column of a named span by one of these, a dot and the name
OTHERS = (".xlsx", ".xls", ".ods", ".gz", ".zip", ".bz2", ".xz", ".feather", ".arrow", ".pkl", ".npz", ".h5")
SEPARATORS = ",;\t|"
NEEDED = ("clean", "answer")
SETS = ("answer", "foil")  # what may be several texts
NAMES = ("id", "cluster")
WHOLE = ("occurrence", *NAMES)  # numbers that a column with gaps holds as 1.0
TABLES, LINES = (".csv", ".tsv"), (".json", ".jsonl", ".ndjson")  # other endings say nothing of what is in a file
# Characters that show text in another order than it has.
EMBEDDINGS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
Rows = Iterator[tuple[str, Mapping[str, Any]]]  # where a row stands, and the row


def read_pairs(
    source: Any,
    *,
    chat: bool = False,
    format: str = AUTO,
    tokenizer: Any = None,
    corrupt_by: str | None = None,
    seed: int = 0,
) -> list[Pair]:
    """The pairs of a source, in its order; fields that Pair does not have are kept as labels.

    source: a file (CSV, `.parquet`, or JSON: one object a line, or a list of them), the name of a built-in set
        ("facts", or a part of it, "facts:capital"), a Hugging Face Dataset, a DataFrame, or rows as mappings.
        Empty cells and NaN are missing fields, and `spans.NAME` (`corrupt_spans.NAME`) heads a named span.
        CSV may be separated by commas, semicolons, tabs or bars; capitals in the names of Pair's fields do not count.
        `answer` and `foil` may be lists of texts, in a cell of CSV as a JSON list ([" he", " his"]).
    chat: puts every prompt through the tokenizer's chat template.
    format: "pairs" (rows with the fields of Pair), or the format of others that the rows have, such as "counterfact"
        (`causal-tracing datasets --formats`); "auto" recognises it by its exact keys.
    tokenizer: the model's (`model.tokenizer`), for what depends on tokens: rows of token ids, and corrupt_by.
    corrupt_by: "relation" makes the missing corrupt prompts: the same prompt with the subject of another fact of the
        label `relation`, with another answer and equally many tokens.
    seed: chooses those.

    Raises InvalidPair, naming the line or row: not JSON, a missing or wrong field, keys of two formats, an id that was
    used before, characters that hide or reorder text; InvalidOption for a format or a way to corrupt that is not there;
    MachineError where Parquet cannot be read for want of pyarrow. What a format leaves out, or is changed in its rows,
    is said in a FormatNote.

    Example:
        model = ct.load("demo")
        pairs = ct.read_pairs("known_1000.json", corrupt_by="relation", tokenizer=model.tokenizer)
    """
    pairs = read(source, format=format).pairs(tokenizer, chat=chat)
    return pairs if corrupt_by is None else corrupted(pairs, corrupt_by, tokenizer, seed=seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRows:
    """The rows of a source, each as the fields of a pair: checked as far as that needs no tokenizer."""

    named: str
    format: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def needs_tokenizer(self) -> bool:
        """Whether texts are named by tokens."""
        return any(names_tokens(row) for row in self.rows)

    def pairs(self, tokenizer: Any = None, *, chat: bool = False) -> list[Pair]:
        """The pairs. Raises InvalidPair, naming the row; warns with a FormatNote of what was changed."""
        pairs: list[Pair] = []
        places: dict[str, str] = {}
        for row in self.rows:
            values = in_texts(row, tokenizer)
            pair = values if isinstance(values, Pair) else _pair(values, row.place)
            if pair.id in places:
                raise InvalidPair(f"{row.place}: the id {pair.id!r} was used in {places[pair.id]} already.")
            if pair.id is not None:
                places[pair.id] = row.place.removeprefix(f"{self.named}, ")
            pairs.append(replace(pair, chat=True) if chat else pair)
        if not pairs:
            raise InvalidPair(f"{self.named} has no pairs. Every row is a pair, with clean and answer at least.")
        for note in self.notes:
            warn(f"{self.named} ({self.format}): {note}", FormatNote)
        return pairs


def read(source: Any, *, format: str = AUTO) -> ReadRows:
    """The rows of a source as pairs' fields. Raises what `read_pairs` does of rows and formats."""
    if isinstance(source, (str, os.PathLike)):
        named = os.fsdecode(source)
        rows = _rows_of_path(named)
    elif isinstance(listed := _rows_of(source), Iterable) and not isinstance(listed, (Mapping, bytes)):
        named, rows = "the rows", ((f"row {n}", row) for n, row in enumerate(listed))
    else:
        raise InvalidPair(
            f"Pairs come from a file by its name, a Dataset, a DataFrame or a list of rows; this is "
            f"{type(source).__name__}. Of a DatasetDict name the split; put a single row into a list."
        )
    found = list(translated(((place, without_gaps(row)) for place, row in rows), format))
    notes = Counter(note for _, row in found for note in row.notes)
    return ReadRows(
        named=named,
        format=found[0][0].name if found else PAIRS.name,
        rows=tuple(row for _, row in found),
        notes=tuple(f"{note} ({'1 row' if times == 1 else f'{times} rows'})." for note, times in notes.items()),
    )


def _rows_of_path(named: str) -> Rows:
    """The rows of a file, or of the built-in set of this name. Raises InvalidPair."""
    path = Path(named)
    # A folder may be called as a set is: that of its run. False of what can be no path, where pathlib raises.
    if datasets.is_name(named) and (os.path.isdir(path) or not os.path.exists(path)):
        return ((f"{named}, row {n}", row) for n, row in enumerate(datasets.rows(named)))
    if not named or not os.path.exists(path):
        elsewhere = " Nothing is fetched from a network: save it here first." if "://" in named else ""
        raise InvalidPair(
            f"{named or repr(named)} is not there, and no built-in set is called so.{elsewhere} Name a file of pairs "
            f"(JSON, CSV or Parquet), or one of {', '.join(datasets.NAMES)}."
        )
    ending = path.suffix.lower()
    if os.path.isdir(path) or ending in OTHERS:
        what = "this is a folder" if os.path.isdir(path) else f"files that end in {path.suffix} are not read"
        raise InvalidPair(
            f"{path}: {what}. Save the pairs as CSV, JSON or Parquet, and name that file, or give read_pairs(...) a "
            "DataFrame of them."
        )
    if ending == ".parquet":
        return _parquet_rows(path)
    text = _text(path)
    is_table = ending in TABLES or (ending not in LINES and _is_table(text))
    return _csv_rows(text, path) if is_table else _json_rows(text, path)


def _rows_of(source: Any) -> Any:
    """The rows of a table in memory (pandas, polars, pyarrow); of anything else, what it holds. Raises InvalidPair."""
    if hasattr(source, "read"):
        raise InvalidPair("An open file was given. Give its name, or its rows as mappings.")
    for rows in ("to_dicts", "to_pylist"):
        if hasattr(source, rows):
            _check_columns(getattr(source, "column_names", ()))
            return getattr(source, rows)()
    if hasattr(source, "columns") and hasattr(source, "to_dict"):
        _check_columns(source.columns)
        return source.to_dict("records")
    return source


def _check_columns(names: Iterable[Any]) -> None:
    """Raises InvalidPair where two columns have one name: a row would have the last one alone."""
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise InvalidPair(f"Two columns are called {twice[0]!r}. Name every column once.")


def _text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # a line that ends in a cell stays as it is
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidPair(f"{path} cannot be read as text (UTF-8): {error}") from None


def _json_rows(text: str, path: Path) -> Rows:
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    whole = _document(text, path)
    if whole is not None:
        yield from ((f"{path}, row {n}", row) for n, row in enumerate(whole))
        return
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: JSON may hold U+2028
        if line.strip():
            place = f"{path}, line {number}"
            yield place, _json(line, place)


def _document(text: str, path: Path) -> list[Any] | None:
    """The rows of a text that is one JSON document: a list, or an object over several lines. None where it is lines."""
    begun = text.lstrip()
    if begun.startswith("["):
        found = _json(text, str(path))
        return found if isinstance(found, list) else [found]
    if _is_json(begun.partition("\n")[0]) or not _is_json(text):
        return None
    return [_json(text, str(path))]


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_number, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise InvalidPair(f"{place}: not JSON ({error}).") from None


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(items)
    if len(found) < len(items):
        names = [name for name, _ in items]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def _is_table(text: str) -> bool:
    """Whether a text is CSV, by a header that has the needed fields."""
    return {*NEEDED} <= {*map(_field, _header(text, _separator(text)))}


def _csv_rows(text: str, path: Path) -> Rows:
    place = f"{path}, line 1"
    lines = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=_separator(text))
    try:
        header = next(lines, None)
        if header is None or len(set(header)) < len(header):
            raise InvalidPair(f"{place}: a header is needed, with every column named once; found {header}.")
        for cells in lines:
            place = f"{path}, line {lines.line_num}"
            if len(cells) != len(header):
                if not any(cells):
                    continue
                raise InvalidPair(
                    f"{place}: {len(cells)} cells, and {len(header)} columns. Quote texts that hold the separator."
                )
            yield place, _from_csv(dict(zip(header, cells, strict=True)), place)
    except csv.Error as error:
        raise InvalidPair(f"{place}: not CSV ({error}).") from None


def _separator(text: str) -> str:
    """What separates the cells of a CSV file: what makes the needed fields of its header, or else most columns."""
    headers = {separator: [*map(_field, _header(text, separator))] for separator in SEPARATORS}
    # The needed fields count first: a text full of commas makes more columns than the true separator.
    return max(SEPARATORS, key=lambda each: (set(NEEDED) <= {*headers[each]}, len(headers[each])))


def _header(text: str, separator: str) -> list[str]:
    """The first cells of a text; none of one that is no CSV."""
    try:
        return next(csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator), [])
    except csv.Error:
        return []


def _from_csv(cells: Mapping[str, str], place: str) -> dict[str, Any]:
    """A row of texts as a pair's fields."""
    row: dict[str, Any] = _by_field({name: cell for name, cell in cells.items() if cell}, place)
    for name in SETS:
        if name in row:
            row[name] = meant(f"{place}: {name}", row[name])
    if "occurrence" in row:
        if not re.fullmatch(r"-?[0-9]{1,6}", row["occurrence"]):
            raise InvalidPair(f"{place}: occurrence must be a whole number, and is {row['occurrence']!r}.")
        row["occurrence"] = int(row["occurrence"])
    if "chat" in row:
        if row["chat"].lower() not in ("true", "false"):
            raise InvalidPair(f"{place}: chat must be true or false, and is {row['chat']!r}.")
        row["chat"] = row["chat"].lower() == "true"
    return row


def _field(name: Any) -> str:
    """The field that a column is called by, whatever its capitals; else the column's own name."""
    plain = str(name).strip("\ufeff \t").lower()
    return plain if plain in FIELDS else str(name)


def _by_field(row: Mapping[Any, Any], place: str) -> dict[str, Any]:
    """What a row has, by the names of fields, its spans put together. Raises InvalidPair where two names are one."""
    found: dict[str, Any] = {}
    columns: dict[str, dict[str, Any]] = {}
    for name, value in row.items():
        head, dot, span = str(name).partition(".")
        if dot and head.lower() in SPANS:
            columns.setdefault(head.lower(), {})[span] = value
            continue
        field = _field(name)
        if field in found:
            raise InvalidPair(f"{place}: {field!r} is there twice (capitals do not count): {', '.join(map(str, row))}.")
        found[field] = value
    for field, spans in columns.items():
        found[field] = spans | found[field] if isinstance(found.get(field), Mapping) else spans
    return found


def _parquet_rows(path: Path) -> Rows:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise MachineError('Parquet needs pyarrow: pip install "causal-tracing[export]".') from None
    try:
        with path.open("rb") as file:  # pyarrow opens no file whose name is not UTF-8
            table = ParquetFile(file).read()
        _check_columns(table.column_names)
        rows = table.to_pylist()
    except (ArrowException, OSError) as error:
        raise InvalidPair(f"{path} cannot be read as Parquet: {error}") from None
    for number, row in enumerate(rows):
        yield f"{path}, row {number}", row


def _pair(row: Any, place: str) -> Pair:
    """A row as a pair. Raises InvalidPair."""
    if not isinstance(row, Mapping):
        shown = repr(row)[:80]
        raise InvalidPair(f'{place}: a JSON object is needed, such as {{"clean": …, "answer": …}}; found {shown}.')
    row = _by_field(row, place)
    missing = [name for name in NEEDED if name not in row]
    if missing:
        there = ", ".join(repr(str(name))[:40] for name in row) or "nothing"
        raise InvalidPair(
            f"{place}: {' and '.join(missing)} missing. Every pair needs clean and answer; here is {there}."
        )
    row = {name: as_python(each) for name, each in row.items()}
    row |= {name: int(row[name]) for name in WHOLE if isinstance(row.get(name), float) and row[name].is_integer()}
    row |= {name: str(row[name]) for name in NAMES if type(row.get(name)) is int}  # and no bool
    for name in (*SPANS, "labels"):
        if not isinstance(row.get(name, {}), dict):
            raise InvalidPair(f"{place}: {name} must be an object of names and texts, and is {row[name]!r}.")
    _check_texts(row, place)
    known = {name: value for name, value in row.items() if name in FIELDS and name != "labels"}
    labels = {str(name): label(value) for name, value in row.items() if name not in FIELDS}
    labels |= {str(name): label(value) for name, value in row.get("labels", {}).items()}
    try:
        return Pair(**known, labels=labels)
    except InvalidPair as error:
        raise InvalidPair(f"{place}: {error}") from None


def _check_texts(row: Mapping[str, Any], place: str) -> None:
    """Raises InvalidPair for texts that are too long, or have characters that hide or reorder what is shown."""
    texts = {name: value for name, value in row.items() if isinstance(value, str)}
    for name in SETS:
        several = row.get(name)
        if isinstance(several, (list, tuple)):
            texts |= {f"{name}, text {n}": value for n, value in enumerate(several) if isinstance(value, str)}
    for spans in SPANS:
        texts |= {f"{spans}.{name}": each for name, each in row.get(spans, {}).items() if isinstance(each, str)}
    for name, text in texts.items():
        if len(text) > LONGEST:
            raise InvalidPair(f"{place}: {name} has {len(text):,} letters; {LONGEST:,} are the most that is read.")
        for at, letter in enumerate(text):
            if letter == "\0" or unicodedata.bidirectional(letter) in EMBEDDINGS:
                known = f"{unicodedata.name(letter, 'NUL')} (U+{ord(letter):04X})"
                raise InvalidPair(f"{place}: {name} has a {known} at {at}: text would not look as it is.")
    for name in ("id", "cluster"):
        # Ids become names in files, tables and pages.
        if re.search(r"[/\\\x00-\x1f\x7f]", texts.get(name, "")):
            raise InvalidPair(f"{place}: {name} {texts[name]!r} has a slash or a control character. Use other letters.")
