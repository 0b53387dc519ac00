"""Logits as they come from a model, checked once, and the losses that everything here is made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.errors import DataError, TrainingError

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Weights = npt.NDArray[Any] | None
"""How much each row counts, (N,), finite and above 0; None where every row counts alike."""


def checked(logits: npt.NDArray[Any], labels: npt.NDArray[Any]) -> tuple[Floats, Integers]:
    """Logits (N, C) as float64 and labels (N,) as int64, or an error that says what is wrong with them.

    Raises TrainingError if any logit is NaN or infinite, DataError if there are no rows, if the shapes do not
    belong together, or if a label is not one of 0..C-1.
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise _misfit(logits, labels, "(N, C) and (N,)")
    _refuse_no_rows(labels)
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise DataError(
            f"evaluation: labels run from {labels.min()} to {labels.max()}, but the model has {logits.shape[1]} outputs"
        )
    _refuse_non_finite(logits)
    return logits, labels


def checked_decisions(logits: npt.NDArray[Any], labels: npt.NDArray[Any]) -> tuple[Floats, Floats]:
    """Logits (N, C) and labels (N, C) of 0 and 1, both as float64, or an error that says what is wrong with them.

    Raises TrainingError if any logit is NaN or infinite, DataError for no rows, shapes that differ, or a label between 0 and 1.
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if logits.ndim != 2 or labels.shape != logits.shape or not logits.shape[1]:
        raise _misfit(logits, labels, "(N, C) twice")
    _refuse_no_rows(labels)
    if not ((labels == 0) | (labels == 1)).all():
        raise DataError("evaluation: labels must be 0 or 1 for each row and label")
    _refuse_non_finite(logits)
    return logits, labels


def checked_numbers(logits: npt.NDArray[Any], labels: npt.NDArray[Any]) -> tuple[Floats, Floats]:
    """Answers (N,) from logits (N, 1) or (N,), and labels (N,), as float64, or an error that says what is wrong with them.

    Raises TrainingError if any answer is NaN or infinite, DataError for no rows, shapes that differ, or a label that is not finite.
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if labels.ndim != 1 or logits.shape not in (labels.shape, (*labels.shape, 1)):
        raise _misfit(logits, labels, "(N, 1) and (N,)")
    _refuse_no_rows(labels)
    if bad := int((~np.isfinite(labels)).sum()):
        raise DataError(f"evaluation: {bad} of {len(labels)} labels are NaN or infinite; leave such rows out")
    answers = logits.reshape(len(labels), 1)
    _refuse_non_finite(answers)
    return answers[:, 0], labels


def checked_weights(weights: Weights, rows: int) -> Floats | None:
    """Weights as float64 (None stays None); DataError unless there is one for each row, finite and above 0."""
    if weights is None:
        return None
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (rows,):
        raise DataError(
            f"evaluation: weights of shape {weights.shape} do not fit {rows} rows; give one weight for each row"
        )
    if bad := int((~(np.isfinite(weights) & (weights > 0))).sum()):
        raise DataError(
            f"evaluation: {bad} of {rows} weights are not finite numbers above 0; give each row such a weight, or leave the row out"
        )
    return weights


def weighted_mean(values: Floats, weights: Floats | None) -> float:
    """Mean of one value per row (N,), of rows that count `weights` (N,), or alike for None."""
    return float(values.mean()) if weights is None else float(np.average(values, weights=weights))


def _misfit(logits: npt.NDArray[Any], labels: npt.NDArray[Any], shapes: str) -> DataError:
    return DataError(
        f"evaluation: logits of shape {logits.shape} do not fit labels of shape {labels.shape}; give {shapes}"
    )


def _refuse_no_rows(labels: npt.NDArray[Any]) -> None:
    if not len(labels):
        raise DataError("evaluation: there are no rows to score; give the split at least one row")


def _refuse_non_finite(logits: Floats) -> None:
    bad = int((~np.isfinite(logits)).any(axis=1).sum())
    if bad:
        raise TrainingError(
            f"evaluation: {bad} of {len(logits)} rows have NaN or infinite logits; lower the learning rate or use precision fp32"
        )


def log_softmax(logits: npt.NDArray[Any]) -> Floats:
    """Natural logarithm of the softmax over the last axis, in float64, without overflow."""
    shifted = np.asarray(logits, dtype=np.float64)
    shifted = shifted - shifted.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def row_losses(logits: Floats, labels: Integers) -> Floats:
    """Cross-entropy of each row in nats, (N,)."""
    # The `+ 0.0` turns the -0.0 of a perfectly certain row into 0.0, which is what a reader of JSON expects.
    return np.asarray(-log_softmax(logits)[np.arange(len(labels)), labels] + 0.0)


def decision_losses(logits: Floats, labels: Floats) -> Floats:
    """Binary cross-entropy in nats of each row and label, (N, C): log(1 + e^z) − y·z, without overflow."""
    return np.asarray(np.logaddexp(0.0, np.where(labels == 1, -logits, logits)))
