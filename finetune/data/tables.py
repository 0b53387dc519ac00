"""Strict readers of tables, the one way in for loading and for `finetune validate`; no torch, no datasets.

The csv and json builders of the datasets library are not used on local files, because they guess: a CSV line with a
field too many moves its neighbours into the wrong columns, the label NA becomes null, 01 becomes 1, and texts
that look like dates become timestamps. They also cannot say on which line a row stood.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from finetune.data.encodings import decode_file
from finetune.data.layout import DataFile
from finetune.errors import DataError, nearest

MAX_FIELD_CHARACTERS = 2**27  # a longer field is a quote that was never closed
DELIMITERS: dict[str, str | None] = {"comma": ",", "semicolon": ";", "tab": "\t", "whitespace": None}
DELIMITER_OF_FORMAT = {"csv": "comma", "tsv": "tab"}


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read; those that make up the input with the recipe's key for each."""

    inputs: tuple[tuple[str, str], ...]
    labels: tuple[str, ...]
    strata: tuple[str, ...] = ()
    weight: str | None = None

    @property
    def by_key(self) -> tuple[tuple[str, str], ...]:
        """Every column with the key of the recipe that names it."""
        label_key = "label_column" if len(self.labels) == 1 else "label_columns"
        labels = [(label_key, name) for name in self.labels]
        weight = () if self.weight is None else (("weight_column", self.weight),)
        return (*self.inputs, *labels, *(("stratify_by", name) for name in self.strata), *weight)

    def pick(self, cells: Mapping[str, object], place: str) -> Record:
        """One row of a table from its cells; what is absent is None."""
        labels = tuple(cells.get(name) for name in self.labels)
        inputs = tuple(cells.get(name) for _, name in self.inputs)
        strata = tuple(cells.get(name) for name in self.strata)
        return Record(inputs, labels, strata, None if self.weight is None else cells.get(self.weight), place)


class Record(NamedTuple):
    """The cells of one row as the file has them, and where it stands."""

    inputs: tuple[object, ...]
    labels: tuple[object, ...]
    strata: tuple[object, ...]
    weight: object
    place: str


@dataclass(frozen=True)
class Fields:
    """How a CSV or TSV file is cut into fields: a separator (None: any white space) and, without a header line, names."""

    separator: str | None
    names: tuple[str, ...] | None = None

    @property
    def advice(self) -> str:
        """What to do about a row with another number of fields."""
        if self.separator is None:
            return "with data.delimiter whitespace no field may be empty or hold a blank"
        return "quote fields that hold the separator or a line break"


class Table(NamedTuple):
    """Column names, and the rows as they are asked for."""

    columns: tuple[str, ...]
    records: Iterator[Record]


def require_columns(names: Sequence[str], columns: Columns, place: str, otherwise: str = "") -> None:
    """DataError when a column is missing or there twice, naming the columns there are; `otherwise` ends the advice."""
    for key, name in columns.by_key:
        found = list(names).count(name)
        if found == 0:
            there = ", ".join(n or "(unnamed)" for n in names)
            meant = nearest(name, names) if len(names) > 1 else ""
            there += meant if meant.startswith("; did") else ""
            hint = ""
            if len(names) == 1 and any(character in names[0] for character in ";\t ,"):
                hint = "; the fields seem to be separated by something else than the format says (csv: commas, tsv: tabs), so set data.delimiter"
            raise DataError(f"{place} has no column '{name}' (its columns: {there}){hint}; set data.{key}{otherwise}")
        if found > 1:
            raise DataError(f"{place} has {found} columns named '{name}'; rename all but one")


def read_csv(file: DataFile, fields: Fields, columns: Columns, encoding: str, fallback: list[str]) -> Table:
    """A CSV or TSV file; every row must have as many fields as the header."""
    text = decode_file(file, encoding, fallback)
    lines = _split_at_blanks(text) if fields.separator is None else _parse_csv(text, fields.separator, file.place)
    if fields.names is None:
        _, first = next(lines, (0, None))
        if first is None:
            raise DataError(f"{file.name} is empty; it needs a header line with the column names")
        header = tuple(name.strip() for name in first)
    else:
        header = fields.names
    otherwise = "" if fields.names else ", or data.columns if the file has no header line"
    require_columns(header, columns, file.name, otherwise)
    return Table(header, _csv_records(lines, header, columns, file.place, fields))


