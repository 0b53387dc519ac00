"""How answers are judged on export: the gated metric, and what counts as the same answer. Needs numpy only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.errors import ExportError, nearest
from finetune.evaluation import EVALUATIONS
from finetune.export.parity import Logits, differences

Labels = NDArray[Any]


@dataclass(frozen=True)
class Judge:
    """Plain functions of one target, as in `finetune.evaluation.EVALUATIONS`, with the metric already chosen."""

    metric: str
    """Name of the metric that is gated."""
    score: Callable[[NDArray[Any], Labels, NDArray[Any] | None], float]
    """Of answers, labels and the rows' weights, None where all count alike."""
    higher_is_better: bool
    agreement: Callable[[Logits, Logits, Labels], float]
    """Share of rows (0 to 1) to which two forms give the same answer."""
    drop: Callable[[float, float, Labels], float]
    """How much worse the second score is than the first, as a fraction; negative if better."""
    unit: float = 1.0
    """Size of a difference of logits that counts as 1: the labels' standard deviation in regression, whose logits have
    the labels' unit (a price differs by more than 1e-4 through rounding alone)."""

    def compare(self, reference: Logits, other: Logits, labels: Labels) -> dict[str, float]:
        """Agreement, and the worst and mean absolute difference of logits (N, C)."""
        gaps = differences(reference, other)
        return {"agreement": float(self.agreement(reference, other, labels)), **gaps}

    def change(self, drop: float) -> str:
        """In words, how the metric moved: "falls by 0.0049", "rises by 0.0049", "worsens by 0.0049", "does not change"."""
        if not drop:
            return "does not change"
        worse, better = ("falls", "rises") if self.higher_is_better else ("worsens", "improves")
        return f"{worse if drop > 0 else better} by {abs(drop):.4f}"


def judge_by(target: str, metric: str, labels: Labels) -> Judge:
    """The judge of a target ("single_label", "multi_label", "regression") by one of its built-in metrics.

    `labels` are the validation split's. ExportError for an unknown target.
    """
    if target not in EVALUATIONS:
        raise ExportError(f"unknown target '{target}'{nearest(target, EVALUATIONS)}")
    evaluation = EVALUATIONS[target]
    return Judge(
        metric=metric,
        score=partial(evaluation.score, metric),
        higher_is_better=evaluation.higher_is_better(metric),
        agreement=evaluation.agreement,
        drop=partial(evaluation.drop, metric),
        unit=_UNITS.get(target, _one)(labels),
    )


def _one(labels: Labels) -> float:
    return 1.0


def _spread(labels: Labels) -> float:
    return float(np.std(np.asarray(labels, dtype=np.float64))) or 1.0


_UNITS: dict[str, Callable[[Labels], float]] = {"regression": _spread}
