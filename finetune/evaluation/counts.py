"""Precision, recall and F1 from three counts per label, for one set of rows or for many resamples at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from finetune.evaluation.logits import Floats, Integers


@dataclass(frozen=True)
class Counts:
    """What these metrics are functions of; each array ends in a label axis, (..., C).

    hits: rows of a label that were given that label. truth: rows of a label. predicted: rows given that label.
    A row counts 1, or its weight, so the numbers need not be whole.
    """

    hits: Floats
    truth: Floats
    predicted: Floats

    @classmethod
    def of(cls, confusion: Integers | Floats) -> Counts:
        """Counts of one confusion matrix (C, C), rows = truth; of rows, or of their weights."""
        cells = confusion.astype(np.float64)
        return cls(np.diagonal(cells).copy(), cells.sum(axis=1), cells.sum(axis=0))


def ratio(over: Floats, under: Floats) -> Floats:
    """over / under, 0 where there is nothing to divide by (scikit-learn's zero_division=0)."""
    return np.divide(over, under, out=np.zeros_like(over, dtype=np.float64), where=under > 0)


def precision(counts: Counts) -> Floats:
    """Of the rows given a label, the share that has it."""
    return ratio(counts.hits, counts.predicted)


def recall(counts: Counts) -> Floats:
    """Of the rows of a label, the share that was given it."""
    return ratio(counts.hits, counts.truth)


def f1(counts: Counts) -> Floats:
    """Harmonic mean of precision and recall."""
    return ratio(2 * counts.hits, counts.truth + counts.predicted)


def mean_over(values: Floats, seen: npt.NDArray[np.bool_]) -> Floats:
    """Mean over the last axis of the values that are seen; 0 where none is."""
    return ratio((values * seen).sum(axis=-1), seen.sum(axis=-1).astype(np.float64))


def macro(per_label: Callable[[Counts], Floats]) -> Callable[[Counts], Floats]:
    """Mean over the labels that occur as truth or as prediction, as scikit-learn averages."""
    return lambda counts: mean_over(per_label(counts), counts.truth + counts.predicted > 0)


def micro(per_label: Callable[[Counts], Floats]) -> Callable[[Counts], Floats]:
    """The same ratio of counts summed over labels."""

    def summed(counts: Counts) -> Floats:
        return per_label(Counts(*(part.sum(axis=-1) for part in (counts.hits, counts.truth, counts.predicted))))

    return summed


def per_class(
    counts: Counts, support: Integers | Floats, label_names: Sequence[str]
) -> dict[str, dict[str, float | int]]:
    """Precision, recall, F1 and the number of true rows of each label, JSON-ready.

    Args: counts, arrays (C,), of weighted rows where rows have weights; support (C,), the true rows themselves.
    """
    table = zip(label_names, precision(counts), recall(counts), f1(counts), support, strict=True)
    return {
        label: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(rows)}
        for label, p, r, f, rows in table
    }
