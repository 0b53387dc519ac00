"""Rows and their answers into CSV, TSV, JSON lines, Parquet and plain text files, a chunk at a time."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from finetune.errors import DataError
from finetune.serve.answers import Cell
from finetune.serve.tables_in import Chunk, Row, import_pyarrow

Write = Callable[[Chunk, Sequence[Mapping[str, Cell]]], None]


def open_writer(path: Path, kind: str, columns: Mapping[str, type], stack: ExitStack) -> Write:
    """A function that appends a chunk and its answers to the file at `path`; `stack` closes the file.

    `columns` are the names and types (str, float or list) of the answers' columns, in order; any value may be None.
    """
    if kind == "parquet":
        return _parquet(path, columns, stack)
    file = stack.enter_context(path.open("w", encoding="utf-8", newline="" if kind in ("csv", "tsv") else "\n"))
    if kind == "txt":
        said = next(iter(columns))
        return lambda chunk, answers: file.writelines(f"{_answer_cell(answer[said])}\n" for answer in answers)
    if kind == "jsonl":
        return lambda chunk, answers: file.writelines(_json(row) + "\n" for row in joined(chunk, answers))
    out = csv.writer(file, delimiter="\t" if kind == "tsv" else ",", lineterminator="\n")
    begun = False

    def write(chunk: Chunk, answers: Sequence[Mapping[str, Cell]]) -> None:
        nonlocal begun
        if not begun:
            out.writerow((*chunk.columns, *columns))
            begun = True
        for row, answer in zip(chunk.rows, answers):
            out.writerow([*map(_cell, row.values()), *map(_answer_cell, answer.values())])

    return write


def joined(chunk: Chunk, answers: Sequence[Mapping[str, Cell]]) -> list[Row]:
    """The chunk's rows with the answer columns after the input's."""
    return [{**row, **answer} for row, answer in zip(chunk.rows, answers)]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _plain(value: object) -> str:
    """What JSON has no type for: a date as text; of encoded pictures their size only."""
    return f"<{len(value)} bytes>" if isinstance(value, bytes) else str(value)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else _json(value)


def _answer_cell(value: Cell) -> str:
    return ", ".join(value) if isinstance(value, list) else _cell(value)


def _parquet(path: Path, added: Mapping[str, type], stack: ExitStack) -> Write:
    """Input columns that came as Arrow keep their types; others get the types of the first chunk."""
    arrow = import_pyarrow()
    types = {str: arrow.string(), float: arrow.float64(), list: arrow.list_(arrow.string())}
    writer: Any = None

    def write(chunk: Chunk, answers: Sequence[Mapping[str, Cell]]) -> None:
        nonlocal writer
        try:
            columns = {} if chunk.arrow is None else dict(zip(chunk.columns, chunk.arrow.columns))
            for name in () if columns else chunk.columns:
                kept = None if writer is None else writer.schema.field(name).type
                column = arrow.array([row[name] for row in chunk.rows], type=kept)
                columns[name] = column.cast(arrow.string()) if arrow.types.is_null(column.type) else column
            for name, kind in added.items():
                columns[name] = arrow.array([answer[name] for answer in answers], type=types[kind])
            table = arrow.table(columns)
            if writer is None:
                writer = stack.enter_context(arrow.parquet.ParquetWriter(path, table.schema))
            writer.write_table(table)
        except (arrow.ArrowInvalid, arrow.ArrowTypeError, arrow.ArrowNotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(
                f"{chunk.places[0]}: the rows from here on do not fit a Parquet column ({reason}); write .jsonl instead"
            ) from error

    return write
