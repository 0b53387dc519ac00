"""What fine-tuning has to beat: the most frequent label, and TF-IDF with logistic regression, on the same splits."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.evaluation.logits import Floats, Integers
from finetune.evaluation.metrics import measure

MAX_FEATURES = 50_000
"""Most frequent 1- and 2-grams kept; on 1,700 news articles more of them cost time and no accuracy is gained."""
_LEAST_LOG_PROBABILITY = -30.0


def majority_baseline(
    train_labels: npt.NDArray[Any], test_labels: npt.NDArray[Any], label_names: Sequence[str], metrics: Sequence[str]
) -> dict[str, float | None]:
    """Always the most frequent training label (the first of equals), with the training shares as probabilities.

    Shares are (count + 1) / (N + C), so that a label without a training row has a finite loss.
    Returns {metric: value, ..., "seconds": s}.
    """
    started = time.perf_counter()
    counts = np.bincount(np.asarray(train_labels, dtype=np.int64), minlength=len(label_names))
    shares = np.log((counts + 1) / (counts.sum() + len(label_names)))
    return _measured(np.tile(shares, (len(test_labels), 1)), test_labels, metrics, started)


def tfidf_baseline(
    train_texts: Sequence[str],
    train_labels: npt.NDArray[Any],
    test_texts: Sequence[str],
    test_labels: npt.NDArray[Any],
    metrics: Sequence[str],
    seed: int,
) -> dict[str, float | None]:
    """Words and word pairs, sublinear TF-IDF, multinomial logistic regression (C = 10), fitted on the training rows.

    Deterministic for a seed. Imports scikit-learn when called. Returns {metric: value, ..., "seconds": s}.
    """
    started = time.perf_counter()
    train_labels = np.asarray(train_labels, dtype=np.int64)
    test_labels = np.asarray(test_labels, dtype=np.int64)
    train, test = _tfidf(train_texts, test_texts)
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    logits = np.full((len(test_labels), classes), _LEAST_LOG_PROBABILITY)
    seen, log_probabilities = _logistic_regression(train, train_labels, test, seed)
    logits[:, seen] = np.maximum(log_probabilities, _LEAST_LOG_PROBABILITY)
    return _measured(logits, test_labels, metrics, started)


def _tfidf(train_texts: Sequence[str], test_texts: Sequence[str]) -> tuple[Any, Any]:
    """Sparse feature matrices (N_train, F) and (N_test, F); one empty column if no training text has a word."""
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfVectorizer

    word = r"(?u)\b\w+\b"  # one-letter words too: in some languages they are all there is
    if not any(re.search(word, text) for text in train_texts):
        return csr_matrix((len(train_texts), 1)), csr_matrix((len(test_texts), 1))
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, token_pattern=word, max_features=MAX_FEATURES, dtype=np.float32
    )
    return vectorizer.fit_transform(train_texts), vectorizer.transform(test_texts)


def _logistic_regression(train: Any, labels: Integers, test: Any, seed: int) -> tuple[Integers, Floats]:
    """Labels that occur in training (K,), and their log probabilities for the test rows (N_test, K)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    present = np.unique(labels)
    if len(present) == 1:
        return present, np.zeros((test.shape[0], 1))
    # SAG: rows have unit length, which suits it, and it runs on one thread, so the result does not depend on a BLAS.
    model = LogisticRegression(C=10.0, solver="sag", tol=1e-3, max_iter=200, random_state=seed)
    with warnings.catch_warnings():
        # A baseline that is a little short of its optimum is still a baseline.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(train, labels)
    with np.errstate(divide="ignore"):
        return present, np.asarray(model.predict_log_proba(test), dtype=np.float64)


def _measured(
    logits: Floats, labels: npt.NDArray[Any], metrics: Sequence[str], started: float
) -> dict[str, float | None]:
    values = measure(metrics, logits, labels)
    return {**values, "seconds": time.perf_counter() - started}
