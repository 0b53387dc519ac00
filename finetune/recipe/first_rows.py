"""The first rows of a table, for a starter recipe: what separates its fields, and whether its first line is a header.

Only the standard library, and pyarrow for Parquet, imported when needed. At most the first 256 KiB are read.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import DataError
from finetune.preprocess.image_file import IMAGE_SUFFIXES

TEXT_NAMES = ("text", "sentence", "review", "content", "body", "document", "message", "comment", "utterance", "tweet",
              "article", "question", "query", "description", "title", "headline")  # fmt: skip
IMAGE_NAMES = ("image", "img", "picture", "photo", "file", "filename", "file_name", "path", "filepath", "image_path")
LABEL_NAMES = ("label", "labels", "category", "class", "target", "sentiment", "topic", "intent", "rating", "stars",
               "score", "tag", "y", "label_text")  # fmt: skip
_BYTES = 256 * 1024
_ROWS = 500
_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """The first rows of a table by column; see `Look` for what else there is to know."""

    rows: Sequence[Row]
    columns: tuple[str, ...]
    encoding: str = "utf-8"
    delimiter: str | None = None
    first_row: tuple[str, ...] = ()


def first_rows(path: Path, kind: str) -> Table:
    """The first rows of a CSV, TSV, JSON lines or Parquet file (`kind`); DataError for what is no such table."""
    if kind == "parquet":
        return _parquet_table(path)
    text, encoding, whole = _beginning(path)
    if kind == "jsonl":
        rows = _json_rows(path, text)
        return Table(rows, tuple(rows[0]) if rows else (), encoding)
    return _csv_table(path, text, encoding, "," if kind == "csv" else "\t", whole)


def is_image(value: object) -> bool:
    """Whether a cell names an image file, or holds an encoded image, alone or as the hub's {bytes, path}."""
    if isinstance(value, Mapping):
        return bool(value.get("bytes") or is_image(value.get("path")))
    return isinstance(value, bytes) or (isinstance(value, str) and Path(value.strip().lower()).suffix in IMAGE_SUFFIXES)


def _csv_table(path: Path, text: str, encoding: str, usual: str, whole: bool) -> Table:
    """A table of lines, cut at the usual delimiter of its ending or at another that cuts its header."""
    records, delimiter = _csv_records(path, text, usual, whole), usual
    if records and len(records[0]) == 1:
        delimiter = next((other for other in _DELIMITERS if other in records[0][0]), usual)
        records = records if delimiter == usual else _csv_records(path, text, delimiter, whole)
    named = None if delimiter == usual else _DELIMITERS[delimiter]
    header = tuple(name.strip() for name in records[0]) if records else ()
    if records and _is_row(header, records[1:]):
        made_up = tuple(f"column_{number}" for number in range(1, len(header) + 1))
        return Table(_by_column(made_up, records), made_up, encoding, named, header)
    return Table(_by_column(header, records[1:]), tuple(dict.fromkeys(header)), encoding, named)


def _by_column(columns: Sequence[str], records: Sequence[Sequence[str]]) -> list[Row]:
    """Rows of cells under their names, None where a row is short."""
    return [dict(zip(columns, [*record, *[None] * len(columns)], strict=False)) for record in records]


def _is_row(header: Sequence[str], records: Sequence[Sequence[str]]) -> bool:
    """Whether what stands where a header should is a row like those below: it has a picture above pictures, or, where no
    name looks familiar, a label that comes again."""
    below = [[record[at].strip() for record in records if at < len(record)] for at in range(len(header))]
    if any(is_image(name) and all(map(is_image, cells)) for name, cells in zip(header, below, strict=True)):
        return True
    familiar = set(map(str.lower, header)) & {*TEXT_NAMES, *IMAGE_NAMES, *LABEL_NAMES}
    numbered = list(header) == [str(number) for number in range(len(header))]  # as pandas names columns
    if familiar or numbered:
        return False
    return any(name and name in cells for name, cells in zip(header, below, strict=True))


def _beginning(path: Path) -> tuple[str, str, bool]:
    """The first whole lines of a text file, the encoding to read it with, and whether they are all there are."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    whole = len(raw) <= _BYTES
    if not whole:
        raw = raw[: raw.rfind(b"\n") + 1] or raw
    encoding = "utf-8-sig" if raw.startswith(codecs.BOM_UTF8) else "utf-8"
    try:
        return raw.decode(encoding), encoding, whole
    except UnicodeDecodeError:
        if b"\0" in raw:
            raise DataError(f"{path}: holds zero bytes, so it is not a table of text; save it as UTF-8") from None
        return raw.decode("cp1252", errors="replace"), "cp1252", whole


def _csv_records(path: Path, text: str, delimiter: str, whole: bool) -> list[list[str]]:
    """The first records, blank lines aside; DataError for what a run would refuse, unless it may end beyond what was read."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records: list[list[str]] = []
    line = 1
    limit = csv.field_size_limit(2 * _BYTES)  # one text may fill all that was read
    try:
        while len(records) <= _ROWS and (record := next(reader, None)) is not None:
            line = reader.line_num + 1
            records += [record] if record else []
    except csv.Error as error:
        if whole or not records or "end of data" not in str(error):
            raise DataError(
                f"{path}:{line} is not valid CSV ({error}); close every quote, and double quotes inside quotes"
            ) from error
    finally:
        csv.field_size_limit(limit)
    return records


def _json_rows(path: Path, text: str) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(text.split("\n")[:_ROWS], start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: not JSON; a .jsonl file holds one JSON object a line") from error
        if not isinstance(row, dict):
            raise DataError(
                f'{path}:{number}: not a JSON object; each line must be one, such as {{"text": …, "label": …}}'
            )
        rows.append(row)
    return rows


def _parquet_table(path: Path) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"{path}: reading Parquet needs pyarrow; pip install 'finetune-recipes[parquet]'") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            columns = tuple(table.schema_arrow.names)
            batch = next(table.iter_batches(batch_size=_ROWS), None)
            rows: list[Row] = batch.to_pylist() if batch is not None else []
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: not a readable Parquet file; check how it was written") from error
    return Table(rows, columns)
