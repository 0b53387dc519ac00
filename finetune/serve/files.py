"""A file of texts in, a file of predictions out, in memory that does not grow with the file."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from finetune.disk import sync, writing
from finetune.errors import DataError, nearest
from finetune.serve.predictor import Prediction, Predictor, check_batch_size
from finetune.serve.tables_in import Chunk, read_table
from finetune.serve.tables_out import open_writer

KINDS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".txt": "txt"}
BATCHES_PER_CHUNK = 16  # enough rows to sort by length within a chunk


def predict_file(
    predictor: Predictor,
    input: Path,
    output: Path,
    *,
    text_column: str = "text",
    batch_size: int = 32,
    prefix: str = "",
    progress: Callable[[int], None] | None = None,
) -> int:
    """Predict every row of `input` and write its columns, then label, score and probability_<label>, to `output`.

    Formats go by extension: .csv, .tsv, .jsonl, .parquet, .txt (a text a line; as output, a label a line). `prefix` is put
    before the new columns' names when they collide with the input's. `progress` is told the rows done so far. The output
    appears whole or not at all, replacing an earlier file. Returns the number of rows. DataError names the place of a row
    that cannot be read; BundleError if the output cannot be written.
    """
    check_batch_size(batch_size)
    source_kind, target_kind = _kind(input), _kind(output)
    if not input.is_file():
        raise DataError(f"{input}: no such file")
    if output.is_dir():
        raise DataError(f"{output}: is a folder; name a file for the output")
    if output.exists() and output.samefile(input):
        raise DataError(f"{output}: input and output are the same file; name another output")
    partial = output.with_name(f".{output.name}.{uuid.uuid4().hex}.partial")
    column = "text" if source_kind == "txt" else text_column
    done = 0
    try:
        with writing(output):
            with ExitStack() as stack:
                write = open_writer(partial, target_kind, stack)
                for chunk in read_table(input, source_kind, batch_size * BATCHES_PER_CHUNK):
                    if done == 0:
                        _check_columns(input, chunk.columns, column, prefix, predictor.labels)
                    texts = _texts(chunk, column)
                    write(chunk, [_columns(answer, prefix) for answer in predictor.predict(texts, batch_size)])
                    done += len(texts)
                    if progress is not None:
                        progress(done)
            if done == 0:
                raise DataError(f"{input}: holds no rows; give it at least one")
            sync(partial)
            partial.replace(output)
            sync(output.parent)
    finally:
        partial.unlink(missing_ok=True)
    return done


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in KINDS:
        raise DataError(f"{path}: the extension '{suffix}' is not known{nearest(suffix, KINDS)}")
    return KINDS[suffix]


def _columns(answer: Prediction, prefix: str) -> dict[str, str | float]:
    """The new columns of one row, in order."""
    probabilities = {f"{prefix}probability_{label}": value for label, value in answer.probabilities.items()}
    return {f"{prefix}label": answer.label, f"{prefix}score": answer.score, **probabilities}


def _check_columns(
    path: Path, columns: tuple[str, ...], text_column: str, prefix: str, labels: tuple[str, ...]
) -> None:
    if text_column not in columns:
        raise DataError(f"{path}: no column '{text_column}'{nearest(text_column, columns)}")
    nothing = Prediction(labels[0], 0.0, dict.fromkeys(labels, 0.0))
    if clash := [name for name in _columns(nothing, prefix) if name in columns]:
        raise DataError(
            f"{path}: the column '{clash[0]}' would be written twice; give a prefix for the new columns, such as 'predicted_'"
        )


def _texts(chunk: Chunk, text_column: str) -> list[str]:
    texts = []
    for place, row in zip(chunk.places, chunk.rows):
        text = row[text_column]
        if not isinstance(text, str):
            found = "missing" if text is None else f"of type {type(text).__name__}"
            raise DataError(f"{place}: '{text_column}' is {found}, not a text")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{place}: '{text_column}' holds half of a surrogate pair, which is no Unicode text; mend or remove it"
            ) from error
        texts.append(text)
    return texts
