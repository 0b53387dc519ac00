"""A cheap look at the data before anything heavy starts, for `finetune validate`: no torch, no datasets.

Small sources are read with the very readers that loading uses, so both see the same rows. Of large ones only the structure is
looked at, and of a hub data set nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune.data.labels import refuse_limit, refuse_single_rows
from finetune.data.layout import DataFile, Layout
from finetune.data.load import POOL, local_layout, refuse_format, split_origins, wanted_tables
from finetune.data.read import Reading, fields_of, read_rows, reading_of, refuse_misplaced
from finetune.data.rows import RawLabel, Rows
from finetune.data.tables import DELIMITER_OF_FORMAT, open_parquet, require_columns
from finetune.data.targets import map_labels, name_labels
from finetune.data.weights import map_weights
from finetune.errors import DataError
from finetune.recipe.types import DataSettings
from finetune.sources import Source
from finetune.tasks import TaskSpec

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


def inspect_data(
    task: TaskSpec, settings: DataSettings, source: Source, named: Mapping[str, Source | str] | None = None
) -> Inspection:
    """Look at the tables that a recipe names, with the arguments of `prepare_data`.

    Raises DataError for what loading would refuse: a missing column, an empty file, a wrong encoding, a missing label, one class
    only, a class with a single row under stratification, an image file that is not there. Of images a few are opened.
    """
    refuse_format(settings, source)
    reading = reading_of(task, settings)
    wanted, _ = wanted_tables(settings)
    origins = split_origins(wanted, named or {})
    exclude = [origin.path for origin in origins.values() if isinstance(origin, Source) and origin.path]
    tables: dict[str, Rows | Layout | None] = {}
    for role in wanted:
        origin = origins.get(role, source)
        path, called = (origin.path, origin.name) if isinstance(origin, Source) else (None, None)
        shut = () if role in origins else exclude
        tables[role] = None if path is None else _look(reading, local_layout(reading, settings, path, shut, called))
    return _conclude(reading, settings, tables)


def _look(reading: Reading, layout: Layout) -> Rows | Layout:
    """The rows of a small source; the checked layout of a large one."""
    opened = layout.files if layout.format != "folder" or reading.modality.opens_class_files else ()
    if sum(file.path.stat().st_size for file in opened) <= READ_WHOLE_BYTES:
        return read_rows(layout, reading)
    refuse_misplaced(layout, reading)
    for file in layout.files:
        if layout.format == "parquet":
            with open_parquet(file) as table:
                require_columns(table.schema_arrow.names, reading.columns, file.name)
        elif layout.format in DELIMITER_OF_FORMAT:
            require_columns(_header(file, layout.format, reading), reading.columns, file.name)
    return layout


def _header(file: DataFile, kind: str, reading: Reading) -> list[str]:
    """The column names of a large CSV file, from its first line alone."""
    import csv

    encoding, fields = reading.encoding, fields_of(kind, reading)
    if fields.names is not None:
        return list(fields.names)
    name = "utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding.partition(",")[0].strip()
    try:
        with file.path.open(encoding=name, newline="") as lines:
            if fields.separator is None:
                return next(lines, "").split()
            return [column.strip() for column in next(csv.reader(lines, delimiter=fields.separator), [])]
    except LookupError:
        raise DataError(f"data.encoding: '{name}' is no text encoding; use for example utf-8 or cp1252") from None
    except (UnicodeError, csv.Error) as error:
        raise DataError(f"the header of {file.name} cannot be read ({error}); check data.encoding") from error


def _conclude(reading: Reading, settings: DataSettings, tables: Mapping[str, Rows | Layout | None]) -> Inspection:
    read = {role: table for role, table in tables.items() if isinstance(table, Rows)}
    notes = [note for rows in read.values() for note in rows.notes]
    notes += reading.modality.glance([item for rows in read.values() for item in rows.inputs], settings)
    columns = next((rows.columns for rows in read.values()), ())
    if len(read) < len(tables):
        large = any(isinstance(table, Layout) for table in tables.values())
        note = (
            "the data is large, so only its structure was checked"
            if large
            else "a hub data set is looked at when it is loaded"
        )
        return Inspection(columns, None, None, (note, *notes))
    places = [place for rows in read.values() for place in rows.places]
    raw = [label for rows in read.values() for label in rows.labels]
    labels = map_labels(reading.labelling, raw, places, settings.label_map)
    map_weights([weight for rows in read.values() for weight in rows.weights], places, settings.weight_map)
    names, _ = name_labels(reading.labelling, labels, places, settings, None)
    by_label = settings.splits.stratify and settings.stratify_by is None and reading.labelling.every_split
    if by_label and POOL in read:
        refuse_single_rows(Counter(map(str, _of_pool(read, labels))))
    if settings.limit is not None and set(read) == {POOL}:
        inputs = read[POOL].inputs
        used = [label for label, item in zip(labels, inputs, strict=True) if not reading.modality.is_empty(item)]
        strata = Counter(used) if by_label else None
        refuse_limit(settings.limit, len(used), strata)
    return Inspection(columns, names, len(labels), tuple(notes))


def _of_pool(read: Mapping[str, Rows], labels: Sequence[RawLabel]) -> Sequence[RawLabel]:
    """The labels of the table that shares are taken from, which comes first."""
    assert next(iter(read)) == POOL
    return labels[: len(read[POOL])]
