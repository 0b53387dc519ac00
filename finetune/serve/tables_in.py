"""Rows out of CSV, TSV, JSON lines, Parquet and plain text files, a chunk at a time."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

from finetune.disk import reading
from finetune.errors import BundleError, DataError

Row = dict[str, object]


@dataclass(frozen=True)
class Chunk:
    """Some rows of a table. `places` say where each came from; `arrow` is the same as a pyarrow batch, if it was one."""

    columns: tuple[str, ...]
    rows: list[Row]
    places: list[str]
    arrow: Any = None


def import_pyarrow() -> ModuleType:
    """pyarrow with its parquet module, or a BundleError that names the extra."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise BundleError(
            "Parquet files need pyarrow; install it with: pip install 'finetune-recipes[parquet]'"
        ) from error
    module: ModuleType = pyarrow
    return module


def read_table(path: Path, kind: str, size: int, line_column: str = "text") -> Iterator[Chunk]:
    """Chunks of at most `size` rows; DataError names the place of a row that cannot be read.

    A plain text file is a table of one column, `line_column`.
    """
    if kind == "parquet":
        yield from _parquet(path, size)
        return
    with reading(path), path.open(encoding="utf-8-sig", newline="" if kind in ("csv", "tsv") else None) as file:
        readers: dict[str, Callable[[TextIO, Path, str], Iterator[tuple[str, Row]]]] = {
            "csv": _csv, "tsv": _csv, "jsonl": _json_lines, "txt": partial(_lines, column=line_column),
        }  # fmt: skip
        placed = readers[kind](file, path, kind)
        try:
            while part := list(islice(placed, size)):
                yield Chunk(tuple(part[0][1]), [row for _, row in part], [place for place, _ in part])
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise DataError(f"{path}: not UTF-8 text (byte 0x{byte:02x}); save the file as UTF-8") from error


def _csv(file: TextIO, path: Path, kind: str) -> Iterator[tuple[str, Row]]:
    reader = csv.reader(file, delimiter="\t" if kind == "tsv" else ",", strict=True)
    try:
        header = next((row for row in reader if row), [])
        if repeated := [name for index, name in enumerate(header) if name in header[:index]]:
            raise DataError(f"{path}: the column '{repeated[0]}' appears twice; rename one")
        for row in reader:
            place = f"{path}:{reader.line_num}"
            if not row:
                continue  # a blank line, as other readers of CSV take it
            if len(row) != len(header):
                raise DataError(
                    f"{place}: {len(row)} fields where the header has {len(header)}; quote fields that hold the separator"
                )
            yield place, dict(zip(header, row))
    except csv.Error as error:
        raise DataError(
            f"{path}:{reader.line_num}: not readable as {kind.upper()} ({error}); mend the line or use JSON lines"
        ) from error


def _json_lines(file: TextIO, path: Path, kind: str) -> Iterator[tuple[str, Row]]:
    columns: tuple[str, ...] | None = None
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: not valid JSON ({error}); write one object per line") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: not a JSON object; write one object per line")
        columns = columns or tuple(row)
        if added := [key for key in row if key not in columns]:
            raise DataError(
                f"{path}:{number}: the key '{added[0]}' is not in the first line; give every line the same keys"
            )
        yield f"{path}:{number}", {key: row.get(key) for key in columns}


def _lines(file: TextIO, path: Path, kind: str, column: str) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(file, start=1):
        yield f"{path}:{number}", {column: line.removesuffix("\n")}


def _parquet(path: Path, size: int) -> Iterator[Chunk]:
    arrow = import_pyarrow()
    try:
        with reading(path), arrow.parquet.ParquetFile(path) as file:
            names = tuple(file.schema_arrow.names)
            if repeated := [name for index, name in enumerate(names) if name in names[:index]]:
                raise DataError(f"{path}: the column '{repeated[0]}' appears twice; rename one")
            done = 0
            for batch in file.iter_batches(batch_size=size):
                if batch.num_rows == 0:
                    continue
                places = [f"{path}: row {number}" for number in range(done + 1, done + batch.num_rows + 1)]
                yield Chunk(names, batch.to_pylist(), places, batch)
                done += batch.num_rows
    except arrow.ArrowInvalid as error:
        raise DataError(
            f"{path}: not a readable Parquet file ({str(error).splitlines()[0]}); write it again"
        ) from error
