"""Classification metrics by name, with confidence intervals; every result is ready for strict JSON.

The built-in metrics are functions of three counts per class, so one formula gives the value and all bootstrap
resamples; tests hold them equal to scikit-learn's. They need no network and import nothing but numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.errors import RecipeError, nearest
from finetune.evaluation import external
from finetune.evaluation.intervals import Counts, percentiles, resample_confusion, resample_means, wilson
from finetune.evaluation.logits import Floats, Integers, checked, row_losses
from finetune.recipe.types import BUILTIN_METRICS


def _ratio(over: Floats, under: Floats) -> Floats:
    """over / under, 0 where there is nothing to divide by (scikit-learn's zero_division=0)."""
    return np.divide(over, under, out=np.zeros_like(over, dtype=np.float64), where=under > 0)


def _precision(counts: Counts) -> Floats:
    return _ratio(counts.hits, counts.predicted)


def _recall(counts: Counts) -> Floats:
    return _ratio(counts.hits, counts.truth)


def _f1(counts: Counts) -> Floats:
    return _ratio(2 * counts.hits, counts.truth + counts.predicted)


def _accuracy(counts: Counts) -> Floats:
    return _ratio(counts.hits.sum(axis=-1), counts.truth.sum(axis=-1))


def _mean_over(values: Floats, seen: npt.NDArray[np.bool_]) -> Floats:
    return _ratio((values * seen).sum(axis=-1), seen.sum(axis=-1).astype(np.float64))


def _macro(per_class: Callable[[Counts], Floats]) -> Callable[[Counts], Floats]:
    """Mean over the classes that occur as truth or as prediction, as scikit-learn averages."""
    return lambda counts: _mean_over(per_class(counts), counts.truth + counts.predicted > 0)


COUNT_METRICS: Mapping[str, Callable[[Counts], Floats]] = {
    "accuracy": _accuracy,
    # Classes without a true row are left out: their recall is unknown, not zero.
    "balanced_accuracy": lambda counts: _mean_over(_recall(counts), counts.truth > 0),
    "f1_macro": _macro(_f1),
    # With exactly one label per row every micro average is the accuracy.
    "f1_micro": _accuracy,
    "precision_macro": _macro(_precision),
    "precision_micro": _accuracy,
    "recall_macro": _macro(_recall),
    "recall_micro": _accuracy,
}


def check_metrics(names: Sequence[str], *, classes: int = 2) -> None:
    """Make sure, before training, that every name can be computed; load `evaluate:` metrics and try them on `classes` labels.

    Raises RecipeError: unknown name, evaluate library not installed, Hub not reachable, or a metric that cannot score labels.
    """
    for name in names:
        if name.startswith(external.PREFIX):
            external.try_out(external.load(name), name, classes)
        else:
            _known(name)


def higher_is_better(metric: str) -> bool:
    """Whether a greater value of this built-in metric is better; false for `loss` alone. RecipeError for an unknown name."""
    return _known(metric) != "loss"


def score(metric: str, logits: npt.NDArray[Any], labels: npt.NDArray[Any]) -> float:
    """One built-in metric from logits (N, C) and labels (N,); `loss` is the mean cross-entropy in nats.

    Raises RecipeError (unknown name), TrainingError (logits not finite), DataError (rows and labels do not fit).
    """
    _known(metric)
    logits, labels = checked(logits, labels)
    if metric == "loss":
        return float(row_losses(logits, labels).mean())
    return float(COUNT_METRICS[metric](Counts.of(_confusion(logits, labels))))


def measure(metrics: Sequence[str], logits: npt.NDArray[Any], labels: npt.NDArray[Any]) -> dict[str, float | None]:
    """Values of built-in and `evaluate:` metrics without intervals; None where an outside metric is not a finite number."""
    logits, labels = checked(logits, labels)
    return {
        name: external.value(name, logits.argmax(axis=1), labels)
        if name.startswith(external.PREFIX)
        else score(name, logits, labels)
        for name in metrics
    }


def evaluate_classification(
    logits: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    label_names: Sequence[str],
    metrics: Sequence[str],
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything the report says about one set of rows, JSON-ready.

    Args: logits (N, C); labels (N,); label_names, C of them; metrics, built-in names or `evaluate:NAME_OR_PATH`.
    Returns: {"rows", "loss" and each metric: {"value", "low", "high"}, "per_class": {label: {"precision", "recall",
    "f1", "support"}}, "confusion": C×C counts, rows = truth}. Low and high are None for `evaluate:` metrics.
    Raises RecipeError, TrainingError, DataError as `score` does.
    """
    logits, labels = checked(logits, labels)
    if len(label_names) != logits.shape[1]:
        raise RecipeError(
            f"evaluation: {len(label_names)} label names for {logits.shape[1]} model outputs; name each output once"
        )
    confusion = _confusion(logits, labels)
    counts = Counts.of(confusion)
    drawn = resample_confusion(confusion, resamples, seed)
    losses = row_losses(logits, labels)
    right, rows = int(counts.hits.sum()), len(labels)

    result: dict[str, Any] = {"rows": rows}
    for name in dict.fromkeys((*metrics, "loss")):
        if name.startswith(external.PREFIX):
            result[name] = {"value": external.value(name, logits.argmax(axis=1), labels), "low": None, "high": None}
            continue
        value = score(name, logits, labels)
        if name == "loss":
            low, high = percentiles(value, resample_means(losses, resamples, seed), confidence)
        elif COUNT_METRICS[name] is _accuracy:
            low, high = wilson(right, rows, confidence)
        else:
            low, high = percentiles(value, COUNT_METRICS[name](drawn), confidence)
        result[name] = {"value": value, "low": low, "high": high}
    result["per_class"] = _per_class(counts, label_names)
    result["confusion"] = confusion.tolist()
    return result


def _known(metric: str) -> str:
    if metric not in BUILTIN_METRICS:
        raise RecipeError(f"evaluation: unknown metric '{metric}'{nearest(metric, BUILTIN_METRICS)}")
    return metric


def _confusion(logits: Floats, labels: Integers) -> Integers:
    """Confusion matrix (C, C), rows = truth; a tie between logits goes to the first label, as argmax does everywhere."""
    classes = logits.shape[1]
    pairs = labels * classes + logits.argmax(axis=1)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def _per_class(counts: Counts, label_names: Sequence[str]) -> dict[str, dict[str, float | int]]:
    table = zip(label_names, _precision(counts), _recall(counts), _f1(counts), counts.truth, strict=True)
    return {
        label: {"precision": float(precision), "recall": float(recall), "f1": float(f1), "support": int(support)}
        for label, precision, recall, f1, support in table
    }
