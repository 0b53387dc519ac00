"""What exporting asks of images: height and width are fixed, int8 is static for convnets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.export.parity import Batch, Logits, Predict
from finetune.preprocess import ImageEncoder, ImageInput

KEPT_BYTES = 512 * 2**20


class KeptPixels:
    """An image encoder that decodes each image once: all forms of a network are run on the same rows.

    Pixels are kept as uint8 up to `KEPT_BYTES`; images beyond that are decoded again each time.
    """

    def __init__(self, encoder: ImageEncoder) -> None:
        self._encoder = encoder
        self._kept: dict[int, tuple[ImageInput, NDArray[np.uint8]]] = {}  # the row is kept too, so no id is used twice
        self._bytes = 0

    @property
    def settings(self) -> Any:
        """As the encoder's."""
        return self._encoder.settings

    def encode(self, items: Sequence[ImageInput]) -> list[ImageInput]:
        """As the encoder does it."""
        return self._encoder.encode(items)

    def collate(self, rows: Sequence[ImageInput]) -> Mapping[str, NDArray[np.float32]]:
        """As the encoder does it, from kept pixels where there are some."""
        return {"pixel_values": self._encoder.normalise(np.stack([self._pixels(row) for row in rows]))}

    def size_of(self, row: ImageInput) -> int:
        """As the encoder's."""
        return self._encoder.size_of(row)

    def _pixels(self, row: ImageInput) -> NDArray[np.uint8]:
        if id(row) in self._kept:
            return self._kept[id(row)][1]
        pixels = self._encoder.pixels(row)
        if self._bytes + pixels.nbytes <= KEPT_BYTES:
            self._kept[id(row)] = (row, pixels)
            self._bytes += pixels.nbytes
        return pixels


def axes(encoder: ImageEncoder) -> dict[int, tuple[str, int]]:
    """Only the batch of (B, 3, H, W) varies."""
    return {0: ("batch", 65536)}


def example(encoder: ImageEncoder, rows: Sequence[ImageInput]) -> Batch:
    """Three real images, repeated where there are fewer."""
    return encoder.collate(spread_rows(encoder, rows, 3))


def shape_examples(encoder: ImageEncoder, rows: Sequence[ImageInput]) -> list[Batch]:
    """Batches of 1, 2 and 3 real images, and one of an all black and an all white one."""
    height, width = encoder.settings.size
    extremes: list[Any] = [np.full((height, width, 3), value, np.uint8) for value in (0, 255)]
    return [encoder.collate(part) for part in (*(spread_rows(encoder, rows, n) for n in (1, 2, 3)), extremes)]


def spread_rows(encoder: ImageEncoder, rows: Sequence[ImageInput], count: int) -> list[ImageInput]:
    """`count` images drawn in a fixed way; repeated where there are too few."""
    order = np.resize(np.random.default_rng(0).permutation(len(rows)), count)
    return [rows[int(index)] for index in order]


def row_by_row(predict: Predict) -> Predict:
    """The same prediction with each image run alone, so that no answer depends on a neighbour."""

    def alone(batch: Batch) -> Logits:
        (name, pixels), *_ = batch.items()
        return np.concatenate([predict({name: pixels[i : i + 1]}) for i in range(len(pixels))])

    return alone
