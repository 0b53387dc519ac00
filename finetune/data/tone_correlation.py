"""How well one picture's tones follow from another's, whatever was done to brightness, contrast and gamma."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_PIXELS = 2**20  # of as many pairs as are compared at once
_PIECES = 8  # of a tone curve


class _Tones(NamedTuple):
    """Lumas (U, pixels) cut into pieces of a tone curve: their pixels piece by piece, and sums over each piece (U, pieces)."""

    values: NDArray[np.uint8]
    order: NDArray[np.int32]
    ordered: NDArray[np.int32]
    ends: NDArray[np.intp]
    pixels: NDArray[np.float64]
    total: NDArray[np.float64]
    squares: NDArray[np.float64]


def tone_correlation(lumas: NDArray[np.uint8], a: NDArray[np.intp], b: NDArray[np.intp]) -> NDArray[np.float64]:
    """How well one luma of each pair follows from the other by a rising tone curve: (P,), 1 wherever it does exactly.

    Args: lumas (U, pixels), at most 4096 pixels each; a, b (P,): the rows of each pair.

    A correlation ratio (Roche et al. 1998, The Correlation Ratio as a New Similarity Measure for Multimodal Image Registration)
    with a curve instead of free means, so it is as much as the correlation where the curve is a line. Burnt-out lights follow
    from what they were, but not the other way round, so the better direction counts.
    """
    result = np.zeros(len(a))
    step = _PIXELS // lumas.shape[1]
    for at in range(0, len(a), step):
        names, places = np.unique(np.concatenate([a[at : at + step], b[at : at + step]]), return_inverse=True)
        left, right = places[: len(places) // 2], places[len(places) // 2 :]
        own = lumas[names]
        tones = _tones(own)
        spread = np.maximum(own.var(axis=1) * own.shape[1], 1e-9)
        there, back = _residual(tones, left, right) / spread[right], _residual(tones, right, left) / spread[left]
        result[at : at + step] = np.sqrt(np.clip(1 - np.minimum(there, back), 0, 1))
    return result


def _tones(lumas: NDArray[np.uint8]) -> _Tones:
    """Cuts each picture's tones into pieces of about as many pixels; equal tones share a piece."""
    count, pixels = lumas.shape
    rows = np.arange(count)[:, None]
    tones = np.bincount((lumas + 256 * rows).ravel(), minlength=256 * count).reshape(count, 256)
    ranks = tones.cumsum(axis=1) - (tones + 1) / 2  # average ranks, from 0
    pieces = (ranks * _PIECES / pixels).astype(np.intp).clip(0, _PIECES - 1)
    numbers = (pieces + _PIECES * rows).ravel()
    inside = np.bincount(numbers, tones.ravel(), _PIECES * count).reshape(count, _PIECES).astype(np.float64)
    ends = inside.cumsum(axis=1).astype(np.intp)
    order = np.argsort(lumas, axis=1, kind="stable").astype(np.int32)
    ordered = np.take_along_axis(lumas, order, axis=1).astype(np.int32)
    return _Tones(lumas, order, ordered, ends, inside, _sums(ordered, ends), _sums(ordered**2, ends))


def _sums(values: NDArray[np.int32], ends: NDArray[np.intp]) -> NDArray[np.float64]:
    """Sums of each row's values up to each end from the one before it; 4096 products of two tones fit 32 bits."""
    until = np.zeros((len(values), values.shape[1] + 1), np.int32)
    np.cumsum(values, axis=1, out=until[:, 1:])
    return np.diff(np.take_along_axis(until, ends, axis=1), axis=1, prepend=0).astype(np.float64)


def _residual(tones: _Tones, a: NDArray[np.intp], b: NDArray[np.intp]) -> NDArray[np.float64]:
    """Squares that remain of luma b of each pair after a curve of luma a: on each piece a line that does not fall."""
    target = np.take_along_axis(tones.values[b], tones.order[a], axis=1).astype(np.int32)
    pixels, ends = tones.pixels[a], tones.ends[a]
    some = np.maximum(pixels, 1)
    mean = _sums(target, ends) / some
    within_a = tones.squares[a] - tones.total[a] ** 2 / some
    slope = np.maximum(_sums(target * tones.ordered[a], ends) - tones.total[a] * mean, 0) / np.maximum(within_a, 1e-3)
    # Halfway between the least rising curve above the means and the greatest below them.
    empty = pixels == 0
    above = np.maximum.accumulate(np.where(empty, -np.inf, mean), axis=1)
    below = np.minimum.accumulate(np.where(empty, np.inf, mean)[:, ::-1], axis=1)[:, ::-1]
    rising = np.where(empty, 0, (above + below) / 2)
    bent = mean - rising  # an empty piece has no weight
    gained = pixels * (mean**2 - bent**2) + slope**2 * within_a
    residual: NDArray[np.float64] = tones.squares[b].sum(axis=1) - gained.sum(axis=1)
    return residual
