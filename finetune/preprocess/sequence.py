"""Token ids side by side, with what should follow each, and which tokens see which."""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

IGNORED = -100
"""The target of a position where no loss is taken, as torch's cross entropy has it."""


@dataclass(frozen=True, slots=True)
class Sequence:
    """What the network gets: T token ids, and the id that should follow each, `IGNORED` where no loss is taken.

    `segments` numbers the documents inside a packed block from 0, one number per token; a token sees only its own segment.
    `rows` are the source rows that the tokens come from.
    """

    ids: list[int]
    targets: list[int]
    segments: list[int]
    rows: tuple[int, ...] = ()


def padding_mask(rows: abc.Sequence[Sequence], shape: tuple[int, int]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """1 for tokens and 0 for padding, and positions from 0: both int64 (B, T), for rows of one segment each."""
    lengths = np.array([len(row.ids) for row in rows], dtype=np.int64)
    columns = np.arange(shape[1], dtype=np.int64)
    return (columns < lengths[:, None]).astype(np.int64), np.tile(columns, (shape[0], 1))


def segment_mask(rows: abc.Sequence[Sequence], shape: tuple[int, int]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Which key (last axis) each query sees, bool (B, 1, T, T), and positions in each segment, int64 (B, T)."""
    columns = np.arange(shape[1], dtype=np.int64)
    segments = np.empty(shape, dtype=np.int64)
    for index, row in enumerate(rows):
        segments[index, : len(row.segments)] = row.segments
        segments[index, len(row.segments) :] = -1 - columns[len(row.segments) :]  # each a segment of its own
    new = np.ones(shape, dtype=bool)
    new[:, 1:] = segments[:, 1:] != segments[:, :-1]
    positions = columns - np.maximum.accumulate(np.where(new, columns, 0), axis=1)
    mask = (segments[:, :, None] == segments[:, None, :]) & (columns[:, None] >= columns)
    return mask[:, None], positions
