"""Strict readers of local files, the one way in for loading and for `finetune validate`; no torch, no datasets.

The csv and json builders of the datasets library are not used on local files, because they guess: a CSV line with a
field too many moves its neighbours into the wrong columns, the label NA becomes null, 01 becomes 1, and texts
that look like dates become timestamps. They also cannot say on which line a row stood.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from finetune.data.layout import DataFile, Layout
from finetune.data.rows import Rows
from finetune.errors import DataError, nearest

MAX_FIELD_CHARACTERS = 2**27  # a longer field is a quote that was never closed
_BOM = codecs.BOM_UTF8


@dataclass(frozen=True)
class Columns:
    """Names of the text and label columns."""

    text: str
    label: str


@dataclass
class _Collected:
    """Rows being gathered; refuses what is no text or no label at the moment it is met."""

    texts: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    columns: tuple[str, ...] = ()
    fallback: list[str] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)

    def add(self, text: object, label: object, place: str) -> None:
        self.texts.append(as_text(text, place))
        self.labels.append(as_label(label, place))
        self.places.append(place)
        self.kinds.setdefault(type(label).__name__, place)
        if len(self.kinds) > 1:
            (one, first), (other, second) = list(self.kinds.items())[:2]
            raise DataError(f"labels are of mixed types: {one} at {first}, {other} at {second}; write them all alike")


def read_rows(layout: Layout, columns: Columns, encoding: str) -> Rows:
    """Read every row of a local source, in the layout's order.

    `encoding` may name several, separated by commas: each file is read with the first that fits it.
    Raises DataError, naming file and line, for anything that is not exactly a table of texts and labels.
    """
    rows = _Collected()
    for file in layout.files:
        if layout.format == "folder":
            text = decode_file(file, encoding, rows.fallback).replace("\r\n", "\n").replace("\r", "\n")
            rows.add(text, file.label, file.place)
        elif layout.format in ("csv", "tsv"):
            _read_csv(file, "," if layout.format == "csv" else "\t", columns, encoding, rows)
        elif layout.format == "jsonl":
            _read_jsonl(file, columns, rows)
        else:
            read_parquet(file, columns, rows)
    if not rows.labels:
        raise DataError(f"{layout.files[0].place} holds no rows; give a table with a text and a label in every row")
    if layout.format in ("csv", "tsv"):
        _refuse_fractions(rows, columns.label)
    notes = layout.notes
    if rows.fallback:
        first = ", ".join(rows.fallback[:3])
        notes += (
            f"not in the first encoding, so read with another: {len(rows.fallback)} of the files, such as {first}",
        )
    return Rows(rows.columns, tuple(rows.texts), tuple(rows.labels), tuple(rows.places), notes=notes)


def as_text(value: object, place: str) -> str:
    """A row's text, empty for null; DataError for anything that is not a valid Unicode string."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{place}: the text is of type {type(value).__name__}, not a string; check data.text_column")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"{place}: the text holds half of a surrogate pair, which is no character; repair it") from None
    return value


def as_label(value: object, place: str) -> str:
    """A row's label as its name, without outer white space; DataError when it is missing or no string or integer."""
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        raise DataError(f"{place}: the label is missing; add it or remove the row")
    if isinstance(value, float):
        raise DataError(f"{place}: the label {value!r} is a fraction; a class is named by a string or an integer")
    if not isinstance(value, str | int):
        raise DataError(
            f"{place}: the label is of type {type(value).__name__}; a row needs one label, a string or an integer"
        )
    return as_text(str(value).strip(), place)


def require_columns(names: Sequence[str], columns: Columns, place: str) -> None:
    """DataError when the text or label column is missing or there twice, naming the columns there are."""
    for key, name in (("text_column", columns.text), ("label_column", columns.label)):
        found = list(names).count(name)
        if found == 0:
            there = ", ".join(n or "(unnamed)" for n in names)
            hint = nearest(name, names) if len(names) > 1 else ""
            hint = hint if hint.startswith("; did") else ""
            if len(names) == 1 and (";" in names[0] or "\t" in names[0]):
                hint = (
                    "; the fields seem to be separated by something else than the format says (csv: commas, tsv: tabs)"
                )
            raise DataError(f"{place} has no column '{name}' (its columns: {there}){hint}; set data.{key}")
        if found > 1:
            raise DataError(f"{place} has {found} columns named '{name}'; rename all but one")


def decode_file(file: DataFile, encoding: str, fallback: list[str] | None = None) -> str:
    """The text of a file, without a byte order mark; files that needed another than the first encoding join `fallback`.

    Raises DataError with the byte offset at which the first encoding failed.
    """
    try:
        data = file.path.read_bytes()
    except OSError as error:
        raise DataError(f"{file.place} cannot be read: {error.strerror or error}") from error
    return _decode(data, encoding, file.place, fallback)


