"""Metrics of one label per row, by name, with confidence intervals; every result is ready for strict JSON.

The built-in metrics are functions of three counts per class, so one formula gives the value and all bootstrap
resamples; tests hold them equal to scikit-learn's. They need no network and import nothing but numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.errors import RecipeError
from finetune.evaluation import external
from finetune.evaluation.counts import Counts, f1, macro, mean_over, micro, per_class, precision, recall
from finetune.evaluation.intervals import (
    CONFIDENCE,
    RESAMPLES,
    effective_rows,
    percentiles,
    resample_counts,
    resample_means,
    wilson,
)
from finetune.evaluation.logits import Floats, Integers, Weights, checked, checked_weights, row_losses, weighted_mean
from finetune.evaluation.names import known
from finetune.recipe.task_names import METRICS as NAMES

METRICS = NAMES["single_label"]

_accuracy = micro(recall)

COUNT_METRICS: Mapping[str, Callable[[Counts], Floats]] = {
    "accuracy": _accuracy,
    # Classes without a true row are left out: their recall is unknown, not zero.
    "balanced_accuracy": lambda counts: mean_over(recall(counts), counts.truth > 0),
    "f1_macro": macro(f1),
    # With exactly one label per row every micro average is the accuracy.
    "f1_micro": _accuracy,
    "precision_macro": macro(precision),
    "precision_micro": _accuracy,
    "recall_macro": macro(recall),
    "recall_micro": _accuracy,
}


def check_metrics(names: Sequence[str], *, classes: int = 2, weighted: bool = False) -> None:
    """Make sure, before training, that every name can be computed; load `evaluate:` metrics and try them on `classes` labels.

    Raises RecipeError: unknown name, evaluate library not installed, Hub not reachable, a metric that cannot score labels, or, for
    rows that are `weighted`, any `evaluate:` metric.
    """
    if weighted:
        external.refuse_weighted(names)
    for name in names:
        if name.startswith(external.PREFIX):
            external.try_out(name, "single_label", np.arange(classes, dtype=np.int64))
        else:
            known(name, METRICS)


def higher_is_better(metric: str) -> bool:
    """Whether a greater value of this built-in metric is better; false for `loss` alone. RecipeError for an unknown name."""
    return known(metric, METRICS) != "loss"


def score(metric: str, logits: npt.NDArray[Any], labels: npt.NDArray[Any], weights: Weights = None) -> float:
    """One built-in metric from logits (N, C) and labels (N,), of rows that count `weights` (N,), or alike.

    `loss` is the mean cross-entropy in nats.
    Raises RecipeError (unknown name), TrainingError (logits not finite), DataError (rows, labels and weights do not fit).
    """
    known(metric, METRICS)
    logits, labels = checked(logits, labels)
    weights = checked_weights(weights, len(labels))
    if metric == "loss":
        return weighted_mean(row_losses(logits, labels), weights)
    return float(COUNT_METRICS[metric](Counts.of(_confusion(logits, labels, weights))))


def measure(
    metrics: Sequence[str], logits: npt.NDArray[Any], labels: npt.NDArray[Any], weights: Weights = None
) -> dict[str, float | None]:
    """Values of built-in and `evaluate:` metrics without intervals; None where an outside metric is not a finite number.

    With weights an `evaluate:` metric is a RecipeError.
    """
    logits, labels = checked(logits, labels)
    return {
        name: external.value(name, "single_label", logits.argmax(axis=1), labels, weights)
        if name.startswith(external.PREFIX)
        else score(name, logits, labels, weights)
        for name in metrics
    }


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

    Args: logits (N, C); labels (N,); label_names, C of them; metrics, built-in names or `evaluate:NAME_OR_PATH`; weights (N,).
    Returns: {"rows", "loss" and each metric: {"value", "low", "high"}, "per_class": {label: {"precision", "recall",
    "f1", "support"}}, "confusion": C×C counts, rows = truth}. Low and high are None for `evaluate:` metrics.
    With weights all of these are of weighted rows, apart from "rows", "support" and "confusion", which count rows; and there are
    "effective_rows" (Kish's) and "unweighted": {metric and "loss": value} where every row counts alike.
    Raises RecipeError, TrainingError, DataError as `score` does.
    """
    logits, labels = checked(logits, labels)
    if len(label_names) != logits.shape[1]:
        raise RecipeError(
            f"evaluation: {len(label_names)} label names for {logits.shape[1]} model outputs; name each output once"
        )
    names = list(dict.fromkeys((*metrics, "loss")))
    values = measure(names, logits, labels, weights)
    weights, predicted, rows = checked_weights(weights, len(labels)), logits.argmax(axis=1), len(labels)
    drawn = resample_counts(labels, predicted, logits.shape[1], resamples, seed, weights)

    def interval(name: str, value: float | None) -> tuple[float | None, float | None]:
        if value is None or name.startswith(external.PREFIX):
            return None, None
        if name == "loss":
            return percentiles(value, resample_means(row_losses(logits, labels), resamples, seed, weights), confidence)
        if COUNT_METRICS[name] is _accuracy:
            counted = rows if weights is None else effective_rows(weights)
            return wilson(value * counted, counted, confidence)
        return percentiles(value, COUNT_METRICS[name](drawn), confidence)

    result: dict[str, Any] = {"rows": rows}
    for name, value in values.items():
        low, high = interval(name, value)
        result[name] = {"value": value, "low": low, "high": high}
    confusion = _confusion(logits, labels)
    counts = Counts.of(_confusion(logits, labels, weights))
    result["per_class"] = per_class(counts, confusion.sum(axis=1), label_names)
    result["confusion"] = confusion.tolist()
    if weights is not None:
        result |= {"effective_rows": effective_rows(weights), "unweighted": measure(names, logits, labels)}
    return result


def agreement(reference: npt.NDArray[Any], other: npt.NDArray[Any], labels: npt.NDArray[Any]) -> float:
    """Share of rows that two forms of a model, by their logits (N, C), give the same label."""
    reference, _ = checked(reference, labels)
    other, _ = checked(other, labels)
    return float(np.mean(reference.argmax(axis=1) == other.argmax(axis=1)))


def drop(metric: str, reference_score: float, other_score: float, labels: npt.NDArray[Any]) -> float:
    """How much worse the other score is, as a fraction of one (for `loss`, in nats); negative if it is better."""
    change = reference_score - other_score
    return change if higher_is_better(metric) else -change


def hardness(logits: npt.NDArray[Any], labels: npt.NDArray[Any]) -> Floats:
    """Cross-entropy of each row in nats (N,): greatest where the model was surest of a wrong label."""
    return row_losses(*checked(logits, labels))


def _confusion(logits: Floats, labels: Integers, weights: Floats | None = None) -> Integers | Floats:
    """Confusion matrix (C, C), rows = truth: counts of rows, or sums of their weights (N,).

    A tie between logits goes to the first label, as argmax does everywhere.
    """
    classes = logits.shape[1]
    pairs = labels * classes + logits.argmax(axis=1)
    return np.bincount(pairs, weights, minlength=classes * classes).reshape(classes, classes)
