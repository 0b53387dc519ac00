"""Metrics of any number of labels per row, by name, with confidence intervals; every result is ready for strict JSON.

A row is given each label whose probability is above one half, that is, whose logit is above zero. Every built-in metric is
a function of the rows and their weights: the rows' own weights (one each where they have none) give the value, and these times
the counts of a bootstrap sample give the interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.errors import DataError, RecipeError
from finetune.evaluation import external
from finetune.evaluation.counts import Counts, f1, macro, micro, per_class, precision, recall
from finetune.evaluation.intervals import (
    CONFIDENCE,
    RESAMPLES,
    effective_rows,
    measured_weights,
    percentiles,
    resample,
    wilson,
)
from finetune.evaluation.logits import Floats, Weights, checked_decisions, checked_weights, decision_losses
from finetune.evaluation.names import known
from finetune.evaluation.ranking import Ranking
from finetune.recipe.task_names import METRICS as NAMES

METRICS = NAMES["multi_label"]
THRESHOLD = 0.5
"""A label is given where its probability is above this."""
_RANKING_WORK = 200_000_000
"""Most rows × labels × resamples for the intervals of average precision: tens of seconds."""
_LEAST_RESAMPLES = 200


@dataclass(frozen=True)
class Answers:
    """Rows as a model answered them: logits, and labels of 0 and 1, both (N, C), and the rows' weights (N,) if they have any."""

    logits: Floats
    labels: Floats
    weights: Floats | None = None

    @classmethod
    def checked(cls, logits: npt.NDArray[Any], labels: npt.NDArray[Any], weights: Weights) -> Answers:
        """As `checked_decisions` and `checked_weights` let them through."""
        return cls(*checked_decisions(logits, labels), checked_weights(weights, len(labels)))

    @cached_property
    def given(self) -> Floats:
        return (self.logits > 0).astype(np.float64)

    @cached_property
    def losses(self) -> Floats:
        """Mean binary cross-entropy of each row, (N,)."""
        return np.asarray(decision_losses(self.logits, self.labels).mean(axis=1))

    @cached_property
    def rankings(self) -> list[Ranking]:
        return [Ranking.of(self.logits[:, k], self.labels[:, k]) for k in range(self.labels.shape[1])]

    def counts(self, weights: Floats) -> Counts:
        """Counts of weighted rows, arrays (R, C). Weights: (R, N)."""
        return Counts(weights @ (self.given * self.labels), weights @ self.labels, weights @ self.given)

    def average_precisions(self, weights: Floats) -> Floats:
        """Average precision per label (R, C) of weighted rows; NaN for a label that none of them has."""
        return np.stack([ranking.average_precision(weights) for ranking in self.rankings], axis=-1)


Formula = Callable[[Answers, Floats], Floats]


def _of_counts(formula: Callable[[Counts], Floats]) -> Formula:
    return lambda answers, weights: formula(answers.counts(weights))


def _of_rows(values: Callable[[Answers], Floats]) -> Formula:
    """Mean over weighted rows of one value per row."""
    # Both sums run in one order, so that where every row has the value 1 the mean is no less and no more.
    return lambda answers, weights: np.asarray(weights @ values(answers) / (weights @ np.ones(weights.shape[1])))


def _average_precision_macro(answers: Answers, weights: Floats) -> Floats:
    """Mean over the labels that a row has; NaN if no row has any."""
    each = answers.average_precisions(weights)
    defined = ~np.isnan(each)
    found = defined.any(axis=-1)
    return np.where(found, np.where(defined, each, 0).sum(axis=-1) / np.maximum(defined.sum(axis=-1), 1), np.nan)


def _exact(answers: Answers) -> Floats:
    return np.asarray((answers.given == answers.labels).all(axis=1), dtype=np.float64)


