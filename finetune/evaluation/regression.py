"""Metrics of a number per row, by name, with confidence intervals; every result is ready for strict JSON.

Every built-in metric is a function of the rows and their weights: the rows' own weights (one each where they have none) give the
value, and these times the counts of a bootstrap sample give the interval. They need no network and import nothing but numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.errors import DataError
from finetune.evaluation import external
from finetune.evaluation.intervals import CONFIDENCE, RESAMPLES, effective_rows, measured_weights, percentiles, resample
from finetune.evaluation.logits import Floats, Weights, checked_numbers, checked_weights
from finetune.evaluation.names import known
from finetune.evaluation.ranking import Ranks
from finetune.recipe.task_names import METRICS as NAMES

METRICS = NAMES["regression"]
RISING = frozenset({"r2", "pearson", "spearman"})
"""Metrics of which more is better; the others are errors."""
SAME_WITHIN = 0.05
"""Answers of two forms count as the same within this share of the labels' standard deviation."""
POINTS = 500
"""Most points of the report's picture of answers against truths."""
BINS = 20
QUANTILES = {"p05": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95}


@dataclass(frozen=True)
class Answers:
    """Rows as a model answered them: answers and labels, both (N,), and the rows' weights (N,) if they have any."""

    answers: Floats
    labels: Floats
    weights: Floats | None = None

    @classmethod
    def checked(cls, logits: npt.NDArray[Any], labels: npt.NDArray[Any], weights: Weights) -> Answers:
        """As `checked_numbers` and `checked_weights` let them through."""
        return cls(*checked_numbers(logits, labels), checked_weights(weights, len(labels)))

    @cached_property
    def errors(self) -> Floats:
        return self.answers - self.labels

    @cached_property
    def ranks(self) -> tuple[Ranks, Ranks]:
        return Ranks.of(self.labels), Ranks.of(self.answers)


def _mean(values: Floats, weights: Floats) -> Floats:
    """Weighted mean over rows, (R,). Values: (N,) or (R, N); weights: (R, N)."""
    if values.ndim == 1:
        return np.asarray(weights @ values / weights.sum(axis=1))
    return np.asarray((weights * values).sum(axis=1) / weights.sum(axis=1))


def _varies(values: Floats, weights: Floats) -> npt.NDArray[np.bool_]:
    """Whether the rows that count hold different values, (R,): exact, where a variance would be a rounding error instead of 0."""
    counted = weights > 0
    greatest, least = np.where(counted, values, -np.inf).max(axis=1), np.where(counted, values, np.inf).min(axis=1)
    return np.asarray(greatest > least)


def _deviations(values: Floats, weights: Floats) -> Floats:
    """Values less their weighted mean, (R, N)."""
    return np.asarray(values - _mean(values, weights)[:, None])


def _correlation(labels: Floats, answers: Floats, weights: Floats) -> Floats:
    """Pearson's r, (R,): NaN where the labels are constant, and 0 where only the answers are, as these follow nothing."""
    left, right = _deviations(labels, weights), _deviations(answers, weights)
    scale = np.sqrt(_mean(left**2, weights)) * np.sqrt(_mean(right**2, weights))
    moving = _varies(answers, weights) & (scale > 0)
    r = np.where(moving, _mean(left * right, weights) / np.where(moving, scale, 1), 0.0)
    return np.where(_varies(labels, weights), np.clip(r, -1, 1), np.nan)


def _r2(rows: Answers, weights: Floats) -> Floats:
    spread = _mean(_deviations(rows.labels, weights) ** 2, weights)
    defined = _varies(rows.labels, weights) & (spread > 0)
    return np.where(defined, 1 - _mean(rows.errors**2, weights) / np.where(defined, spread, 1), np.nan)


def _spearman(rows: Answers, weights: Floats) -> Floats:
    labels, answers = (ranks.weighted(weights) for ranks in rows.ranks)
    return _correlation(labels, answers, weights)