def _decode(data: bytes, encoding: str, place: str, fallback: list[str] | None) -> str:
    failure: tuple[UnicodeDecodeError, int] | None = None
    names = [name.strip() for name in encoding.split(",")]
    for name in names:
        skip = 0
        try:
            if codecs.lookup(name).name == "utf-8" and data.startswith(_BOM):
                skip = len(_BOM)
            text = data[skip:].decode(name)
        except LookupError:
            raise DataError(f"data.encoding: '{name}' is no text encoding; use for example utf-8 or cp1252") from None
        except UnicodeDecodeError as error:
            failure = failure or (error, skip + error.start)
            continue
        except UnicodeError as error:  # UTF-16 without a byte order mark, for one
            raise DataError(f"{place} cannot be decoded as {name}: {error}; set data.encoding") from error
        if failure is not None and fallback is not None:
            fallback.append(place)
        return text
    assert failure is not None, "an encoding either decodes or fails"
    advice = f"{names[0]},cp1252" if len(names) == 1 else "one that fits"
    raise DataError(
        f"{place} is not valid {' or '.join(names)} (byte {data[failure[1]]:#04x} at offset {failure[1]}); "
        f"convert the file, or set data.encoding (encodings separated by commas are tried in turn: {advice})"
    ) from failure[0]


@contextmanager
def _large_fields() -> Iterator[None]:
    """The csv module's limit of 131,072 characters is too low for documents; it is global, so it is put back."""
    before = csv.field_size_limit(MAX_FIELD_CHARACTERS)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _read_csv(file: DataFile, delimiter: str, columns: Columns, encoding: str, rows: _Collected) -> None:
    text = decode_file(file, encoding, rows.fallback)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    line = 1
    with _large_fields():
        try:
            for record in reader:
                start, line = line, reader.line_num + 1
                if not record:
                    continue
                if header is None:
                    header = [name.strip() for name in record]
                    require_columns(header, columns, file.place)
                    text_at, label_at = header.index(columns.text), header.index(columns.label)
                    continue
                if len(record) != len(header):
                    raise DataError(
                        f"{file.place}:{start} has {len(record)} fields where the header has {len(header)}; "
                        "quote fields that hold the separator or a line break"
                    )
                rows.add(record[text_at], record[label_at], f"{file.place}:{start}")
        except csv.Error as error:
            raise DataError(
                f"{file.place}:{line} is not valid CSV ({error}); close every quote, and double quotes inside quotes"
            ) from error
    if header is None:
        raise DataError(f"{file.place} is empty; it needs a header line with the column names")
    rows.columns = rows.columns or tuple(header)


def _read_jsonl(file: DataFile, columns: Columns, rows: _Collected) -> None:
    # JSON is UTF-8 by its standard; lines end at \n only, since U+2028 may stand inside a string.
    before = len(rows.labels)
    seen: dict[str, None] = {}
    for number, line in enumerate(decode_file(file, "utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{file.place}:{number}"
        record = _json_object(line, place)
        seen.update(dict.fromkeys(record))
        if columns.label not in record or (len(rows.labels) == before and columns.text not in record):
            require_columns(list(record), columns, place)
        rows.add(record.get(columns.text), record[columns.label], place)
    if not seen:
        raise DataError(f"{file.place} is empty; it needs one JSON object per line")
    rows.columns = rows.columns or tuple(seen)


def _json_object(line: str, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(f"{place} is not valid JSON ({reason}); write one JSON object per line") from error
    if not isinstance(record, dict):
        raise DataError(f"{place} holds a JSON {type(record).__name__}, not an object; write one JSON object per line")
    return record


def read_parquet(file: DataFile, columns: Columns, rows: _Collected) -> None:
    """Add a Parquet file's rows; only the two columns are read."""
    with open_parquet(file) as table:
        names = tuple(table.schema_arrow.names)
        require_columns(names, columns, file.place)
        number = 0
        for batch in table.iter_batches(columns=[columns.text, columns.label]):
            texts, labels = batch.column(columns.text).to_pylist(), batch.column(columns.label).to_pylist()
            for text, label in zip(texts, labels, strict=True):
                number += 1
                rows.add(text, label, f"{file.place}:{number}")
    rows.columns = rows.columns or names


def open_parquet(file: DataFile) -> Any:
    """An open pyarrow.parquet.ParquetFile; DataError when pyarrow is missing or the file is no Parquet."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError(f"{file.place}: reading Parquet needs pyarrow; install the extra 'parquet'") from error
    try:
        return pq.ParquetFile(file.path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file.place} is not a readable Parquet file ({str(error).splitlines()[0]})") from error


def _refuse_fractions(rows: _Collected, column: str) -> None:
    """CSV has no types: labels that are all numbers but not all whole are measurements, not classes."""
    found = sorted(set(rows.labels))
    try:
        numbers = [float(label) for label in found]
    except ValueError:
        return
    fractions = [label for label, number in zip(found, numbers, strict=True) if "." in label or not number.is_integer()]
    if fractions:
        first = fractions[0]
        raise DataError(
            f"{rows.places[rows.labels.index(first)]}: the label {first} in column '{column}' is a fraction; "
            "a class is named by a string or an integer"
        )
