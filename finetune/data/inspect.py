"""A cheap look at the data before anything heavy starts, for `finetune validate`: no torch, no datasets.

Small sources are read with the very readers that loading uses, so both see the same rows. Of large ones only the structure is
looked at, and of a hub data set nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune.data.labels import refuse_single_rows, resolve_labels
from finetune.data.layout import DataFile, Layout, find_layout
from finetune.data.load import POOL, read_local, refuse_format, split_origins, wanted_tables
from finetune.data.read import Columns, open_parquet, require_columns
from finetune.data.rows import Rows
from finetune.errors import DataError
from finetune.recipe.types import DataSettings
from finetune.sources import Source

READ_WHOLE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Inspection:
    """What could be seen: column names, label names in index order, rows in all, and sentences worth telling.

    `labels` and `rows` are None when the source is on the hub or too large to be read through.
    """

    columns: tuple[str, ...]
    labels: tuple[str, ...] | None
    rows: int | None
    notes: tuple[str, ...] = ()


def inspect_text(settings: DataSettings, source: Source, named: Mapping[str, Source | str] | None = None) -> Inspection:
    """Look at the tables that a recipe names, with the arguments of `prepare_text`.

    Raises DataError for what loading would refuse: a missing column, an empty file, a wrong encoding, a missing label, one class
    only, a class with a single row under stratification.
    """
    refuse_format(settings, source)
    wanted, _ = wanted_tables(settings)
    origins = split_origins(wanted, named or {})
    exclude = [origin.path for origin in origins.values() if isinstance(origin, Source) and origin.path]
    tables: dict[str, Rows | Layout | None] = {}
    for role in wanted:
        origin = origins.get(role, source)
        path = origin.path if isinstance(origin, Source) else None
        tables[role] = None if path is None else _look(settings, path, () if role in origins else exclude)
    return _conclude(settings, tables)


def _look(settings: DataSettings, path: Path, exclude: list[Path] | tuple[Path, ...]) -> Rows | Layout:
    """The rows of a small source; the checked layout of a large one."""
    layout = find_layout(path, "auto" if settings.format == "hub" else settings.format, exclude)
    if sum(file.path.stat().st_size for file in layout.files) <= READ_WHOLE_BYTES:
        return read_local(settings, path, exclude)
    columns = Columns(settings.text_column, settings.label_column)
    for file in layout.files:
        if layout.format == "parquet":
            with open_parquet(file) as table:
                require_columns(table.schema_arrow.names, columns, file.place)
        elif layout.format in ("csv", "tsv"):
            require_columns(_header(file, layout.format, settings.encoding), columns, file.place)
    return layout


def _header(file: DataFile, kind: str, encoding: str) -> list[str]:
    """The column names of a large CSV file, from its first line alone."""
    import csv

    name = "utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding.partition(",")[0].strip()
    try:
        with file.path.open(encoding=name, newline="") as lines:
            return [column.strip() for column in next(csv.reader(lines, delimiter="," if kind == "csv" else "\t"), [])]
    except LookupError:
        raise DataError(f"data.encoding: '{name}' is no text encoding; use for example utf-8 or cp1252") from None
    except (UnicodeError, csv.Error) as error:
        raise DataError(f"the header of {file.place} cannot be read ({error}); check data.encoding") from error


def _conclude(settings: DataSettings, tables: Mapping[str, Rows | Layout | None]) -> Inspection:
    read = {role: table for role, table in tables.items() if isinstance(table, Rows)}
    if len(read) < len(tables):
        large = any(isinstance(table, Layout) for table in tables.values())
        note = (
            "the data is large, so only its structure was checked"
            if large
            else "a hub data set is looked at when it is loaded"
        )
        columns = next((rows.columns for rows in read.values()), ())
        return Inspection(columns, None, None, (note, *_notes(read)))
    found: dict[str, str] = {}
    for label, place in _labelled(read):
        found.setdefault(label, place)
    names, _ = resolve_labels(found, settings.labels, None)
    if settings.splits.stratify and POOL in read:
        refuse_single_rows(Counter(read[POOL].labels), limited=False)
    return Inspection(next(iter(read.values())).columns, names, sum(map(len, read.values())), _notes(read))


def _labelled(read: Mapping[str, Rows]) -> Iterator[tuple[str, str]]:
    for rows in read.values():
        yield from zip(rows.labels, rows.places, strict=True)


def _notes(read: Mapping[str, Rows]) -> tuple[str, ...]:
    return tuple(note for rows in read.values() for note in rows.notes)