FORMULAS: Mapping[str, Formula] = {
    "f1_micro": _of_counts(micro(f1)),
    "f1_macro": _of_counts(macro(f1)),
    "precision_micro": _of_counts(micro(precision)),
    "precision_macro": _of_counts(macro(precision)),
    "recall_micro": _of_counts(micro(recall)),
    "recall_macro": _of_counts(macro(recall)),
    "exact_match": _of_rows(_exact),
    "label_accuracy": _of_rows(lambda answers: (answers.given == answers.labels).mean(axis=1)),
    "average_precision_macro": _average_precision_macro,
    "loss": _of_rows(lambda answers: answers.losses),
}
"""Functions of the answers and row weights (R, N), giving (R,)."""


def check_metrics(names: Sequence[str], *, classes: int = 2, weighted: bool = False) -> None:
    """Make sure, before training, that every name can be computed; `evaluate:` metrics are tried on rows of `classes` labels.

    Raises RecipeError: unknown name, evaluate library not installed, Hub not reachable, a metric that cannot score rows of 0 and 1,
    or, for rows that are `weighted`, any `evaluate:` metric.
    """
    if weighted:
        external.refuse_weighted(names)
    for name in names:
        if name.startswith(external.PREFIX):
            # Rows with one label, all but one, and all: every label occurs and is absent.
            one = np.eye(classes, dtype=np.int64)
            external.try_out(name, "multi_label", np.concatenate([one, 1 - one, np.ones_like(one)]))
        else:
            known(name, METRICS)


def higher_is_better(metric: str) -> bool:
    """Whether a greater value of this built-in metric is better; false for `loss` alone. RecipeError for an unknown name."""
    return known(metric, METRICS) != "loss"


def score(metric: str, logits: npt.NDArray[Any], labels: npt.NDArray[Any], weights: Weights = None) -> float:
    """One built-in metric from logits (N, C) and labels (N, C) of 0 and 1, of rows that count `weights` (N,), or alike.

    `loss` is the mean binary cross-entropy in nats.

    Raises RecipeError (unknown name), TrainingError (logits not finite), DataError (rows, labels and weights do not fit, or no
    row has any label and the metric is then undefined).
    """
    value = _value(known(metric, METRICS), Answers.checked(logits, labels, weights))
    if value is None:
        raise DataError(
            f"evaluation: '{metric}' is undefined because none of the {len(labels)} rows has a label; add rows or choose another metric"
        )
    return value


