"""Linear models on plain features, one per target; scikit-learn is imported when they are called.

Weights (N_train,), 1 on average, multiply each row's loss, as scikit-learn's sample_weight.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.evaluation.logits import Floats, Integers, Weights

_LEAST_LOG_PROBABILITY = -30.0


@dataclass(frozen=True)
class Strength:
    """How strongly a kind of features is regularised: C of logistic regression, alpha of ridge regression; and its solver."""

    c: float
    alpha: float
    solver: str


def label_logits(
    train: Any,
    labels: npt.NDArray[Any],
    test: Any,
    outputs: int,
    strength: Strength,
    seed: int,
    weights: Weights = None,
) -> Floats:
    """Multinomial logistic regression: log probabilities (N_test, C), at least −30; also of labels that no training row has."""
    logits = np.full((test.shape[0], outputs), _LEAST_LOG_PROBABILITY)
    target = np.asarray(labels, dtype=np.int64)
    seen, log_probabilities = _logistic_regression(train, target, test, strength, seed, weights)
    logits[:, seen] = np.maximum(log_probabilities, _LEAST_LOG_PROBABILITY)
    return logits


def decision_logits(
    train: Any,
    labels: npt.NDArray[Any],
    test: Any,
    outputs: int,
    strength: Strength,
    seed: int,
    weights: Weights = None,
) -> Floats:
    """One logistic regression per label against the rest: log odds (N_test, C).

    A label that every training row has, or none, has nothing to learn: its log odds are those of its share of the rows.
    """
    labels = np.asarray(labels)
    logits = np.tile(share_logits(labels, weights), (test.shape[0], 1))
    for column in range(outputs):
        if 0 < labels[:, column].sum() < len(labels):
            target = labels[:, column].astype(np.int64)
            _, log_probabilities = _logistic_regression(train, target, test, strength, seed, weights)
            no, yes = np.maximum(log_probabilities, _LEAST_LOG_PROBABILITY).T
            logits[:, column] = yes - no
    return logits


def share_logits(labels: npt.NDArray[Any], weights: Weights = None) -> Floats:
    """Log odds (C,) of each label's share of the rows, (count + 1) / (N + 2), so that none is infinite.

    Args: labels (N, C); weights (N,), whose sums are then the counts.
    """
    if weights is None:
        weights = np.ones(len(labels))
    positive = weights @ np.asarray(labels, dtype=np.float64)
    return np.asarray(np.log((positive + 1) / (weights.sum() - positive + 1)))


def numbers(
    train: Any,
    labels: npt.NDArray[Any],
    test: Any,
    outputs: int,
    strength: Strength,
    seed: int,
    weights: Weights = None,
) -> Floats:
    """Ridge regression: answers (N_test, 1)."""
    from sklearn.linear_model import Ridge

    # LSQR takes sparse and dense features, and draws no random numbers.
    model = Ridge(alpha=strength.alpha, solver="lsqr", random_state=seed)
    model.fit(train, np.asarray(labels, dtype=np.float64), sample_weight=weights)
    return np.asarray(model.predict(test), dtype=np.float64).reshape(-1, 1)


def _logistic_regression(
    train: Any, labels: Integers, test: Any, strength: Strength, seed: int, weights: Weights
) -> tuple[Integers, Floats]:
    """Labels that occur in training (K,), and their log probabilities for the test rows (N_test, K)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    present = np.unique(labels)
    if len(present) == 1:
        return present, np.zeros((test.shape[0], 1))
    model = LogisticRegression(C=strength.c, solver=strength.solver, tol=1e-3, max_iter=200, random_state=seed)
    with warnings.catch_warnings():
        # A baseline that is a little short of its optimum is still a baseline.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(train, labels, sample_weight=weights)
    with np.errstate(divide="ignore"):
        return present, np.asarray(model.predict_log_proba(test), dtype=np.float64)
