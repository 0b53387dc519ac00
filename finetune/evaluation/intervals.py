"""Confidence intervals: Wilson for a proportion, the seeded bootstrap for everything else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from statistics import NormalDist

import numpy as np

from finetune.evaluation.counts import Counts
from finetune.evaluation.logits import Floats, Integers

_CHUNK = 4_000_000
"""Numbers that one step of a bootstrap may hold at once (32 MB of float64)."""
RESAMPLES = 1000
CONFIDENCE = 0.95


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


def resampled_weights(rows: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each row is drawn in each bootstrap sample, as parts (r, N) of the whole (R, N), so that memory stays small."""
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK // (4 * rows))  # the formulas hold a few arrays of this size at once
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        cells = generator.integers(0, rows, size=(size, rows)) + rows * np.arange(size)[:, None]
        yield np.bincount(cells.ravel(), minlength=size * rows).reshape(size, rows).astype(np.float64)


def resample(
    formulas: Mapping[str, Callable[[Floats], Floats]], rows: int, resamples: int, seed: int
) -> dict[str, Floats]:
    """Each formula, a function of row weights (r, N) giving (r,), over the same `resamples` bootstrap samples: arrays (R,)."""
    parts = [{name: formula(weights) for name, formula in formulas.items()}
             for weights in resampled_weights(rows, resamples, seed)]  # fmt: skip
    return {name: np.concatenate([part[name] for part in parts]) for name in formulas}


def percentiles(value: float, samples: Floats, confidence: float) -> tuple[float, float]:
    """Percentile bootstrap interval (Efron 1979), widened to the measured value if it lies outside.

    A statistic such as macro F1 is biased under resampling, so the plain interval need not contain the measurement.
    Samples in which the statistic is undefined (NaN) are left out.
    """
    samples = samples[~np.isnan(samples)]
    if not len(samples):
        return value, value
    low, high = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2])
    return min(float(low), value), max(float(high), value)