def measure(
    metrics: Sequence[str], logits: npt.NDArray[Any], labels: npt.NDArray[Any], weights: Weights = None
) -> dict[str, float | None]:
    """Values of built-in and `evaluate:` metrics without intervals; None where one is undefined.

    With weights an `evaluate:` metric is a RecipeError.
    """
    answers = Answers.checked(logits, labels, weights)
    return {name: _any_value(name, answers) for name in metrics}


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

    Args: logits (N, C); labels (N, C) of 0 and 1; label_names, C of them; metrics, built-in names or `evaluate:NAME_OR_PATH`;
    weights (N,).
    Returns: {"rows", "loss" and each metric: {"value", "low", "high"}, "per_class": {label: {"precision", "recall", "f1", "support",
    "average_precision" (None where no row has the label), "threshold", "confusion": [[true negatives, false positives],
    [false negatives, true positives]]}}}. Low and high are None for `evaluate:` metrics.
    With weights all of these are of weighted rows, apart from "rows", "support" and "confusion", which count rows; and there are
    "effective_rows" (Kish's) and "unweighted": {metric and "loss": value} where every row counts alike.
    Raises RecipeError, TrainingError, DataError as `score` does.
    """
    answers = Answers.checked(logits, labels, weights)
    rows, outputs = answers.labels.shape
    if len(label_names) != outputs:
        raise RecipeError(
            f"evaluation: {len(label_names)} label names for {outputs} model outputs; name each output once"
        )
    names = list(dict.fromkeys((*metrics, "loss")))
    values = {name: _any_value(name, answers) for name in names}
    samples = _samples([name for name in names if name in FORMULAS], answers, resamples, seed)
    result: dict[str, Any] = {"rows": rows}
    for name, value in values.items():
        low: float | None = None
        high: float | None = None
        if name == "exact_match" and value is not None:
            counted = rows if answers.weights is None else effective_rows(answers.weights)
            low, high = wilson(value * counted, counted, confidence)
        elif value is not None and name in samples:
            low, high = percentiles(value, samples[name], confidence)
        result[name] = {"value": value, "low": low, "high": high}
    result["per_class"] = _per_class(answers, label_names)
    if answers.weights is not None:
        result |= {"effective_rows": effective_rows(answers.weights), "unweighted": measure(names, logits, labels)}
    return result


def agreement(reference: npt.NDArray[Any], other: npt.NDArray[Any], labels: npt.NDArray[Any]) -> float:
    """Share of the decisions, one per row and label, that two forms of a model take alike. Logits (N, C)."""
    reference, _ = checked_decisions(reference, labels)
    other, _ = checked_decisions(other, labels)
    return float(np.mean((reference > 0) == (other > 0)))


def drop(metric: str, reference_score: float, other_score: float, labels: npt.NDArray[Any]) -> float:
    """How much worse the other score is, as a fraction of one (for `loss`, in nats); negative if it is better."""
    change = reference_score - other_score
    return change if higher_is_better(metric) else -change


def hardness(logits: npt.NDArray[Any], labels: npt.NDArray[Any]) -> Floats:
    """Mean binary cross-entropy of each row in nats (N,): greatest where the model was surest of wrong answers."""
    return Answers(*checked_decisions(logits, labels)).losses


def _value(metric: str, answers: Answers) -> float | None:
    value = float(FORMULAS[metric](answers, measured_weights(len(answers.labels), answers.weights))[0])
    return None if np.isnan(value) else value


def _any_value(metric: str, answers: Answers) -> float | None:
    if metric.startswith(external.PREFIX):
        given, labels = answers.given.astype(np.int64), answers.labels.astype(np.int64)
        return external.value(metric, "multi_label", given, labels, answers.weights)
    return _value(known(metric, METRICS), answers)


def _samples(names: Sequence[str], answers: Answers, resamples: int, seed: int) -> dict[str, Floats]:
    """Bootstrap samples of the named metrics. Average precision sorts, so it gets fewer of them where there is much to sort."""
    size = answers.labels.size
    fewer = min(resamples, max(_LEAST_RESAMPLES, _RANKING_WORK // size))
    sorting = {"average_precision_macro"}.intersection(names)

    def draw(some: Sequence[str], count: int) -> dict[str, Floats]:
        formulas = {name: lambda weights, name=name: FORMULAS[name](answers, weights) for name in some}
        return resample(formulas, len(answers.labels), count, seed, answers.weights)

    return draw([name for name in names if name not in sorting], resamples) | draw(sorted(sorting), fewer)


def _per_class(answers: Answers, label_names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Ratios of weighted rows, and counts of rows, for each label."""
    weights = measured_weights(len(answers.labels), answers.weights)
    counts, rows = (
        Counts(whole.hits[0], whole.truth[0], whole.predicted[0])
        for whole in (answers.counts(weights), answers.counts(np.ones_like(weights)))
    )
    averages = answers.average_precisions(weights)[0]
    result: dict[str, dict[str, Any]] = {}
    for k, (label, basic) in enumerate(per_class(counts, rows.truth, label_names).items()):
        hits, truth, given = (int(part[k]) for part in (rows.hits, rows.truth, rows.predicted))
        average = float(averages[k])
        result[label] = {
            **basic,
            "average_precision": None if np.isnan(average) else average,
            "threshold": THRESHOLD,
            "confusion": [[len(answers.labels) - truth - given + hits, given - hits], [truth - hits, hits]],
        }
    return result
