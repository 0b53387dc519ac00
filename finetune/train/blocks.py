"""Sequences of tokens as training rows: each has a target at every place, and a batch is as wide as its longest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from finetune.errors import DataError
from finetune.preprocess import IGNORED
from finetune.train.job import Batch, Moment


class SequenceEncoder(Protocol):
    """What `finetune.preprocess.LanguageEncoder` does with sequences."""

    def collate(self, rows: Sequence[Any], /) -> Mapping[str, np.ndarray]:
        """Arguments of the network, padded on the right to the longest of these rows."""

    def targets(self, rows: Sequence[Any], /) -> np.ndarray:
        """int64 (B, T), as wide, `IGNORED` where no loss is taken."""

    def size_of(self, row: Any, /) -> int:
        """Tokens of a row."""


@dataclass(frozen=True)
class BlockExamples:
    """Sequences, packed or not, as `Examples`; the same at every moment. DataError when there is nothing to learn in them."""

    sequences: Sequence[Any]
    encoder: SequenceEncoder

    def __post_init__(self) -> None:
        if not (self.labels != IGNORED).any():
            raise DataError(
                "the training rows hold no token to learn: every answer is empty or was cut off; raise data.max_length, or see to the data"
            )

    @cached_property
    def lengths(self) -> Sequence[int]:
        """Tokens per sequence."""
        return [self.encoder.size_of(row) for row in self.sequences]

    @cached_property
    def labels(self) -> np.ndarray:
        """Targets of all sequences, int64 (N, T), padded with `IGNORED` to the longest."""
        return np.asarray(self.encoder.targets(self.sequences))

    def batch(self, rows: Sequence[int], moment: Moment) -> Batch:
        """Some sequences, and their targets, no wider than the longest of them."""
        chosen = [self.sequences[row] for row in rows]
        return self.encoder.collate(chosen), np.asarray(self.encoder.targets(chosen))
