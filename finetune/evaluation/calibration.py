"""Do the probabilities mean what they say? Temperature scaling and calibration error (Guo et al. 2017)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.evaluation.logits import Floats, Integers, checked, checked_decisions, log_softmax, row_losses

TEMPERATURE_RANGE = (0.05, 20.0)
"""Outside it a temperature says that the logits are unusable, not that they need scaling."""


def softmax(logits: npt.NDArray[Any]) -> Floats:
    """Probabilities over the last axis, float64, same shape as the logits."""
    return np.exp(log_softmax(logits))


def fit_temperature(logits: npt.NDArray[Any], labels: npt.NDArray[Any]) -> float:
    """The T > 0 that minimises the cross-entropy of softmax(logits / T) (Guo et al. 2017, §4.2), within TEMPERATURE_RANGE.

    In β = 1/T the loss is convex; its slope is the mean over rows of E_p[z] − z_y, whose zero is found by bracketing.
    Where every row's true label has the greatest logit the loss only falls as T → 0: such rows say nothing about
    how often the model is wrong, so T stays 1.

    Args: logits (N, C), labels (N,), of rows that the model was not trained on. Raises TrainingError, DataError.
    """
    from scipy.optimize import brentq

    logits, labels = checked(logits, labels)
    own = logits[np.arange(len(labels)), labels]
    if (own >= logits.max(axis=1)).all():
        return 1.0

    def slope(log_temperature: float) -> float:
        probabilities = softmax(logits / math.exp(log_temperature))
        return float(((probabilities * logits).sum(axis=1) - own).mean())

    low, high = (math.log(end) for end in TEMPERATURE_RANGE)
    # The slope in β falls as T grows; without a change of sign the best T is the end that it points to.
    if slope(low) <= 0:
        return TEMPERATURE_RANGE[0]
    if slope(high) >= 0:
        return TEMPERATURE_RANGE[1]
    return math.exp(float(brentq(slope, low, high, xtol=1e-8)))


def reliability_bins(
    probabilities: npt.NDArray[Any], labels: npt.NDArray[Any], bins: int
) -> list[dict[str, float | int | None]]:
    """Equal-width bins (low, high] of the top probability: mean confidence, accuracy, count; None where a bin is empty."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    confident = np.bincount(place, weights=confidence, minlength=bins)
    correct = np.bincount(place, weights=right, minlength=bins)
    return [
        {
            "low": float(edges[i]),
            "high": float(edges[i + 1]),
            "confidence": float(confident[i] / n) if n else None,
            "accuracy": float(correct[i] / n) if n else None,
            "count": int(n),
        }
        for i, n in enumerate(count)
    ]


def expected_calibration_error(probabilities: npt.NDArray[Any], labels: npt.NDArray[Any], bins: int) -> float:
    """ECE = Σ_b n_b/n · |accuracy_b − confidence_b| over equal-width bins of the top probability (Naeini et al. 2015).

    Args: probabilities (N, C), labels (N,). Returns a number in [0, 1].
    """
    filled = (
        b
        for b in reliability_bins(probabilities, labels, bins)
        if b["confidence"] is not None and b["accuracy"] is not None
    )
    gaps = [float(b["count"] or 0) * abs(float(b["accuracy"] or 0) - float(b["confidence"] or 0)) for b in filled]
    return sum(gaps) / len(labels)


def calibration_report(
    validation_logits: npt.NDArray[Any],
    validation_labels: npt.NDArray[Any],
    test_logits: npt.NDArray[Any],
    test_labels: npt.NDArray[Any],
    bins: int,
) -> dict[str, Any]:
    """Temperature fitted on validation rows; ECE, cross-entropy (nll), Brier score and bins measured on test rows.

    Scaling by a temperature never changes which label comes first, so no other metric moves.
    Raises TrainingError (logits not finite), DataError (rows and labels do not fit).
    """
    temperature = fit_temperature(validation_logits, validation_labels)
    logits, labels = checked(test_logits, test_labels)
    result: dict[str, Any] = {"temperature": temperature}
    for when, scaled in (("before", logits), ("after", logits / temperature)):
        probabilities = softmax(scaled)
        result[f"ece_{when}"] = expected_calibration_error(probabilities, labels, bins)
        result[f"nll_{when}"] = float(row_losses(scaled, labels).mean())
        result[f"brier_{when}"] = _brier(probabilities, labels)
        result[f"bins_{when}"] = reliability_bins(probabilities, labels, bins)
    return result


def decision_calibration_report(
    validation_logits: npt.NDArray[Any],
    validation_labels: npt.NDArray[Any],
    test_logits: npt.NDArray[Any],
    test_labels: npt.NDArray[Any],
    bins: int,
) -> dict[str, Any]:
    """`calibration_report` for any number of labels per row: one temperature for all logits, over all (row, label) decisions.

    Args: logits and labels (N, C), labels 0 or 1. Confidence is the probability of the decision taken, yes or no, so it is never
    below one half; nll is the mean binary cross-entropy.
    """
    return calibration_report(
        *_decisions(validation_logits, validation_labels), *_decisions(test_logits, test_labels), bins
    )


def _decisions(logits: npt.NDArray[Any], labels: npt.NDArray[Any]) -> tuple[Floats, Integers]:
    """Each (row, label) as a row of two classes, no and yes, with logits (N·C, 2): σ(z) is softmax(0, z)."""
    logits, labels = checked_decisions(logits, labels)
    yes = logits.ravel()
    return np.stack([np.zeros_like(yes), yes], axis=1), labels.ravel().astype(np.int64)


def _brier(probabilities: Floats, labels: Integers) -> float:
    """Mean over rows of Σ_k (p_k − 1[k = y])², from 0 to 2 (Brier 1950)."""
    error = probabilities.copy()
    error[np.arange(len(labels)), labels] -= 1.0
    return float((error**2).sum(axis=1).mean())