FORMULAS: Mapping[str, Callable[[Answers, Floats], Floats]] = {
    "mae": lambda rows, weights: _mean(np.abs(rows.errors), weights),
    "rmse": lambda rows, weights: np.sqrt(_mean(rows.errors**2, weights)),
    "r2": _r2,
    "pearson": lambda rows, weights: _correlation(rows.labels, rows.answers, weights),
    "spearman": _spearman,
    "loss": lambda rows, weights: _mean(rows.errors**2, weights),
}
"""Functions of the rows and row weights (R, N), giving (R,)."""


def check_metrics(names: Sequence[str], *, classes: int = 2, weighted: bool = False) -> None:
    """Make sure, before training, that every name can be computed; `evaluate:` metrics are tried on made-up numbers.

    Raises RecipeError: unknown name, evaluate library not installed, Hub not reachable, a metric that cannot score numbers, or, for
    rows that are `weighted`, any `evaluate:` metric.
    """
    if weighted:
        external.refuse_weighted(names)
    for name in names:
        if name.startswith(external.PREFIX):
            external.try_out(name, "regression", np.array([0.25, -1.5, 3.75]))
        else:
            known(name, METRICS)


def higher_is_better(metric: str) -> bool:
    """Whether a greater value of this built-in metric is better; false for errors. RecipeError for an unknown name."""
    return known(metric, METRICS) in RISING


def score(metric: str, logits: npt.NDArray[Any], labels: npt.NDArray[Any], weights: Weights = None) -> float:
    """One built-in metric from logits (N, 1) and labels (N,), of rows that count `weights` (N,), or alike.

    `loss` is the mean squared error.

    Raises RecipeError (unknown name), TrainingError (logits not finite), DataError (rows, labels and weights do not fit, or all
    labels are equal and the metric is then undefined).
    """
    value = _value(known(metric, METRICS), Answers.checked(logits, labels, weights))
    if value is None:
        raise DataError(
            f"evaluation: '{metric}' is undefined because all {len(labels)} labels are equal; add rows or choose mae or rmse"
        )
    return value


def measure(
    metrics: Sequence[str], logits: npt.NDArray[Any], labels: npt.NDArray[Any], weights: Weights = None
) -> dict[str, float | None]:
    """Values of built-in and `evaluate:` metrics without intervals; None where one is undefined.

    With weights an `evaluate:` metric is a RecipeError.
    """
    rows = Answers.checked(logits, labels, weights)
    return {name: _any_value(name, rows) for name in metrics}


