"""Near-duplicate images: the same picture resized, re-encoded, or made brighter or darker.

Candidates are found by perceptual hash (pHash: the signs of an image's low cosine frequencies; Zauner 2010, Implementation and
Benchmarking of Perceptual Image Hash Functions) and confirmed on pixels, because images of one kind share low frequencies:
many pairs of ELPV's solar cells lie within 4 bits, and not one of them is a copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from finetune.data.pictures import CHROMA_SIDE, SIDE, Picture

CORRELATION = 0.9985
"""Least correlation of two thumbnails that are one picture: just above the likest of ELPV's different cells, and below nearly
all copies of them that tests/data/test_data_images.py makes."""

_BITS = 64
_FREQUENCIES = 8
_ROWS = 64  # rows of the table of hash distances that are in memory at once
_PAIRS = 4096  # pairs that are compared on pixels at once
_CROWD = 256  # an image with more candidates behind it is compared with this many of them, not with all
_LUMA = SIDE * SIDE
_CHROMA_WEIGHT = SIDE / CHROMA_SIDE  # each coarse sample stands for 16 pixels
_FLAT = 2.0  # grey levels: a picture that varies less holds nothing to compare but its brightness


def near_image_pairs(pictures: Sequence[Picture], distance: int) -> list[tuple[int, int, float]]:
    """Pairs i < j that show the same picture, with their correlation, in order.

    `distance` is the largest number of differing bits, of 64. Flipped, turned and cropped copies are not found.
    """
    if len(pictures) < 2:
        return []
    thumbnails = np.stack([picture.thumbnail for picture in pictures])
    found = []
    for rows, columns in _candidates(_signs(thumbnails), distance):
        similarity = _correlation(thumbnails[rows], thumbnails[columns])
        same = similarity >= CORRELATION
        found += list(zip(rows[same].tolist(), columns[same].tolist(), similarity[same].tolist(), strict=True))
    return sorted(found)


def perceptual_hashes(thumbnails: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """pHash of each thumbnail (N, 1152) as 64 bits (N, 64): which of the 8×8 lowest frequencies lie above their median.

    A flat picture has no frequencies but the lowest, so all its bits are zero.
    """
    luma = thumbnails[:, :_LUMA].reshape(-1, SIDE, SIDE).astype(np.float32)
    angles = np.pi / SIDE * np.outer(np.arange(_FREQUENCIES), np.arange(SIDE) + 0.5)
    basis = np.cos(angles).astype(np.float32)
    frequencies = (basis @ luma @ basis.T).reshape(-1, _BITS)
    bits: NDArray[np.bool_] = frequencies > np.median(frequencies, axis=1, keepdims=True)
    bits[luma.std(axis=(1, 2)) < _FLAT] = False
    return bits


def _signs(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Hash bits as ±1, so that a matrix product counts how many agree."""
    blocks = [perceptual_hashes(thumbnails[at : at + _PAIRS]) for at in range(0, len(thumbnails), _PAIRS)]
    return np.where(np.concatenate(blocks), np.float32(1), np.float32(-1))


def _candidates(signs: NDArray[np.float32], distance: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Row numbers i < j of all pairs within the distance, in portions; every pair is looked at, as a matrix product."""
    least = _BITS - 2 * distance - 0.5  # agreeing minus differing bits
    for start in range(0, len(signs), _ROWS):
        block = signs[start : start + _ROWS]
        close = np.flatnonzero(block @ signs[start:].T >= least)  # flat: np.nonzero takes as long as the product itself
        rows, columns = np.divmod(close, len(signs) - start)
        later = columns > rows
        rows, columns = rows[later], columns[later]
        first = np.searchsorted(rows, rows)  # where the row's candidates begin
        near = np.arange(len(rows)) - first < _CROWD
        rows, columns = rows[near] + start, columns[near] + start
        for at in range(0, len(rows), _PAIRS):
            yield rows[at : at + _PAIRS], columns[at : at + _PAIRS]


def _correlation(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Correlation of the thumbnails of each pair, both (P, 1152), blind to brightness and contrast but not to colour."""
    (left, left_norm), (right, right_norm) = _contrasts(a), _contrasts(b)
    flat = np.minimum(left_norm, right_norm) < _FLAT * SIDE
    product = (left * right).sum(axis=1, dtype=np.float64) / np.where(flat, 1, left_norm * right_norm)
    brightness = np.abs(a[:, :_LUMA].mean(axis=1) - b[:, :_LUMA].mean(axis=1))
    alike = (np.maximum(left_norm, right_norm) < _FLAT * SIDE) & (brightness < _FLAT)
    return np.where(flat, np.where(alike, 1.0, 0.0), np.minimum(product, 1.0))


def _contrasts(thumbnails: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Deviations of luma from its mean and of colour from grey, and their norm."""
    values = thumbnails.astype(np.float32)
    values[:, :_LUMA] -= values[:, :_LUMA].mean(axis=1, keepdims=True)
    values[:, _LUMA:] = (values[:, _LUMA:] - 128) * _CHROMA_WEIGHT
    return values, np.linalg.norm(values, axis=1).astype(np.float64)
