"""Near-duplicate images: the same picture resized, re-encoded, in other tones, less coloured or grey.

Candidates are found by perceptual hash (pHash: the signs of an image's low cosine frequencies; Zauner 2010, Implementation and
Benchmarking of Perceptual Image Hash Functions) and confirmed on pixels, because images of one kind share low frequencies:
many pairs of ELPV's solar cells lie within 4 bits, and not one of them is a copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from finetune.data.pictures import CHROMA_SIDE, SIDE, Picture
from finetune.data.tone_correlation import tone_correlation

CORRELATION = 0.9983
"""Least tone correlation of two 64×64 thumbnails that are one picture.

Chosen between ELPV's different cells, the likest different pictures known here, which tests/data/test_data_images.py keeps below
it, and the copies of photographs that tests/data/test_near_images.py makes."""

_COARSE = 0.9988  # as much for 32×32, where ELPV's cells are liker: small or blurred copies have no finer detail
_HOPELESS = 0.99  # a pair that is less alike at 32×32 is not compared at 64×64: no copy known here gains so much
_HUE = 0.93  # least cosine of two coloured pictures' chroma: hues of one pattern may lie 20 degrees apart
_BURNT_HUE = 0.4  # as much over all blocks where only burnt-out ones differ: blue sky turns to cyan, red never to green
_BURNT = 10  # grey levels from black and white within which a channel's mean counts as cut off
_UNBURNT = 0.1  # least share of the chroma that must be left to judge by without burnt-out blocks
_GREY = 8.0  # grey levels: a picture with no block of more chroma counts as grey
_BITS = 64
_FREQUENCIES = 8
_ROWS = 64  # rows of the table of hash distances that are in memory at once
_PAIRS = 4096  # pairs that are compared at once
_CROWD = 256  # an image with more candidates behind it is compared with this many of them, not with all
_LUMA = SIDE * SIDE
_HALF = SIDE // 2
_BLOCKS = CHROMA_SIDE * CHROMA_SIDE
_FLAT = 2.0  # grey levels: a picture that varies less holds nothing to compare but its brightness and colour
_SAME = 1.2  # grey levels, as root of the mean square, that two flat pictures may differ by


def near_image_pairs(pictures: Sequence[Picture], distance: int) -> list[tuple[int, int, float]]:
    """Pairs i < j that show the same picture, with their tone correlation, in order.

    `distance` is the largest number of differing bits, of 64. Flipped, turned and cropped copies are not found.
    """
    if len(pictures) < 2:
        return []
    thumbnails = np.stack([picture.thumbnail for picture in pictures])
    found = []
    for rows, columns in _candidates(_signs(thumbnails), distance):
        similarity = _similarity(thumbnails, rows, columns)
        same = similarity >= CORRELATION
        found += list(zip(rows[same].tolist(), columns[same].tolist(), similarity[same].tolist(), strict=True))
    return sorted(found)


def perceptual_hashes(thumbnails: NDArray[np.uint8], dark: bool = False) -> NDArray[np.bool_]:
    """pHash of each thumbnail (N, 4224) as 64 bits (N, 64): which of the 8×8 lowest frequencies lie above their median.

    With `dark`, of the thumbnail's darker half, all else as bright as its brightest: what a copy leaves as it was whose lights
    are burnt out. A flat picture has no frequencies but the lowest, so all its bits are zero.
    """
    luma = _coarse(thumbnails).astype(np.float32)
    if dark:
        capped = np.minimum(luma, np.median(luma, axis=1, keepdims=True))
        plain = capped.std(axis=1, keepdims=True) < _FLAT
        luma = np.where(plain, luma, capped)  # on a dark ground there is nothing in the darker half
    angles = np.pi / _HALF * np.outer(np.arange(_FREQUENCIES), np.arange(_HALF) + 0.5)
    basis = np.cos(angles).astype(np.float32)
    frequencies = (basis @ luma.reshape(-1, _HALF, _HALF) @ basis.T).reshape(-1, _BITS)
    bits: NDArray[np.bool_] = frequencies > np.median(frequencies, axis=1, keepdims=True)
    bits[luma.std(axis=1) < _FLAT] = False
    return bits


def _coarse(thumbnails: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Luma at 32×32, (N, 1024)."""
    quarters = thumbnails[:, :_LUMA].reshape(-1, _HALF, 2, _HALF, 2).sum(axis=(2, 4), dtype=np.uint16)
    luma: NDArray[np.uint8] = ((quarters + 2) // 4).astype(np.uint8).reshape(len(thumbnails), -1)
    return luma


def _signs(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Both hashes' bits as ±1 (2, N, 64), so that a matrix product counts how many agree."""
    portions = [thumbnails[at : at + _PAIRS] for at in range(0, len(thumbnails), _PAIRS)]
    bits = [np.concatenate([perceptual_hashes(portion, dark) for portion in portions]) for dark in (False, True)]
    return np.where(np.stack(bits), np.float32(1), np.float32(-1))


def _candidates(signs: NDArray[np.float32], distance: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Row numbers i < j of all pairs within the distance by either hash, in portions; every pair is looked at."""
    least = _BITS - 2 * distance - 0.5  # agreeing minus differing bits
    count = signs.shape[1]
    for start in range(0, count, _ROWS):
        agreeing = np.max([one[start : start + _ROWS] @ one[start:].T for one in signs], axis=0)
        close = np.flatnonzero(agreeing >= least)  # flat: np.nonzero takes as long as the product itself
        rows, columns = np.divmod(close, count - start)
        later = columns > rows
        rows, columns = rows[later], columns[later]
        first = np.searchsorted(rows, rows)  # where the row's candidates begin
        near = np.arange(len(rows)) - first < _CROWD
        rows, columns = rows[near] + start, columns[near] + start
        for at in range(0, len(rows), _PAIRS):
            yield rows[at : at + _PAIRS], columns[at : at + _PAIRS]


def _similarity(
    thumbnails: NDArray[np.uint8], rows: NDArray[np.intp], columns: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Tone correlation of each pair, at 64×64 or, where that is as telling, at 32×32; 0 where colours or flat pictures differ."""
    names, places = np.unique(np.concatenate([rows, columns]), return_inverse=True)
    a, b = places[: len(rows)], places[len(rows) :]
    own = thumbnails[names]
    coarse = tone_correlation(_coarse(own), a, b)
    similarity = np.where(coarse >= _COARSE, coarse, 0.0)
    close = np.flatnonzero((coarse >= _HOPELESS) & (coarse < _COARSE))
    similarity[close] = tone_correlation(own[:, :_LUMA], a[close], b[close])
    flat = own[:, :_LUMA].std(axis=1) < _FLAT
    chroma = own[:, _LUMA:].reshape(-1, 2, _BLOCKS).astype(np.float32) - 128
    blank = np.flatnonzero(flat[a] & flat[b])
    difference = own[a[blank]].astype(np.float32) - own[b[blank]]
    equal = np.square(difference[:, :_LUMA]).mean(axis=1) < _SAME**2
    equal &= np.square(difference[:, _LUMA:]).mean(axis=1) < _SAME**2
    similarity[flat[a] | flat[b]] = 0
    similarity[blank[equal]] = 1
    return np.where(flat[a] | _same_hues(chroma, _sound(own, chroma), a, b), similarity, 0.0)


def _sound(thumbnails: NDArray[np.uint8], chroma: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Blocks of 8×8 pixels (U, 64) in which no channel is cut off at black or white."""
    side = SIDE // CHROMA_SIDE
    blocks = thumbnails[:, :_LUMA].reshape(-1, CHROMA_SIDE, side, CHROMA_SIDE, side)
    luma = blocks.mean(axis=(2, 4), dtype=np.float32).reshape(-1, _BLOCKS)
    blue, red = chroma[:, 0], chroma[:, 1]
    channels = np.stack([luma + 1.402 * red, luma - 0.344 * blue - 0.714 * red, luma + 1.772 * blue])  # as in JPEG
    sound: NDArray[np.bool_] = (channels.min(axis=0) >= _BURNT) & (channels.max(axis=0) < 255 - _BURNT)
    return sound


def _same_hues(
    chroma: NDArray[np.float32], sound: NDArray[np.bool_], a: NDArray[np.intp], b: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """Whether the chroma of each pair points the same way, however strong; a grey picture may be a copy of any colour."""
    grey = np.linalg.norm(chroma, axis=1).max(axis=1) < _GREY
    left, right = chroma[a], chroma[b]
    both = (sound[a] & sound[b])[:, None]
    energy = np.square(chroma).sum(axis=(1, 2))
    left_sound, right_sound = np.square(left * both).sum(axis=(1, 2)), np.square(right * both).sum(axis=(1, 2))
    cosine = (left * right).sum(axis=(1, 2)) / np.sqrt(np.maximum(energy[a] * energy[b], 1))
    unburnt = (left * right * both).sum(axis=(1, 2)) / np.sqrt(np.maximum(left_sound * right_sound, 1))
    enough = (left_sound >= _UNBURNT * energy[a]) & (right_sound >= _UNBURNT * energy[b])
    burnt_only = enough & (cosine >= _BURNT_HUE) & (unburnt >= _HUE)
    same: NDArray[np.bool_] = grey[a] | grey[b] | (cosine >= _HUE) | burnt_only
    return same
