"""What a network's numbers say, one entry a target: labels and calibrated probabilities, or a value and its interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.bundle import Bundle

Cell = str | float | list[str] | None
THRESHOLD = 0.5  # a label is given when it is more likely than not


@dataclass(frozen=True, slots=True)
class Prediction:
    """One label of several. `score` is the probability of `label`; `probabilities` are in label order and add up to one."""

    label: str
    score: float
    probabilities: dict[str, float]


@dataclass(frozen=True, slots=True)
class MultiLabelPrediction:
    """Any number of labels: those with a probability above 0.5, in label order. Each probability is its own."""

    labels: tuple[str, ...]
    probabilities: dict[str, float]


@dataclass(frozen=True, slots=True)
class RegressionPrediction:
    """A number in the label's unit. `low` and `high` bound its 90 % interval; None for a bundle without calibration."""

    value: float
    low: float | None
    high: float | None


Answer = Prediction | MultiLabelPrediction | RegressionPrediction


@dataclass(frozen=True)
class Target:
    """How the answers of one target are made, and how they lie in a table."""

    answers: Callable[[NDArray[np.float64], Bundle], list[Answer]]
    """One answer for each row of the network's numbers (N, outputs)."""
    columns: Callable[[Sequence[str]], dict[str, type]]
    """Names and types of the table's columns, for the label names."""
    cells: Callable[[Any], list[Cell]]
    """The values of those columns for one answer."""


def _single_label(logits: NDArray[np.float64], bundle: Bundle) -> list[Answer]:
    scaled = logits / bundle.temperature
    odds = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    answers: list[Answer] = []
    for row in odds / odds.sum(axis=1, keepdims=True):
        best = int(row.argmax())
        answers.append(Prediction(bundle.labels[best], float(row[best]), dict(zip(bundle.labels, row.tolist()))))
    return answers


def _multi_label(logits: NDArray[np.float64], bundle: Bundle) -> list[Answer]:
    # 1 / (1 + exp(-x)) without the overflow.
    chances = 0.5 * (1 + np.tanh(0.5 * logits / bundle.temperature))
    answers: list[Answer] = []
    for row in chances.tolist():
        probabilities = dict(zip(bundle.labels, row))
        given = tuple(label for label, chance in probabilities.items() if chance > THRESHOLD)
        answers.append(MultiLabelPrediction(given, probabilities))
    return answers


def _regression(values: NDArray[np.float64], bundle: Bundle) -> list[Answer]:
    half = bundle.interval
    if half is None:
        return [RegressionPrediction(value, None, None) for value in values[:, 0].tolist()]
    return [RegressionPrediction(value, value - half, value + half) for value in values[:, 0].tolist()]


def _per_label(labels: Sequence[str]) -> dict[str, type]:
    return {f"probability_{label}": float for label in labels}


TARGETS = {
    "single_label": Target(
        _single_label,
        lambda labels: {"label": str, "score": float, **_per_label(labels)},
        lambda answer: [answer.label, answer.score, *answer.probabilities.values()],
    ),
    "multi_label": Target(
        _multi_label,
        lambda labels: {"labels": list, **_per_label(labels)},
        lambda answer: [list(answer.labels), *answer.probabilities.values()],
    ),
    "regression": Target(
        _regression,
        lambda _: {"value": float, "low": float, "high": float},
        lambda answer: [answer.value, answer.low, answer.high],
    ),
}
