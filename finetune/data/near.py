"""Exact and near duplicates: keys of identical texts, and pairs of texts with a large Jaccard similarity.

Near duplicates follow Broder (1997) and Leskovec et al., Mining of Massive Datasets, chapter 3: shingles, MinHash
signatures (datasketch), locality-sensitive banding, then the true Jaccard similarity of every candidate.
datasketch's own MinHashLSH keeps a Python set per bucket; sorting each band finds the same candidates with next to no
memory beside the signatures. datasketch is imported when pairs are searched.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

SHINGLE_WORDS = 8
SHORT_SHINGLE_WORDS = 3
PERMUTATIONS = 128
_MISS = 0.005  # chance that banding overlooks a pair right at the threshold; far smaller above it
_CROWD = 64  # a bucket with more texts compares each one with this many that follow it, not with all
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
# Scripts written without spaces: every character counts as a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_BLANKS = re.compile(r"[^\S\n]+")

Keys = NDArray[np.uint64]


def normalise(text: str) -> str:
    """The form in which two texts are called identical: Unicode NFC, one kind of line end, blanks folded, ends stripped.

    Paragraph breaks, case and punctuation stay; texts that differ only in those are near duplicates with similarity 1.
    """
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    return "\n".join(line.strip() for line in _BLANKS.sub(" ", text).strip().split("\n"))


def is_empty(text: str) -> bool:
    """Whether a text holds nothing but white space, control and format characters."""
    return all(unicodedata.category(character)[0] in "ZC" for character in text)


def text_key(text: str, seed: int | None = None) -> int:
    """64-bit key of a normalised text, alike on every machine; another order of keys for every seed."""
    salt = b"" if seed is None else seed.to_bytes(8, "little", signed=True)
    return int.from_bytes(blake2b(text.encode(), digest_size=8, key=salt).digest(), "little")


def near_pairs(texts: Sequence[str], threshold: float) -> list[tuple[int, int, float]]:
    """Pairs i < j with Jaccard similarity of their word shingles at or above the threshold, in (0, 1], in order.

    No pair reported is below the threshold; one right at it is overlooked with a chance of at most 0.5 %.
    """
    sets = list(_shingles(texts))
    found = []
    for i, j in _candidates(_signatures(sets), threshold):
        similarity = jaccard(sets[i], sets[j], threshold)
        if similarity >= threshold:
            found.append((i, j, similarity))
    return found


def jaccard(a: Keys, b: Keys, threshold: float = 0.0) -> float:
    """|a ∩ b| / |a ∪ b| of two sorted arrays without repeats; 0 where the sizes alone rule out the threshold."""
    if min(len(a), len(b)) < threshold * max(len(a), len(b)):
        return 0.0
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


def _shingles(texts: Sequence[str]) -> Iterator[Keys]:
    """Per text the sorted 64-bit hashes of its word 8-grams, case and punctuation set aside.

    Texts of 3 to 7 words use 3-grams; shorter ones, and those without any word, are one shingle as a whole.
    """
    hashes = _WordHashes()
    for text in texts:
        words = _WORD.findall(unicodedata.normalize("NFC", text).casefold()) or [text]
        size = SHINGLE_WORDS if len(words) >= SHINGLE_WORDS else min(SHORT_SHINGLE_WORDS, len(words))
        values = np.array([hashes[word] for word in words], dtype=np.uint64)
        rolled = np.full(len(words) - size + 1, size, dtype=np.uint64)
        for start in range(size):
            rolled = rolled * _MULTIPLIER + values[start : start + len(rolled)]
            rolled ^= rolled >> np.uint64(29)
        yield np.unique(rolled)


class _WordHashes(dict[str, int]):
    """Hash of every word seen; Python's own hash() differs between processes."""

    def __missing__(self, word: str) -> int:
        value = self[word] = text_key(word)
        return value


def _signatures(sets: Sequence[Keys]) -> NDArray[np.uint32]:
    """MinHash signatures, shape (texts, permutations)."""
    from datasketch import MinHash

    values = ((keys >> np.uint64(32)).tolist() for keys in sets)
    sketches = MinHash.generator(values, num_perm=PERMUTATIONS, seed=1, hashfunc=int)
    rows = [sketch.hashvalues.astype(np.uint32) for sketch in sketches]
    return np.stack(rows) if rows else np.empty((0, PERMUTATIONS), np.uint32)


def band_rows(threshold: float) -> int:
    """Most rows per band for which a pair right at the threshold is still found with a chance of 99.5 %."""
    rows = 1
    for r in range(2, PERMUTATIONS // 2 + 1):
        if (1 - threshold**r) ** (PERMUTATIONS // r) > _MISS:
            break
        rows = r
    return rows


def _candidates(signatures: NDArray[np.uint32], threshold: float) -> list[tuple[int, int]]:
    """Pairs i < j that agree on every row of at least one band."""
    rows = band_rows(threshold)
    pairs: set[tuple[int, int]] = set()
    for start in range(0, PERMUTATIONS - rows + 1, rows):
        bucket = np.zeros(len(signatures), dtype=np.uint64)
        for column in range(start, start + rows):
            bucket = bucket * _MULTIPLIER + signatures[:, column]
        order = np.argsort(bucket, kind="stable")
        same = np.diff(bucket[order]) == 0
        edges = np.diff(same.astype(np.int8), prepend=0, append=0)
        for begin, end in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True):
            pairs.update(_within(order[begin : end + 1].tolist()))
    return sorted(pairs)


def _within(members: list[int]) -> Iterator[tuple[int, int]]:
    reach = len(members) if len(members) <= _CROWD else _CROWD
    for at, i in enumerate(members):
        for j in members[at + 1 : at + 1 + reach]:
            yield i, j
