"""The form of a target's entry: what evaluation, export and report ask of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from finetune.evaluation.logits import Floats, Weights


class Score(Protocol):
    """One built-in metric on a set of rows; see each target's `score`."""

    def __call__(
        self, metric: str, logits: npt.NDArray[Any], labels: npt.NDArray[Any], /, weights: Weights = None
    ) -> float: ...


class HigherIsBetter(Protocol):
    """Whether a greater value of a built-in metric is better; RecipeError for an unknown name."""

    def __call__(self, metric: str, /) -> bool: ...


class CheckMetrics(Protocol):
    """Refuse, before training, a name that cannot be computed (RecipeError); `evaluate:` metrics are loaded and tried out.

    `weighted` says that rows will have weights: then any `evaluate:` metric is refused, and none is loaded.
    """

    def __call__(self, names: Sequence[str], *, classes: int = 2, weighted: bool = False) -> None: ...


class Measure(Protocol):
    """Values of built-in and `evaluate:` metrics without intervals; None where one is undefined."""

    def __call__(
        self,
        metrics: Sequence[str],
        logits: npt.NDArray[Any],
        labels: npt.NDArray[Any],
        /,
        weights: Weights = None,
    ) -> dict[str, float | None]: ...


class Evaluate(Protocol):
    """Everything the report says about one set of rows, JSON-ready; see each target's `evaluate`."""

    def __call__(
        self,
        logits: npt.NDArray[Any],
        labels: npt.NDArray[Any],
        label_names: Sequence[str],
        metrics: Sequence[str],
        /,
        seed: int = 0,
        weights: Weights = None,
    ) -> dict[str, Any]: ...


class Calibrate(Protocol):
    """Fitted on validation rows, measured on test rows, JSON-ready: "temperature" or, for numbers, "interval"."""

    def __call__(
        self,
        validation_logits: npt.NDArray[Any],
        validation_labels: npt.NDArray[Any],
        test_logits: npt.NDArray[Any],
        test_labels: npt.NDArray[Any],
        bins: int,
        /,
        validation_weights: Weights = None,
        test_weights: Weights = None,
    ) -> dict[str, Any]: ...


class Agreement(Protocol):
    """Share of the answers that are the same from two forms of a model."""

    def __call__(self, reference: npt.NDArray[Any], other: npt.NDArray[Any], labels: npt.NDArray[Any], /) -> float: ...


class Drop(Protocol):
    """How much worse another score is than a reference, as a fraction of what the metric spans; negative if better."""

    def __call__(
        self, metric: str, reference_score: float, other_score: float, labels: npt.NDArray[Any], /
    ) -> float: ...


class Hardness(Protocol):
    """How hard each row was for the model (N,), greatest where it was most wrong."""

    def __call__(self, logits: npt.NDArray[Any], labels: npt.NDArray[Any], /) -> Floats: ...


@dataclass(frozen=True)
class Evaluation:
    """How answers of one target are judged.

    Logits and labels are: single_label (N, C) and int64 (N,); multi_label (N, C) and (N, C) of 0 and 1; regression (N, 1) and
    (N,); next_token has tallies (N, 3) for logits, and looks at no labels and no weights. All raise TrainingError for logits that are
    not finite, and DataError for no rows, shapes that do not fit, or a weight that is not a finite number above 0.
    """

    metrics: tuple[str, ...]
    """Names of the built-in metrics."""
    score: Score
    higher_is_better: HigherIsBetter
    check_metrics: CheckMetrics
    measure: Measure
    evaluate: Evaluate
    calibrate: Calibrate | None
    """None for next_token: a language model's answers are texts, and no temperature or interval is fitted to them."""
    agreement: Agreement
    drop: Drop
    hardness: Hardness