def evaluate(
    logits: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    label_names: Sequence[str],
    metrics: Sequence[str],
    seed: int = 0,
    weights: Weights = None,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Everything the report says about one set of rows, JSON-ready.

    Args: logits (N, 1); labels (N,); label_names is empty, as numbers have no names; metrics, built-in names or
    `evaluate:NAME_OR_PATH`; weights (N,).
    Returns: {"rows", "loss" and each metric: {"value", "low", "high"}, "label_std", "residuals": {"min", "p05", "p25", "median", "p75",
    "p95", "max", "mean"} of answer − truth, "points": [[truth, answer], ...] of at most 500 rows spread evenly over the order of
    truths, "histogram": {"edges", "labels", "answers"}, counts in 20 equal bins of both}. All three of an undefined metric are
    None; low and high are None for `evaluate:` metrics. Raises RecipeError, TrainingError, DataError as `score` does.
    With weights the loss and metrics are of weighted rows; all that describes labels and answers ("label_std" and what follows it)
    stays of rows; and there are "effective_rows" (Kish's) and "unweighted": {metric and "loss": value} where every row counts alike.
    """
    rows = Answers.checked(logits, labels, weights)
    names = list(dict.fromkeys((*metrics, "loss")))
    values = {name: _any_value(name, rows) for name in names}
    built_in = [name for name in names if name in FORMULAS]
    formulas = {name: lambda weights, name=name: FORMULAS[name](rows, weights) for name in built_in}
    samples = resample(formulas, len(rows.labels), resamples, seed, rows.weights)
    result: dict[str, Any] = {"rows": len(rows.labels)}
    for name, value in values.items():
        low: float | None = None
        high: float | None = None
        if value is not None and name in samples:
            low, high = percentiles(value, samples[name], confidence)
        result[name] = {"value": value, "low": low, "high": high}
    result |= _picture(rows)
    if rows.weights is not None:
        result |= {"effective_rows": effective_rows(rows.weights), "unweighted": measure(names, logits, labels)}
    return result


def agreement(reference: npt.NDArray[Any], other: npt.NDArray[Any], labels: npt.NDArray[Any]) -> float:
    """Share of rows whose answers from two forms of a model differ by at most 5 % of the labels' spread. Logits (N, 1)."""
    reference, labels = checked_numbers(reference, labels)
    other, _ = checked_numbers(other, labels)
    return float(np.mean(np.abs(reference - other) <= SAME_WITHIN * spread(labels)))


def drop(metric: str, reference_score: float, other_score: float, labels: npt.NDArray[Any]) -> float:
    """How much worse the other score is, in units of the labels' spread, so that one limit fits labels of any unit.

    `mae` and `rmse` are divided by the standard deviation, `loss` by the variance; r2 and correlations are fractions already.
    Negative if it is better.
    """
    change = reference_score - other_score
    unit = spread(np.asarray(labels, dtype=np.float64))
    return change if higher_is_better(metric) else -change / (unit**2 if metric == "loss" else unit)


def hardness(logits: npt.NDArray[Any], labels: npt.NDArray[Any]) -> Floats:
    """How far each answer is off, in the labels' unit (N,)."""
    return np.abs(Answers(*checked_numbers(logits, labels)).errors)


def spread(labels: Floats) -> float:
    """Standard deviation of the labels (N,); their size where all are equal, and 1 where all are 0, so that it can divide."""
    if labels.max() > labels.min():
        return float(labels.std())
    return float(abs(labels[0])) or 1.0


def _value(metric: str, rows: Answers) -> float | None:
    value = float(FORMULAS[metric](rows, measured_weights(len(rows.labels), rows.weights))[0])
    return None if np.isnan(value) else value


def _any_value(metric: str, rows: Answers) -> float | None:
    if metric.startswith(external.PREFIX):
        return external.value(metric, "regression", rows.answers, rows.labels, rows.weights)
    return _value(known(metric, METRICS), rows)


def _picture(rows: Answers) -> dict[str, Any]:
    """What the report draws: residuals, points of truth and answer, and a histogram of both."""
    order = np.lexsort((rows.answers, rows.labels))
    places = order[np.linspace(0, len(order) - 1, min(POINTS, len(order))).round().astype(np.int64)]
    edges = _edges(np.concatenate([rows.labels, rows.answers]))
    residuals = {name: float(np.quantile(rows.errors, share)) for name, share in QUANTILES.items()}
    return {
        "label_std": float(rows.labels.std()),
        "residuals": {
            "min": float(rows.errors.min()),
            **residuals,
            "max": float(rows.errors.max()),
            "mean": float(rows.errors.mean()),
        },
        "points": [[float(rows.labels[row]), float(rows.answers[row])] for row in places],
        "histogram": {
            "edges": edges.tolist(),
            "labels": np.histogram(rows.labels, edges)[0].tolist(),
            "answers": np.histogram(rows.answers, edges)[0].tolist(),
        },
    }


def _edges(values: Floats) -> Floats:
    """Ends of equal bins over the values, (BINS + 1,); values that are all but equal get bins of visible width."""
    low, high = float(values.min()), float(values.max())
    size = max(abs(low), abs(high)) or 1.0
    if high - low < 1e-9 * size:
        low, high = low - size / 2, high + size / 2
    return np.linspace(low, high, BINS + 1)
