"""What fine-tuning has to beat: an answer that ignores the input, and a linear model on plain features, on the same splits."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from finetune.evaluation import linear, multi_label, regression, single_label
from finetune.evaluation.features import pixels, tfidf
from finetune.evaluation.linear import Strength
from finetune.evaluation.logits import Floats, Weights, checked_weights, weighted_mean
from finetune.evaluation.spec import Measure
from finetune.preprocess.image_file import MAX_PIXELS

if TYPE_CHECKING:
    from finetune.data.rows import LabelledData
    from finetune.tasks import TaskSpec


@dataclass(frozen=True)
class Features:
    """How inputs of one modality become numbers: (train, test, max_pixels) -> two matrices."""

    name: str
    build: Callable[[Sequence[Any], Sequence[Any], int], tuple[Any, Any]]
    strength: Strength


@dataclass(frozen=True)
class Models:
    """The two baselines of one target; each gives logits for the test rows.

    blind(train labels, number of test rows, number of outputs, train weights); linear as in `finetune.evaluation.linear`.
    """

    blind_name: str
    blind: Callable[[npt.NDArray[Any], int, int, Weights], Floats]
    linear_name: str
    linear: Callable[[Any, npt.NDArray[Any], Any, int, Strength, int, Weights], Floats]
    measure: Measure


def majority_label(labels: npt.NDArray[Any], rows: int, outputs: int, weights: Weights = None) -> Floats:
    """Always the most frequent training label (the first of equals), with the training shares as probabilities.

    Shares are (count + 1) / (N + C), so that a label without a training row has a finite loss. Weights count where rows have them.
    """
    counts = np.bincount(np.asarray(labels, dtype=np.int64), weights, minlength=outputs)
    return np.tile(np.log((counts + 1) / (counts.sum() + outputs)), (rows, 1))


def majority_decisions(labels: npt.NDArray[Any], rows: int, outputs: int, weights: Weights = None) -> Floats:
    """Each label always or never, as most training rows (by weight) have it, with their share as probability."""
    return np.tile(linear.share_logits(labels, weights), (rows, 1))


def mean_label(labels: npt.NDArray[Any], rows: int, outputs: int, weights: Weights = None) -> Floats:
    """Always the (weighted) mean of the training labels."""
    return np.full((rows, 1), weighted_mean(np.asarray(labels, dtype=np.float64), weights))


# Strengths were chosen on validation rows: TF-IDF on BBC News, pixels on ELPV.
FEATURES = {
    # SAG suits rows of unit length, and runs on one thread, so that the result does not depend on a BLAS.
    "text": Features("tfidf", lambda train, test, _: tfidf(train, test), Strength(c=10.0, alpha=1.0, solver="sag")),
    "image": Features("pixels", pixels, Strength(c=0.01, alpha=100.0, solver="lbfgs")),
}
MODELS = {
    "single_label": Models("majority", majority_label, "logreg", linear.label_logits, single_label.measure),
    "multi_label": Models("majority", majority_decisions, "logreg", linear.decision_logits, multi_label.measure),
    "regression": Models("mean", mean_label, "ridge", linear.numbers, regression.measure),
}


def baselines(
    task: TaskSpec, data: LabelledData, metrics: Sequence[str], seed: int, *, max_pixels: int = MAX_PIXELS
) -> dict[str, dict[str, float | None]]:
    """Two models without a network, fitted on the training rows and measured on the test rows, both by weight where rows have it.

    Returns {"majority" (regression: "mean"), and "tfidf_logreg", "tfidf_ridge", "pixels_logreg" or "pixels_ridge": {metric: value or
    None where it is undefined, ..., "seconds": s}}. Deterministic for a seed. Imports scikit-learn when called.
    Raises DataError, naming the place, for an image that cannot be read or has more than `max_pixels` pixels.
    """
    features, models = FEATURES[task.modality], MODELS[task.target.name]
    outputs = max(1, len(data.labels))
    labels, rows = data.train.labels, len(data.test.labels)
    weights = checked_weights(data.train.weights, len(labels))

    def timed(answer: Callable[[], Floats]) -> dict[str, float | None]:
        started = time.perf_counter()
        values = models.measure(metrics, answer(), data.test.labels, data.test.weights)
        return {**values, "seconds": time.perf_counter() - started}

    def fitted() -> Floats:
        train, test = features.build(data.train.inputs, data.test.inputs, max_pixels)
        return models.linear(train, labels, test, outputs, features.strength, seed, weights)

    return {
        models.blind_name: timed(lambda: models.blind(labels, rows, outputs, weights)),
        f"{features.name}_{models.linear_name}": timed(fitted),
    }
