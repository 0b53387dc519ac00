"""A cheap look at a data path, to fill in a starter recipe: layout, columns, labels.

Of a table the first rows are read. What the look says is a guess to be checked by the user; what a run really reads is the business
of `finetune.data`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from finetune.errors import DataError, nearest
from finetune.preprocess.image_file import IMAGE_SUFFIXES
from finetune.recipe.first_rows import IMAGE_NAMES, LABEL_NAMES, TEXT_NAMES, Row, Table, first_rows, is_image

FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval"), "test"),
}
_MOST_LABELS = 200


@dataclass(frozen=True)
class Look:
    """What a data path seems to hold: texts or images (`modality`), in `input_column` of a table.

    `splits` maps train, validation, test to paths when the user has separate tables. `delimiter` is a word of
    data.delimiter where the format does not say it. `first_row` is what stands where a header line should: the columns then
    have names that are made up.
    """

    format: str
    modality: str = "text"
    labels: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    input_column: str | None = None
    label_column: str | None = None
    encoding: str = "utf-8"
    delimiter: str | None = None
    first_row: tuple[str, ...] = ()
    splits: Mapping[str, Path] = field(default_factory=dict)


def look_at(path: Path, input_column: str | None = None, label_column: str | None = None) -> Look:
    """Look at a file or folder; DataError if it holds nothing that a classifier of texts or images could be trained on."""
    if path.is_file():
        return _look_at_table(path, input_column, label_column)
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder; check the path")
    entries = _listed(path)
    splits = _splits(entries)
    if "train" in splits:
        first = look_at(splits["train"], input_column, label_column)
        return Look(**{**vars(first), "splits": splits})
    for modality, suffixes in (("text", (".txt",)), ("image", IMAGE_SUFFIXES)):
        classes = [entry for entry in entries if entry.is_dir() and _holds(entry, suffixes)]
        if len(classes) >= 2:
            return Look(format="folder", modality=modality, labels=tuple(entry.name for entry in classes))
    raise _no_data(path, entries)


def _no_data(path: Path, entries: Sequence[Path]) -> DataError:
    """Say what a folder holds instead of class folders or tables for the splits, and what to do about it."""
    tables = [entry for entry in entries if entry.suffix.lower() in FORMATS]
    if len(tables) == 1:
        return DataError(f"{path}: holds one table; name the file itself: {tables[0]}")
    if tables:
        return DataError(
            f"{path}: holds {len(tables)} tables; name one of them, or call them train, validation and test"
        )
    suffixes = (".txt", *IMAGE_SUFFIXES)
    folders = [entry for entry in entries if entry.is_dir()]
    classes = [entry for entry in folders if _holds(entry, suffixes)]
    if classes:
        return DataError(
            f"{path}: holds one class folder with .txt files or images, {classes[0].name}, and a classifier needs at least "
            "two labels; add a folder for each of the others"
        )
    if any(entry.suffix.lower() in suffixes for entry in entries):
        return DataError(
            f"{path}: holds .txt files or images, but no class folders; move those of each label into a folder of its name, "
            "or name a table that has the label of each"
        )
    for folder in folders:
        if any(entry.is_dir() and _holds(entry, suffixes) for entry in _listed(folder)):
            return DataError(f"{path}: holds no class folders, but {folder} does; name that folder")
    return DataError(
        f"{path}: neither two class folders with .txt files or images nor tables named train, validation, test; "
        "arrange it so, or name one CSV, TSV, JSON lines or Parquet file"
    )


def _listed(folder: Path) -> list[Path]:
    """What a folder holds, but for hidden files."""
    try:
        return [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from error


def _holds(folder: Path, suffixes: Collection[str]) -> bool:
    return any(entry.suffix.lower() in suffixes for entry in _listed(folder))


def _splits(entries: Sequence[Path]) -> dict[str, Path]:
    """Tables or folders named for the splits; folders only if all are, since a class may be called "train"."""
    splits: dict[str, Path] = {}
    folders = all(entry.name.lower() in SPLIT_NAMES for entry in entries if entry.is_dir())
    for entry in entries:
        is_table = entry.suffix.lower() in FORMATS and entry.is_file()
        name = SPLIT_NAMES.get(entry.stem.lower())
        if name and (is_table or (folders and entry.is_dir())):
            splits.setdefault(name, entry)
    return splits


def _look_at_table(path: Path, input_column: str | None, label_column: str | None) -> Look:
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise DataError(f"{path}: unknown kind of file '{path.suffix}'; give a .csv, .tsv, .jsonl or .parquet file")
    table = first_rows(path, kind)
    rows, columns = table.rows, table.columns
    if not rows:
        there = f", only the header line ({', '.join(columns)})" if columns else ""
        raise DataError(
            f"{path}: no rows{there}; give a table with a text or a picture's path, and a label, in every row"
        )
    if table.first_row:
        return _named_columns(
            _guess(path, kind, table, *_positions(table, input_column, label_column)), input_column, label_column
        )
    for column in filter(None, (input_column, label_column)):
        if column not in columns:
            raise DataError(f"{path}: no column '{column}'{nearest(column, columns)}")
    return _guess(path, kind, table, input_column, label_column)


def _positions(table: Table, *cells: str | None) -> list[str | None]:
    """The columns whose first cells these are, where the user took the first row for a header; else None, to be guessed."""
    at = dict(zip(reversed(table.first_row), reversed(table.columns), strict=True))
    return [at.get(cell) if cell is not None else None for cell in cells]


def _named_columns(look: Look, input_column: str | None, label_column: str | None) -> Look:
    """The look at a table without header, its columns called what the user calls them, or what the recipe does by default."""
    given = [name if name not in look.first_row else None for name in (input_column, label_column)]
    names = {look.input_column: given[0] or look.modality, look.label_column: given[1] or "label"}
    return replace(
        look, columns=tuple(names.get(column, column) for column in look.columns),
        input_column=names[look.input_column], label_column=names[look.label_column],
    )  # fmt: skip


def _guess(path: Path, kind: str, table: Table, input_column: str | None, label_column: str | None) -> Look:
    """Which columns of a table hold the inputs and the labels, where the user does not say."""
    rows, columns = table.rows, table.columns
    images = [column for column in columns if column != label_column and _all_images(rows, column)]
    pictured = input_column in images if input_column else bool(images)
    if pictured:
        input_column = input_column or _by_name(IMAGE_NAMES, dict.fromkeys(images, 0)) or images[0]
    label = label_column or _label_column(rows, columns, input_column)
    found = input_column or _text_column(rows, columns, label)
    if label is None or found is None:
        missing = "labels" if label is None else "texts or images"
        raise DataError(f"{path}: no column looks like {missing}; say which one it is: {', '.join(columns)}")
    return Look(
        format=kind, modality="image" if pictured else "text", labels=_labels(rows, label), columns=columns,
        input_column=found, label_column=label, encoding=table.encoding, delimiter=table.delimiter,
        first_row=table.first_row,
    )  # fmt: skip


def _all_images(rows: Sequence[Row], column: str) -> bool:
    """Whether every cell of a column names an image file, or holds encoded bytes as the hub's Image feature does; empty ones aside."""
    given = [cell for row in rows if not _is_empty(cell := row.get(column))]
    return bool(given) and all(is_image(cell) for cell in given)


