"""How far off may a number be? Split conformal prediction (Lei et al. 2018): an interval that holds a stated share of answers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.evaluation.intervals import CONFIDENCE, wilson
from finetune.evaluation.logits import Weights, checked_numbers

LEVEL = 0.9
"""Share of new rows that the interval is to hold."""


def half_width(logits: npt.NDArray[Any], labels: npt.NDArray[Any], level: float = LEVEL) -> float | None:
    """The q for which answer ± q holds the truth of a new row with a probability of at least `level`.

    It is the ⌈(n + 1)·level⌉-th smallest of the n absolute errors (Lei et al. 2018, algorithm 2), so it holds for any model and any
    distribution, if these rows and the new one are exchangeable. None where n is too small for that (below 9 rows at 0.9).
    Args: logits (N, 1), labels (N,), of rows that the model was not trained on. Raises TrainingError, DataError.
    """
    answers, labels = checked_numbers(logits, labels)
    # Rounded first: (9 + 1)·0.9 must not become ten because of a last binary digit.
    place = math.ceil(round((len(labels) + 1) * level, 9))
    if place > len(labels):
        return None
    return float(np.sort(np.abs(answers - labels))[place - 1])


def interval_report(
    validation_logits: npt.NDArray[Any],
    validation_labels: npt.NDArray[Any],
    test_logits: npt.NDArray[Any],
    test_labels: npt.NDArray[Any],
    bins: int,
    validation_weights: Weights = None,
    test_weights: Weights = None,
) -> dict[str, Any]:
    """Half-width fitted on validation rows; the share of test rows that the interval holds, with a 95 % confidence interval.

    Returns {"interval": half-width, "level", "width", "coverage", "coverage_low", "coverage_high", "rows": validation rows}; all but
    "level" and "rows" are None where there are too few validation rows. `bins` has no meaning for numbers.
    Weights are not used, on purpose: the promise holds for rows that are exchangeable, and is about new rows, each of which counts as
    one. Quantiles of weighted errors keep it only for weights that say how much likelier a row is where the model will work
    (Tibshirani et al. 2019), and weights that say how much a label is trusted do not.
    Raises TrainingError (answers not finite), DataError (rows and labels do not fit).
    """
    reach = half_width(validation_logits, validation_labels)
    answers, labels = checked_numbers(test_logits, test_labels)
    result: dict[str, Any] = {"interval": reach, "level": LEVEL, "rows": len(validation_labels)}
    if reach is None:
        return result | dict.fromkeys(("width", "coverage", "coverage_low", "coverage_high"))
    held = int((np.abs(answers - labels) <= reach).sum())
    low, high = wilson(held, len(labels), CONFIDENCE)
    return result | {"width": 2 * reach, "coverage": held / len(labels), "coverage_low": low, "coverage_high": high}
