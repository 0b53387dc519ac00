"""A table's cells as a predictor's inputs: texts, or pictures as paths beside the table or as encoded bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from finetune.errors import DataError
from finetune.preprocess import ImageFile
from finetune.serve.tables_in import Chunk


def _texts(chunk: Chunk, column: str, _: Path) -> list[str | ImageFile | DataError]:
    """The texts of a chunk; DataError at the first that is none, since a broken table is to be mended, not guessed at."""
    for place, row in zip(chunk.places, chunk.rows):
        text = row[column]
        if not isinstance(text, str):
            found = "missing" if text is None else f"of type {type(text).__name__}"
            raise DataError(f"{place}: '{column}' is {found}, not a text")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{place}: '{column}' holds half of a surrogate pair, which is no Unicode text; mend or remove it"
            ) from error
    return [str(row[column]) for row in chunk.rows]


def _images(chunk: Chunk, column: str, folder: Path) -> list[str | ImageFile | DataError]:
    """The pictures of a chunk, none opened yet; a DataError in the place of a cell that cannot stand for one."""
    return [_image(row[column], place, column, folder) for place, row in zip(chunk.places, chunk.rows)]


def _image(cell: object, place: str, column: str, folder: Path) -> ImageFile | DataError:
    # What the datasets library writes: {"bytes": …, "path": …}, of which either may be null.
    parts = cell if isinstance(cell, Mapping) else {"bytes": cell, "path": cell}
    data, path = parts.get("bytes"), parts.get("path")
    if isinstance(data, bytes):
        return ImageFile(place, data=data)
    if isinstance(path, str) and path:
        return ImageFile(f"{place}: {path}", path=folder / path)
    found = "missing" if cell in (None, "") else f"of type {type(cell).__name__}"
    return DataError(f"{place}: '{column}' is {found}, not the path or the bytes of an image")


# (chunk, name of its column, folder that paths start from) -> one input per row, by the bundle's modality
CELLS: dict[str, Callable[[Chunk, str, Path], list[str | ImageFile | DataError]]] = {"text": _texts, "image": _images}
