"""Do the probabilities mean what they say? Temperature scaling and calibration error (Guo et al. 2017)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.evaluation.counts import ratio
from finetune.evaluation.logits import (
    Floats,
    Integers,
    Weights,
    checked,
    checked_decisions,
    checked_weights,
    log_softmax,
    row_losses,
    weighted_mean,
)

TEMPERATURE_RANGE = (0.05, 20.0)
"""Outside it a temperature says that the logits are unusable, not that they need scaling."""


def softmax(logits: npt.NDArray[Any]) -> Floats:
    """Probabilities over the last axis, float64, same shape as the logits."""
    return np.exp(log_softmax(logits))


def fit_temperature(logits: npt.NDArray[Any], labels: npt.NDArray[Any], weights: Weights = None) -> float:
    """The T > 0 that minimises the cross-entropy of softmax(logits / T) (Guo et al. 2017, §4.2), within TEMPERATURE_RANGE.

    In β = 1/T the loss is convex; its slope is the (weighted) mean over rows of E_p[z] − z_y, whose zero is found by bracketing.
    Where every row's true label has the greatest logit the loss only falls as T → 0: such rows say nothing about
    how often the model is wrong, so T stays 1.

    Args: logits (N, C), labels (N,) and weights (N,), of rows that the model was not trained on. Raises TrainingError, DataError.
    """
    from scipy.optimize import brentq

    logits, labels = checked(logits, labels)
    weights = checked_weights(weights, len(labels))
    own = logits[np.arange(len(labels)), labels]
    if (own >= logits.max(axis=1)).all():
        return 1.0

    def slope(log_temperature: float) -> float:
        probabilities = softmax(logits / math.exp(log_temperature))
        return weighted_mean((probabilities * logits).sum(axis=1) - own, weights)

    low, high = (math.log(end) for end in TEMPERATURE_RANGE)
    # The slope in β falls as T grows; without a change of sign the best T is the end that it points to.
    if slope(low) <= 0:
        return TEMPERATURE_RANGE[0]
    if slope(high) >= 0:
        return TEMPERATURE_RANGE[1]
    return math.exp(float(brentq(slope, low, high, xtol=1e-8)))


@dataclass(frozen=True)
class Bins:
    """Rows by their top probability, in B equal-width bins (low, high]: edges (B + 1,), everything else (B,).

    rows: how many; weight: what they count together; confidence and accuracy: their weighted means, 0 where a bin is empty.
    """

    edges: Floats
    rows: Integers
    weight: Floats
    confidence: Floats
    accuracy: Floats

    @classmethod
    def of(cls, probabilities: npt.NDArray[Any], labels: npt.NDArray[Any], bins: int, weights: Floats | None) -> Bins:
        """Args: probabilities (N, C), labels (N,), weights (N,) or None."""
        confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
        weights = np.ones(len(labels)) if weights is None else weights
        edges = np.linspace(0.0, 1.0, bins + 1)
        place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)

        def summed(values: Floats) -> Floats:
            return np.bincount(place, weights=values, minlength=bins).astype(np.float64)

        rows, weight = np.bincount(place, minlength=bins), summed(weights)
        return cls(edges, rows, weight, *(ratio(summed(weights * own), weight) for own in (confidence, right)))


def reliability_bins(
    probabilities: npt.NDArray[Any], labels: npt.NDArray[Any], bins: int, weights: Floats | None = None
) -> list[dict[str, float | int | None]]:
    """Bins of the top probability: weighted mean confidence and accuracy (None where a bin is empty), and count of rows."""
    found = Bins.of(probabilities, labels, bins, weights)
    return [
        {
            "low": float(found.edges[i]),
            "high": float(found.edges[i + 1]),
            "confidence": float(found.confidence[i]) if n else None,
            "accuracy": float(found.accuracy[i]) if n else None,
            "count": int(n),
        }
        for i, n in enumerate(found.rows)
    ]


def expected_calibration_error(
    probabilities: npt.NDArray[Any], labels: npt.NDArray[Any], bins: int, weights: Floats | None = None
) -> float:
    """ECE = Σ_b w_b/w · |accuracy_b − confidence_b| over equal-width bins of the top probability (Naeini et al. 2015).

    w_b is the number of a bin's rows, or the sum of their weights.
    Args: probabilities (N, C), labels (N,), weights (N,). Returns a number in [0, 1].
    """
    found = Bins.of(probabilities, labels, bins, weights)
    gaps = found.weight * np.abs(found.accuracy - found.confidence)
    return float(sum(gaps) / found.weight.sum())


def calibration_report(
    validation_logits: npt.NDArray[Any],
    validation_labels: npt.NDArray[Any],
    test_logits: npt.NDArray[Any],
    test_labels: npt.NDArray[Any],
    bins: int,
    validation_weights: Weights = None,
    test_weights: Weights = None,
) -> dict[str, Any]:
    """Temperature fitted on validation rows; ECE, cross-entropy (nll), Brier score and bins measured on test rows.

    Scaling by a temperature never changes which label comes first, so no other metric moves. Rows count by their weights where they
    have any, apart from the bins' "count", which is of rows.
    Raises TrainingError (logits not finite), DataError (rows, labels and weights do not fit).
    """
    temperature = fit_temperature(validation_logits, validation_labels, validation_weights)
    logits, labels = checked(test_logits, test_labels)
    weights = checked_weights(test_weights, len(labels))
    result: dict[str, Any] = {"temperature": temperature}
    for when, scaled in (("before", logits), ("after", logits / temperature)):
        probabilities = softmax(scaled)
        result[f"ece_{when}"] = expected_calibration_error(probabilities, labels, bins, weights)
        result[f"nll_{when}"] = weighted_mean(row_losses(scaled, labels), weights)
        result[f"brier_{when}"] = _brier(probabilities, labels, weights)
        result[f"bins_{when}"] = reliability_bins(probabilities, labels, bins, weights)
    return result


def decision_calibration_report(
    validation_logits: npt.NDArray[Any],
    validation_labels: npt.NDArray[Any],
    test_logits: npt.NDArray[Any],
    test_labels: npt.NDArray[Any],
    bins: int,
    validation_weights: Weights = None,
    test_weights: Weights = None,
) -> dict[str, Any]:
    """`calibration_report` for any number of labels per row: one temperature for all logits, over all (row, label) decisions.

    Args: logits and labels (N, C), labels 0 or 1. Confidence is the probability of the decision taken, yes or no, so it is never
    below one half; nll is the mean binary cross-entropy. Each decision counts what its row does; weights (N,).
    """
    validation = _decisions(validation_logits, validation_labels, validation_weights)
    test = _decisions(test_logits, test_labels, test_weights)
    return calibration_report(*validation[:2], *test[:2], bins, validation[2], test[2])


def _decisions(
    logits: npt.NDArray[Any], labels: npt.NDArray[Any], weights: Weights
) -> tuple[Floats, Integers, Floats | None]:
    """Each (row, label) as a row of two classes, no and yes, with logits (N·C, 2): σ(z) is softmax(0, z); labels, weights (N·C,)."""
    logits, labels = checked_decisions(logits, labels)
    weights = checked_weights(weights, len(labels))
    yes = logits.ravel()
    repeated = None if weights is None else np.repeat(weights, labels.shape[1])
    return np.stack([np.zeros_like(yes), yes], axis=1), labels.ravel().astype(np.int64), repeated


def _brier(probabilities: Floats, labels: Integers, weights: Floats | None) -> float:
    """Weighted mean over rows of Σ_k (p_k − 1[k = y])², from 0 to 2 (Brier 1950)."""
    error = probabilities.copy()
    error[np.arange(len(labels)), labels] -= 1.0
    return weighted_mean((error**2).sum(axis=1), weights)
