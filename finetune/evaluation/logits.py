"""Logits as they come from a model, checked once, and the two numbers everything here is made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.errors import DataError, TrainingError

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def checked(logits: npt.NDArray[Any], labels: npt.NDArray[Any]) -> tuple[Floats, Integers]:
    """Logits (N, C) as float64 and labels (N,) as int64, or an error that says what is wrong with them.

    Raises TrainingError if any logit is NaN or infinite, DataError if there are no rows, if the shapes do not
    belong together, or if a label is not one of 0..C-1.
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise DataError(
            f"evaluation: logits of shape {logits.shape} do not fit labels of shape {labels.shape}; give (N, C) and (N,)"
        )
    if not len(labels):
        raise DataError("evaluation: there are no rows to score; give the split at least one row")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise DataError(
            f"evaluation: labels run from {labels.min()} to {labels.max()}, but the model has {logits.shape[1]} outputs"
        )
    bad = int((~np.isfinite(logits)).any(axis=1).sum())
    if bad:
        raise TrainingError(
            f"evaluation: {bad} of {len(labels)} rows have NaN or infinite logits; lower the learning rate or use precision fp32"
        )
    return logits, labels


def log_softmax(logits: npt.NDArray[Any]) -> Floats:
    """Natural logarithm of the softmax over the last axis, in float64, without overflow."""
    shifted = np.asarray(logits, dtype=np.float64)
    shifted = shifted - shifted.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def row_losses(logits: Floats, labels: Integers) -> Floats:
    """Cross-entropy of each row in nats, (N,)."""
    # The `+ 0.0` turns the -0.0 of a perfectly certain row into 0.0, which is what a reader of JSON expects.
    return np.asarray(-log_softmax(logits)[np.arange(len(labels)), labels] + 0.0)
