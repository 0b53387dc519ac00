"""What each modality's inputs are to a predictor: how they are taken, made ready a batch at a time, and fed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finetune.errors import DataError
from finetune.preprocess import ImageFile, ImageInput

Input = str | ImageInput
Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Reader:
    """One modality as a predictor sees it; between `encode` and `collate` an image's pixels are read."""

    noun: str
    feeds: Callable[[Any], dict[str, Shape]]
    """Names and shapes of the arrays that the settings make; None is a side that varies."""
    ready: Callable[[Any, Sequence[Any], int], list[Any]]
    """A batch of encoded rows made ready, on so many threads; a DataError in the place of a row that cannot be read."""
    collate: Callable[[Any, Sequence[Any]], Mapping[str, NDArray[Any]]]
    """Arrays with the batch first, of rows that are ready."""


def as_list(inputs: Input | Sequence[Input]) -> list[Any]:
    """The inputs; one text, path, picture or (H, W) or (H, W, 3) array is a list of its own."""
    if isinstance(inputs, str | bytes | Path | ImageFile | Image.Image):
        return [inputs]
    several = inputs.ndim == 4 if isinstance(inputs, np.ndarray) else isinstance(inputs, Iterable)
    return list(inputs) if several else [inputs]


def _pixels(encoder: Any, rows: Sequence[Any], threads: int) -> list[Any]:
    """uint8 pixels (H, W, 3) of each row, or its DataError; Pillow and NumPy let threads decode side by side."""

    def read(row: Any) -> Any:
        try:
            return encoder.pixels(row)
        except DataError as error:
            return error

    # A picture that Pillow has opened but not read yet shares one file position, so such ones are read one by one.
    apart = [index for index, row in enumerate(rows) if not isinstance(row, Image.Image)]
    if threads == 1 or len(apart) < 2:
        return [read(row) for row in rows]
    with ThreadPoolExecutor(min(threads, len(apart))) as pool:
        found = dict(zip(apart, pool.map(read, [rows[index] for index in apart])))
    return [found[index] if index in found else read(row) for index, row in enumerate(rows)]


READERS = {
    "text": Reader(
        "texts",
        feeds=lambda settings: dict.fromkeys(settings.inputs, (None, None)),
        ready=lambda _encoder, rows, _threads: list(rows),
        collate=lambda encoder, rows: encoder.collate(rows),
    ),
    "image": Reader(
        "images",
        feeds=lambda settings: {"pixel_values": (None, 3, *settings.size)},
        ready=_pixels,
        collate=lambda encoder, pixels: {"pixel_values": encoder.normalise(np.stack(pixels))},
    ),
}
