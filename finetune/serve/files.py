"""A file of texts or images in, a file of answers out, in memory that does not grow with the file."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from finetune.disk import sync, writing
from finetune.errors import DataError, nearest
from finetune.preprocess import ImageFile
from finetune.serve.answers import TARGETS, Answer, Cell
from finetune.serve.cells import CELLS
from finetune.serve.image_paths import find_images
from finetune.serve.predictor import Predictor, batches_of, check_batch_size
from finetune.serve.tables_in import Chunk, read_table
from finetune.serve.tables_out import open_writer

KINDS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".txt": "txt"}
BATCHES_PER_CHUNK = 16  # enough rows to sort by length within a chunk
ERROR = "error"
# What stands beside the answer's own columns: why an image has no answer. A text always has one.
MORE_COLUMNS: dict[str, dict[str, type]] = {"text": {}, "image": {ERROR: str}}

Unreadable = Literal["report", "refuse"]
Pairs = Iterable[tuple[Chunk, Sequence[Any]]]
"""Chunks of a table, each with one input per row, or the DataError of a row that has none."""


@dataclass(frozen=True)
class Outcome:
    """What was written: all rows, of which `unreadable` have no answer; `first` says why the first of those has none."""

    rows: int
    unreadable: int = 0
    first: str | None = None


def predict_file(
    predictor: Predictor,
    input: Path,
    output: Path,
    *,
    text_column: str = "text",
    image_column: str = "image",
    batch_size: int = 32,
    prefix: str = "",
    unreadable: Unreadable = "report",
    progress: Callable[[int], None] | None = None,
) -> Outcome:
    """Predict every row of a table and write its columns, then the answer's (see docs/predict.md), to `output`.

    Formats go by extension: .csv, .tsv, .jsonl, .parquet, .txt (a text or a path a line; as output, an answer a line). For
    an image bundle the column holds paths, relative to the table, or encoded bytes; a row whose image cannot be read has
    the reason in the column `error` and no answer, unless `unreadable` is "refuse", which ends the call at the first.
    `prefix` is put before the new columns' names when they collide with the input's. `progress` is told the rows done so
    far. The output appears whole or not at all, replacing an earlier file. DataError names the place of a row that cannot
    be read; BundleError if the output cannot be written.
    """
    check_batch_size(batch_size)
    kind, modality = _kind(input), predictor.modality
    if not input.is_file():
        what = "is a folder" if input.is_dir() else "no such file"
        raise DataError(f"{input}: {what}; name a table of {modality}s, such as a .csv, or a .txt with one a line")
    if output.exists() and output.samefile(input):
        raise DataError(f"{output}: input and output are the same file; name another output")
    column = modality if kind == "txt" else {"text": text_column, "image": image_column}[modality]

    def pairs() -> Iterator[tuple[Chunk, Sequence[Any]]]:
        for chunk in read_table(input, kind, batch_size * BATCHES_PER_CHUNK, line_column=modality):
            if column not in chunk.columns:
                raise DataError(
                    f"{input}: no column '{column}'{nearest(column, chunk.columns)}; name the column with "
                    f"--{modality}-column ({modality}_column in Python)"
                )
            yield chunk, CELLS[modality](chunk, column, input.parent)

    return _write(predictor, pairs(), input, output, batch_size, prefix, unreadable, progress)


def predict_images(
    predictor: Predictor,
    paths: str | Path | Sequence[str | Path],
    output: Path,
    *,
    batch_size: int = 32,
    prefix: str = "",
    unreadable: Unreadable = "report",
    progress: Callable[[int], None] | None = None,
) -> Outcome:
    """Predict image files, folders (with those below) and globs; `output` has the column `image`, then the answer's.

    Everything else is as in `predict_file`. DataError names a path that stands for no file.
    """
    check_batch_size(batch_size)
    found = _images(predictor, paths)

    def pairs() -> Iterator[tuple[Chunk, Sequence[Any]]]:
        for part in batches_of(found, batch_size * BATCHES_PER_CHUNK):
            names = [str(path) for path in part]
            yield Chunk(("image",), [{"image": name} for name in names], names), _as_files(part)

    return _write(predictor, pairs(), found[0], output, batch_size, prefix, unreadable, progress)


def stream_images(
    predictor: Predictor,
    paths: str | Path | Sequence[str | Path],
    batch_size: int = 32,
    *,
    unreadable: Unreadable = "report",
) -> Iterator[dict[str, object]]:
    """One record for each image that `predict_images` would find, in order, a batch at a time: JSON values.

    `image` is its path, then come the fields of the answer, or `error` alone. DataError names a path that stands for no file.
    """
    check_batch_size(batch_size)
    found = _images(predictor, paths)
    for part in batches_of(found, batch_size):
        answers = _answers(predictor, _as_files(part), batch_size, unreadable)
        for path, answer in zip(part, answers):
            yield {"image": str(path), **({ERROR: str(answer)} if isinstance(answer, DataError) else asdict(answer))}


def _images(predictor: Predictor, paths: str | Path | Sequence[str | Path]) -> list[Path]:
    if predictor.modality != "image":
        raise DataError("this bundle reads texts, not images; give predict_file a table of texts")
    return find_images(paths)


def _as_files(paths: Sequence[Path]) -> list[ImageFile]:
    return [ImageFile(str(path), path=path) for path in paths]


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in KINDS:
        raise DataError(f"{path}: the extension '{suffix}' is not known{nearest(suffix, KINDS)}")
    return KINDS[suffix]


def _write(
    predictor: Predictor,
    pairs: Pairs,
    origin: Path,
    output: Path,
    batch_size: int,
    prefix: str,
    unreadable: Unreadable,
    progress: Callable[[int], None] | None,
) -> Outcome:
    """Answer every row of `pairs` and write them; the file appears at `output` when the last row is on disk."""
    kind, target = _kind(output), TARGETS[predictor.target]
    if output.is_dir():
        raise DataError(f"{output}: is a folder; name a file for the output")
    own = {**target.columns(predictor.labels), **MORE_COLUMNS[predictor.modality]}
    columns = {f"{prefix}{name}": kind_ for name, kind_ in own.items()}
    partial = output.with_name(f".{output.name}.{uuid.uuid4().hex}.partial")
    rows, failures, first = 0, 0, None
    try:
        with writing(output):
            with ExitStack() as stack:
                write = open_writer(partial, kind, columns, stack)
                for chunk, items in pairs:
                    _check_columns(origin, chunk.columns, columns)
                    answers = _answers(predictor, items, batch_size, unreadable)
                    failed = [answer for answer in answers if isinstance(answer, DataError)]
                    write(chunk, [_cells(answer, columns, target.cells) for answer in answers])
                    rows, failures = rows + len(items), failures + len(failed)
                    first = first or next(map(str, failed), None)
                    if progress is not None:
                        progress(rows)
            if rows == 0:
                raise DataError(f"{origin}: holds no rows; give it at least one")
            sync(partial)
            partial.replace(output)
            sync(output.parent)
    finally:
        partial.unlink(missing_ok=True)
    return Outcome(rows, failures, first)


def _answers(
    predictor: Predictor, items: Sequence[Any], batch_size: int, unreadable: Unreadable
) -> list[Answer | DataError]:
    """One answer per item, or the DataError of one that has none; the first of those is raised if it is to be refused."""
    good = iter(predictor.attempt([item for item in items if not isinstance(item, DataError)], batch_size))
    answers = [item if isinstance(item, DataError) else next(good) for item in items]
    if unreadable == "refuse":
        for answer in answers:
            if isinstance(answer, DataError):
                raise answer
    return answers


def _cells(answer: Answer | DataError, columns: dict[str, type], cells: Callable[[Any], list[Cell]]) -> dict[str, Cell]:
    """The new columns of one row, in order; one that is not answered has nothing but its error."""
    if isinstance(answer, DataError):
        return {**dict.fromkeys(columns), list(columns)[-1]: str(answer)}
    return dict(zip_longest(columns, cells(answer)))


def _check_columns(path: Path, given: Sequence[str], added: dict[str, type]) -> None:
    if clash := [name for name in added if name in given]:
        raise DataError(
            f"{path}: the column '{clash[0]}' would be written twice; give a prefix for the new columns, such as 'predicted_'"
        )
