"""Confidence intervals: Wilson for a proportion, the seeded bootstrap for everything else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from finetune.evaluation.logits import Floats, Integers

_CHUNK = 4_000_000
"""Numbers that one step of a bootstrap may hold at once (32 MB of float64)."""


@dataclass(frozen=True)
class Counts:
    """What the metrics of a single-label classifier are functions of; each array ends in a class axis, (..., C).

    hits: rows of a class that were given that class. truth: rows of a class. predicted: rows given that class.
    """

    hits: Floats
    truth: Floats
    predicted: Floats

    @classmethod
    def of(cls, confusion: Integers) -> Counts:
        """Counts of one confusion matrix (C, C), rows = truth."""
        cells = confusion.astype(np.float64)
        return cls(np.diagonal(cells).copy(), cells.sum(axis=1), cells.sum(axis=0))


def wilson(successes: int, rows: int, confidence: float) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927); it stays in [0, 1] and does not collapse at 0 or 1."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / rows
    centre = share + z * z / (2 * rows)
    reach = z * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    scale = 1 + z * z / rows
    # At 0 and 1 the ends are exact; rounding must not move the proportion out of its own interval.
    return min(max(0.0, (centre - reach) / scale), share), max(min(1.0, (centre + reach) / scale), share)


def resample_confusion(confusion: Integers, resamples: int, seed: int) -> Counts:
    """Counts of `resamples` bootstrap samples, arrays (R, C).

    Drawing N rows with replacement and counting them by (truth, prediction) is one multinomial draw over the
    confusion matrix's cells, so no row is ever touched again.
    """
    classes = len(confusion)
    truth, predicted = np.nonzero(confusion)
    cells = confusion[truth, predicted]
    rows = int(cells.sum())
    generator = np.random.default_rng(seed)
    counts = Counts(*(np.zeros((resamples, classes)) for _ in range(3)))
    by_prediction = np.argsort(predicted, kind="stable")
    truth_names, truth_starts = np.unique(truth, return_index=True)
    predicted_names, predicted_starts = np.unique(predicted[by_prediction], return_index=True)
    right = truth == predicted
    step = max(1, _CHUNK // len(cells))
    for start in range(0, resamples, step):
        part = slice(start, min(start + step, resamples))
        drawn = generator.multinomial(rows, cells / rows, size=part.stop - part.start)
        counts.hits[part, truth[right]] = drawn[:, right]
        counts.truth[part, truth_names] = np.add.reduceat(drawn, truth_starts, axis=1)
        counts.predicted[part, predicted_names] = np.add.reduceat(drawn[:, by_prediction], predicted_starts, axis=1)
    return counts


def resample_means(values: Floats, resamples: int, seed: int) -> Floats:
    """Means of `resamples` bootstrap samples of values (N,), as (R,)."""
    generator = np.random.default_rng(seed)
    rows = len(values)
    step = max(1, _CHUNK // rows)
    means = np.empty(resamples)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        means[start : start + size] = values[generator.integers(0, rows, size=(size, rows))].mean(axis=1)
    return means


def percentiles(value: float, samples: Floats, confidence: float) -> tuple[float, float]:
    """Percentile bootstrap interval (Efron 1979), widened to the measured value if it lies outside.

    A statistic such as macro F1 is biased under resampling, so the plain interval need not contain the measurement.
    """
    low, high = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2])
    return min(float(low), value), max(float(high), value)
