"""Rows of a local source, whatever its layout, modality and target: the one way in for loading and for `finetune validate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from finetune.data.label_cells import LabelRules, refuse_fractions
from finetune.data.language import ReadCell
from finetune.data.layout import DataFile, Layout
from finetune.data.modalities import MODALITIES, Modality
from finetune.data.rows import Input, RawLabel, RawWeight, Rows
from finetune.data.tables import (
    DELIMITER_OF_FORMAT,
    DELIMITERS,
    Columns,
    Fields,
    Record,
    Table,
    read_csv,
    read_jsonl,
    read_parquet,
)
from finetune.data.targets import LABELLINGS, Labelling, label_rules
from finetune.data.weights import read_weight
from finetune.errors import DataError
from finetune.recipe.types import DataSettings
from finetune.tasks import TaskSpec

_STRATUM = "\x1f"  # joins the values of several columns; no text has it


@dataclass(frozen=True)
class Reading:
    """How cells become rows: the task's entries, and the words of the recipe that concern cells."""

    modality: Modality
    cell: ReadCell
    labelling: Labelling
    columns: Columns
    rules: LabelRules
    weights_mapped: bool
    encoding: str
    delimiter: str | None
    header: tuple[str, ...] | None
    root: Path | None


def reading_of(task: TaskSpec, settings: DataSettings) -> Reading:
    """The reading that a recipe asks for; DataError when data.image_root is no folder, or settings contradict each other."""
    if settings.stratify_by is not None and not settings.splits.stratify:
        raise DataError(
            "data.stratify_by names columns, but data.splits.stratify is false, so they mean nothing; remove one of them"
        )
    modality = MODALITIES[task.modality]
    labelling = LABELLINGS[task.target.name]
    columns = Columns(
        modality.columns(settings), labelling.columns(settings), settings.stratify_by or (), settings.weight_column
    )
    return Reading(
        modality, modality.cell(settings), labelling, columns, label_rules(settings), settings.weight_map is not None,
        settings.encoding, settings.delimiter, settings.columns, modality.root(settings),
    )  # fmt: skip


@dataclass
class Collected:
    """Rows being gathered; refuses what is no input or no label at the moment it is met."""

    reading: Reading
    inputs: list[Input] = field(default_factory=list)
    labels: list[RawLabel] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    strata: list[str] = field(default_factory=list)
    weights: list[RawWeight] = field(default_factory=list)
    columns: tuple[str, ...] = ()
    fallback: list[str] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)

    def add(self, record: Record, root: Path | None) -> None:
        """One row of a table whose relative paths start from `root`."""
        item, place = self.reading.cell(record.inputs, record.place, root)
        self._append(item, record.labels, place)
        if record.strata:
            self.strata.append(_STRATUM.join("" if cell is None else str(cell).strip() for cell in record.strata))
        if self.reading.columns.weight is not None:
            self.weights.append(read_weight(record.weight, place, mapped=self.reading.weights_mapped))

    def add_file(self, file: DataFile) -> None:
        """One file of a folder."""
        self._append(self.reading.modality.file(file, self.reading.encoding, self.fallback), (file.label,), file.place)

    def _append(self, item: Input, labels: tuple[object, ...], place: str) -> None:
        reading = self.reading
        self.inputs.append(item)
        self.labels.append(reading.labelling.read(labels, place, reading.rules))
        self.places.append(place)
        if reading.labelling.one_type and not reading.rules.mapped:
            self.kinds.setdefault(type(labels[0]).__name__, place)
            if len(self.kinds) > 1:
                (one, first), (other, second) = list(self.kinds.items())[:2]
                raise DataError(
                    f"labels are of mixed types: {one} at {first}, {other} at {second}; write them all alike"
                )

    def rows(self, notes: tuple[str, ...], label_order: tuple[str, ...] | None = None) -> Rows:
        """Everything that was gathered."""
        return Rows(
            self.columns, tuple(self.inputs), tuple(self.labels), tuple(self.places), tuple(self.strata), tuple(self.weights),
            label_order=label_order, notes=notes,
        )  # fmt: skip


def read_rows(layout: Layout, reading: Reading) -> Rows:
    """Read every row of a local source, in the layout's order.

    The encoding may name several, separated by commas: each file is read with the first that fits it.
    Raises DataError, naming file and line, for anything that is not exactly a table of inputs and labels.
    """
    refuse_misplaced(layout, reading)
    rows = Collected(reading)
    for file in layout.files:
        if layout.format == "folder":
            rows.add_file(file)
            continue
        table = TABLE_READERS[layout.format](file, layout.format, reading, rows.fallback)
        rows.columns = rows.columns or table.columns
        for record in table.records:
            rows.add(record, reading.root or file.path.parent)
    if not rows.labels:
        noun = reading.modality.noun
        needed = f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}" + (" and a label" if reading.columns.labels else "")
        raise DataError(f"{layout.files[0].name} holds no rows; give a table with {needed} in every row")
    if layout.format in DELIMITER_OF_FORMAT and reading.labelling.one_type and not reading.rules.mapped:
        refuse_fractions(rows.labels, rows.places, reading.columns.labels[0])
    notes = layout.notes
    if rows.fallback:
        first = ", ".join(rows.fallback[:3])
        notes += (
            f"not in the first encoding, so read with another: {len(rows.fallback)} of the files, such as {first}",
        )
    return rows.rows(notes)


def refuse_misplaced(layout: Layout, reading: Reading) -> None:
    """DataError for words of the recipe that mean nothing in a layout, and would be passed over in silence."""
    place = layout.files[0].name if layout.format != "folder" else layout.called
    if layout.format not in DELIMITER_OF_FORMAT:
        for key, value in (("delimiter", reading.delimiter), ("columns", reading.header)):
            if value is not None:
                raise DataError(
                    f"data.{key} is for CSV and TSV files, but {place} is read as {layout.format}; remove it"
                )
    if layout.format == "folder":
        records = [key for key, _ in reading.columns.inputs if key not in ("text_column", "image_column")]
        named = {
            "stratify_by": reading.columns.strata,
            "label_columns": reading.rules.columns,
            "weight_column": reading.columns.weight,
        }
        for key in [*(key for key, columns in named.items() if columns), *records]:
            kind = "a folder per class" if reading.modality.class_files.classes else "a folder of documents"
            raise DataError(f"data.{key} names columns, but {place} is {kind}; remove it, or give a table")


def fields_of(kind: str, reading: Reading) -> Fields:
    """How the lines of a CSV or TSV file are cut."""
    return Fields(DELIMITERS[reading.delimiter or DELIMITER_OF_FORMAT[kind]], reading.header)


def _csv(file: DataFile, kind: str, reading: Reading, fallback: list[str]) -> Table:
    return read_csv(file, fields_of(kind, reading), reading.columns, reading.encoding, fallback)


TABLE_READERS: dict[str, Callable[[DataFile, str, Reading, list[str]], Table]] = {
    "csv": _csv,
    "tsv": _csv,
    "jsonl": lambda file, kind, reading, fallback: read_jsonl(file, reading.columns),
    "parquet": lambda file, kind, reading, fallback: read_parquet(file, reading.columns),
}