def _is_empty(cell: object) -> bool:
    """Whether nothing stands in a cell, as in a damaged row; of the hub's Image feature neither bytes nor a path."""
    if isinstance(cell, Mapping):
        return {"bytes", "path"} >= set(cell) and all(_is_empty(value) for value in cell.values())
    return cell is None or (isinstance(cell, str | bytes) and not cell.strip())


def _label_column(rows: Sequence[Row], columns: Sequence[str], input_column: str | None) -> str | None:
    """A column by its name, else the one with the fewest distinct short values, at least two of them."""
    candidates, lengths = {}, {}
    input_column = input_column or _by_name(TEXT_NAMES, dict.fromkeys(columns, 0))
    for column in columns:
        found = [str(row[column]) for row in rows if _is_label(row.get(column))]
        values = set(found)
        if column != input_column and len(found) >= 0.9 * len(rows) and len(values) <= _MOST_LABELS:
            candidates[column] = len(values)
            lengths[column] = sum(map(len, found))
    named = _by_name(LABEL_NAMES, candidates)
    if named:
        return named
    few = {column: n for column, n in candidates.items() if 2 <= n <= max(2, len(rows) // 2)}
    return min(few, key=lambda column: (few[column], lengths[column])) if few else None


def _is_label(value: object) -> bool:
    return (isinstance(value, str) and 0 < len(value) <= 80) or (isinstance(value, int) and not isinstance(value, bool))


def _text_column(rows: Sequence[Row], columns: Sequence[str], label: str | None) -> str | None:
    """A column by its name, else the one with the longest texts."""
    lengths = {
        column: sum(len(row[column]) for row in rows if isinstance(row.get(column), str))
        for column in columns
        if column != label and any(isinstance(row.get(column), str) and row[column] for row in rows)
    }
    return _by_name(TEXT_NAMES, lengths) or (max(lengths, key=lambda column: lengths[column]) if lengths else None)


def _by_name(names: Sequence[str], columns: Mapping[str, int]) -> str | None:
    lower = {column.lower().strip(): column for column in reversed(list(columns))}
    return next((lower[name] for name in names if name in lower), None)


def _labels(rows: Sequence[Row], column: str) -> tuple[str, ...]:
    return tuple(sorted({str(row[column]) for row in rows if row.get(column) is not None}))
