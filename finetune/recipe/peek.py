"""A cheap look at a data path, to fill in a starter recipe: layout, columns, labels. Reads at most the first 256 KiB.

Only the standard library, and pyarrow for Parquet, imported when needed. What the look says is a guess to be checked by
the user; what a run really reads is the business of `finetune.data`.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.errors import DataError, nearest
from finetune.preprocess.image_file import IMAGE_SUFFIXES

FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval"), "test"),
}
TEXT_NAMES = ("text", "sentence", "review", "content", "body", "document", "message", "comment", "utterance", "tweet",
              "article", "question", "query", "description", "title", "headline")  # fmt: skip
IMAGE_NAMES = ("image", "img", "picture", "photo", "file", "filename", "file_name", "path", "filepath", "image_path")
LABEL_NAMES = ("label", "labels", "category", "class", "target", "sentiment", "topic", "intent", "rating", "stars",
               "score", "tag", "y", "label_text")  # fmt: skip
_BYTES = 256 * 1024
_ROWS = 500
_MOST_LABELS = 200

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Look:
    """What a data path seems to hold: texts or images (`modality`), in `input_column` of a table.

    `splits` maps train, validation, test to paths when the user has separate tables.
    """

    format: str
    modality: str = "text"
    labels: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    input_column: str | None = None
    label_column: str | None = None
    encoding: str = "utf-8"
    splits: Mapping[str, Path] = field(default_factory=dict)


def look_at(path: Path, input_column: str | None = None, label_column: str | None = None) -> Look:
    """Look at a file or folder; DataError if it holds nothing that a classifier of texts or images could be trained on."""
    if path.is_file():
        return _look_at_table(path, input_column, label_column)
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder; check the path")
    try:
        entries = [entry for entry in sorted(path.iterdir()) if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    splits = _splits(entries)
    if "train" in splits:
        first = look_at(splits["train"], input_column, label_column)
        return Look(**{**vars(first), "splits": splits})
    for modality, suffixes in (("text", (".txt",)), ("image", IMAGE_SUFFIXES)):
        classes = [entry for entry in entries if entry.is_dir() and _holds(entry, suffixes)]
        if len(classes) >= 2:
            return Look(format="folder", modality=modality, labels=tuple(entry.name for entry in classes))
    tables = [entry for entry in entries if entry.suffix.lower() in FORMATS]
    if len(tables) == 1:
        raise DataError(f"{path}: holds one table; name the file itself: {tables[0]}")
    raise DataError(
        f"{path}: neither two class folders with .txt files or images nor tables named train, validation, test; "
        "arrange it so, or name one CSV, TSV, JSON lines or Parquet file"
    )


def _holds(folder: Path, suffixes: Collection[str]) -> bool:
    return any(entry.suffix.lower() in suffixes for entry in folder.iterdir())


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
    encoding = "utf-8"
    if kind == "parquet":
        rows = _parquet_rows(path)
    else:
        text, encoding = _beginning(path)
        rows = _json_rows(path, text) if kind == "jsonl" else _csv_rows(path, text, "," if kind == "csv" else "\t")
    if not rows:
        raise DataError(f"{path}: no rows; a classifier needs a column of texts and a column of labels")
    columns = tuple(rows[0])
    for column in filter(None, (input_column, label_column)):
        if column not in columns:
            raise DataError(f"{path}: no column '{column}'{nearest(column, columns)}")
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
        input_column=found, label_column=label, encoding=encoding,
    )  # fmt: skip


def _all_images(rows: Sequence[Row], column: str) -> bool:
    """Whether every cell of a column names an image file, or holds encoded bytes as the hub's Image feature does; empty ones aside."""
    given = [cell for row in rows if not _is_empty(cell := row.get(column))]
    return bool(given) and all(_is_image(cell) for cell in given)


def _is_empty(cell: object) -> bool:
    """Whether nothing stands in a cell, as in a damaged row; of the hub's Image feature neither bytes nor a path."""
    if isinstance(cell, Mapping):
        return {"bytes", "path"} >= set(cell) and all(_is_empty(value) for value in cell.values())
    return cell is None or (isinstance(cell, str | bytes) and not cell.strip())


def _is_image(value: object) -> bool:
    if isinstance(value, Mapping):
        return bool(value.get("bytes") or _is_image(value.get("path")))
    return isinstance(value, bytes) or (isinstance(value, str) and Path(value.strip().lower()).suffix in IMAGE_SUFFIXES)


def _beginning(path: Path) -> tuple[str, str]:
    """The first whole lines of a text file, and the encoding to read it with."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if len(raw) > _BYTES:
        raw = raw[: raw.rfind(b"\n") + 1] or raw
    encoding = "utf-8-sig" if raw.startswith(codecs.BOM_UTF8) else "utf-8"
    try:
        return raw.decode(encoding), encoding
    except UnicodeDecodeError:
        if b"\0" in raw:
            raise DataError(f"{path}: holds zero bytes, so it is not a table of text; save it as UTF-8") from None
        return raw.decode("cp1252", errors="replace"), "cp1252"


def _csv_rows(path: Path, text: str, delimiter: str) -> list[Row]:
    table = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    limit = csv.field_size_limit(2 * _BYTES)  # one text may fill all that was read
    try:
        rows = [row for row, _ in zip(table, range(_ROWS))]
    except csv.Error as error:
        raise DataError(f"{path}:{table.line_num + 1}: not readable as a table ({error}); mend the line") from error
    finally:
        csv.field_size_limit(limit)
    if len(table.fieldnames or ()) == 1 and ";" in table.fieldnames[0]:  # type: ignore[index]
        raise DataError(f"{path}: separated by semicolons; save it with commas (.csv) or tabs (.tsv)")
    return [{key: value for key, value in row.items() if key is not None} for row in rows]


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


def _parquet_rows(path: Path) -> list[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"{path}: reading Parquet needs pyarrow; pip install 'finetune-recipes[parquet]'") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            batch = next(table.iter_batches(batch_size=_ROWS), None)
            rows: list[Row] = batch.to_pylist() if batch is not None else []
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: not a readable Parquet file; check how it was written") from error
    return rows


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