def _csv_records(
    lines: Iterator[tuple[int, list[str]]], header: tuple[str, ...], columns: Columns, place: str, fields: Fields
) -> Iterator[Record]:
    named = fields.names is not None
    whole = "data.columns names" if named else "the header has"
    for number, (line, record) in enumerate(lines):
        if len(record) != len(header):
            raise DataError(f"{place}:{line} has {len(record)} fields where {whole} {len(header)}; {fields.advice}")
        if named and number == 0 and tuple(name.strip() for name in record) == header:
            raise DataError(f"{place}:{line} is a header with the names of data.columns; remove data.columns")
        yield columns.pick(dict(zip(header, record, strict=True)), f"{place}:{line}")


def _split_at_blanks(text: str) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and fields; blanks around and between fields count once, and there are no quotes."""
    for number, line in enumerate(text.split("\n"), start=1):
        if record := line.split():
            yield number, record


def _parse_csv(text: str, separator: str, place: str) -> Iterator[tuple[int, list[str]]]:
    """The line on which each record begins, and its fields; blank lines are skipped."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    line = 1
    while True:
        with _large_fields():
            try:
                record = next(reader, None)
            except csv.Error as error:
                raise DataError(
                    f"{place}:{line} is not valid CSV ({error}); close every quote, and double quotes inside quotes"
                ) from error
        if record is None:
            return
        start, line = line, reader.line_num + 1
        if record:
            yield start, record


@contextmanager
def _large_fields() -> Iterator[None]:
    """The csv module's limit of 131,072 characters is too low for documents; it is global, so it is put back."""
    before = csv.field_size_limit(MAX_FIELD_CHARACTERS)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def read_jsonl(file: DataFile, columns: Columns) -> Table:
    """One JSON object per line. The columns are those of all lines, so the whole file is read first."""
    # JSON is UTF-8 by its standard; lines end at \n only, since U+2028 may stand inside a string.
    lines = ((f"{file.place}:{n}", line) for n, line in enumerate(decode_file(file, "utf-8").split("\n"), start=1))
    rows = [(place, _json_object(line, place)) for place, line in lines if line.strip()]
    if not rows:
        raise DataError(f"{file.name} is empty; it needs one JSON object per line")
    for number, (place, record) in enumerate(rows):
        # A row without an input counts as one with an empty input, unless the first one lacks it: then the name is wrong.
        needed = [name for _, name in columns.by_key[0 if number == 0 else len(columns.inputs) :]]
        if any(name not in record for name in needed):
            require_columns(list(record), columns, place)
    names = tuple(dict.fromkeys(name for _, record in rows for name in record))
    return Table(names, (columns.pick(record, place) for place, record in rows))


def _json_object(line: str, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(f"{place} is not valid JSON ({reason}); write one JSON object per line") from error
    if not isinstance(record, dict):
        raise DataError(f"{place} holds a JSON {type(record).__name__}, not an object; write one JSON object per line")
    return record


def read_parquet(file: DataFile, columns: Columns) -> Table:
    """A Parquet file's rows, numbered from 1; only the columns that are needed are read."""
    with open_parquet(file) as table:
        names = tuple(table.schema_arrow.names)
    require_columns(names, columns, file.name)
    return Table(names, _parquet_records(file, columns))


def _parquet_records(file: DataFile, columns: Columns) -> Iterator[Record]:
    wanted = list(dict.fromkeys(name for _, name in columns.by_key))
    number = 0
    with open_parquet(file) as table:
        for batch in table.iter_batches(columns=wanted, batch_size=1024):
            for cells in batch.to_pylist():
                number += 1
                yield columns.pick(cells, f"{file.place}:{number}")


def open_parquet(file: DataFile) -> Any:
    """An open pyarrow.parquet.ParquetFile; DataError when pyarrow is missing or the file is no Parquet."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError(f"{file.name}: reading Parquet needs pyarrow; install the extra 'parquet'") from error
    try:
        return pq.ParquetFile(file.path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{file.name} is not a readable Parquet file ({str(error).splitlines()[0]}); check how it was written"
        ) from error
