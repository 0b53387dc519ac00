"""Confidence intervals: Wilson for a proportion of rows, the seeded bootstrap for everything else."""

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


def wilson(successes: float, rows: float, confidence: float) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927); it stays in [0, 1] and does not collapse at 0 or 1.

    Of weighted rows give their effective number, and the share of it that the weighted proportion is.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / rows
    centre = share + z * z / (2 * rows)
    reach = z * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    scale = 1 + z * z / rows
    # At 0 and 1 the ends are exact; rounding must not move the proportion out of its own interval.
    return min(max(0.0, (centre - reach) / scale), share), max(min(1.0, (centre + reach) / scale), share)


def effective_rows(weights: Floats) -> float:
    """How many rows that count alike tell as much as these: (Σ w)² / Σ w² (Kish 1965, section 11.7). Weights: (N,)."""
    shares = weights / weights.max()  # squares of very small or large weights would leave the range of a float
    return float(shares.sum() ** 2 / (shares**2).sum())


def resample_counts(
    truth: Integers, predicted: Integers, classes: int, resamples: int, seed: int, weights: Floats | None = None
) -> Counts:
    """Counts of `resamples` bootstrap samples of rows, arrays (R, C). Args: truth, predicted and weights, (N,) each.

    Rows of one truth, prediction and weight are alike to every metric of counts. Drawing N rows with replacement is therefore one
    multinomial draw over these cells, and no row is ever touched again; rows are drawn, not weight, and then count by their weight.
    """
    truth, predicted, rows, weight = _cells(truth, predicted, weights)
    counts = Counts(*(np.zeros((resamples, classes)) for _ in range(3)))

    def grouped(cells: Integers, labels: Integers) -> tuple[Integers, Integers, Integers]:
        """Cells in an order that keeps each label's together, the labels that occur, and where each of them begins."""
        return cells, *np.unique(labels[cells], return_index=True)

    sums = [
        (counts.hits, *grouped(np.flatnonzero(truth == predicted), truth)),
        (counts.truth, *grouped(np.arange(len(truth)), truth)),
        (counts.predicted, *grouped(np.argsort(predicted, kind="stable"), predicted)),
    ]
    generator = np.random.default_rng(seed)
    total = rows.sum()
    step = max(1, _CHUNK // len(rows))
    for start in range(0, resamples, step):
        part = slice(start, min(start + step, resamples))
        drawn = generator.multinomial(total, rows / total, size=part.stop - part.start) * weight
        for result, cells, labels, starts in sums:
            result[part, labels] = np.add.reduceat(drawn[:, cells], starts, axis=1)
    return counts


def _cells(truth: Integers, predicted: Integers, weights: Floats | None) -> tuple[Integers, Integers, Integers, Floats]:
    """Truth, prediction, number of rows and weight of each kind of row, (K,) each, in order of truth, then prediction, then weight."""
    weights = np.ones(len(truth)) if weights is None else weights
    order = np.lexsort((weights, predicted, truth))
    truth, predicted, weights = truth[order], predicted[order], weights[order]
    changes = (np.diff(truth) != 0) | (np.diff(predicted) != 0) | (np.diff(weights) != 0)
    first = np.append(0, np.flatnonzero(changes) + 1)
    return truth[first], predicted[first], np.diff(np.append(first, len(order))), weights[first]


def resample_means(values: Floats, resamples: int, seed: int, weights: Floats | None = None) -> Floats:
    """Means of `resamples` bootstrap samples of values (N,), as (R,); of rows that count `weights` (N,), or alike for None."""
    generator = np.random.default_rng(seed)
    rows = len(values)
    step = max(1, _CHUNK // rows)
    means = np.empty(resamples)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = generator.integers(0, rows, size=(size, rows))
        counted = None if weights is None else weights[drawn]
        means[start : start + size] = np.average(values[drawn], axis=1, weights=counted)
    return means


def measured_weights(rows: int, weights: Floats | None) -> Floats:
    """Row weights (1, N) that give a formula's measured value: `weights` (N,), or one each for None."""
    return np.ones((1, rows)) if weights is None else weights[None]


def resampled_weights(rows: int, resamples: int, seed: int, weights: Floats | None = None) -> Iterator[Floats]:
    """How much each row counts in each bootstrap sample, as parts (r, N) of the whole (R, N), so that memory stays small.

    That is how often it is drawn, times its own weight where `weights` (N,) are given: rows are drawn, not weight.
    """
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK // (4 * rows))  # the formulas hold a few arrays of this size at once
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        cells = generator.integers(0, rows, size=(size, rows)) + rows * np.arange(size)[:, None]
        drawn = np.bincount(cells.ravel(), minlength=size * rows).reshape(size, rows).astype(np.float64)
        yield drawn if weights is None else drawn * weights


def resample(
    formulas: Mapping[str, Callable[[Floats], Floats]],
    rows: int,
    resamples: int,
    seed: int,
    weights: Floats | None = None,
) -> dict[str, Floats]:
    """Each formula, a function of row weights (r, N) giving (r,), over the same `resamples` bootstrap samples: arrays (R,)."""
    parts = [{name: formula(counted) for name, formula in formulas.items()}
             for counted in resampled_weights(rows, resamples, seed, weights)]  # fmt: skip
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
