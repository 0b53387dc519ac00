"""A number per row: one output, learned by the squared error.

Sum and denominator as in `single_label`: they add up over the parts of a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from finetune.errors import RecipeError
from finetune.recipe.task_names import DEFAULT_METRIC, METRICS
from finetune.tasks.row_weights import weighted_sum
from finetune.tasks.spec import Target

if TYPE_CHECKING:
    from torch import Tensor


def loss_sums(
    logits: Tensor, targets: Tensor, weights: Tensor | None, label_smoothing: float, row_weights: Tensor | None
) -> Tensor:
    """Σ over rows of the row's weight times (answer − target)², a scalar in float32 or wider.

    Args: logits (B, 1), the answers; targets (B,) float; row_weights (B,), how much each row counts, 0 for padding, or None.
    There are no labels that `weights` or `label_smoothing` could be about, and the recipe refuses both.
    """
    import torch

    answers = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    # (B, 1) − (B,) would silently be all pairs; reshaping also refuses a head with two outputs.
    errors = answers.reshape(targets.shape) - targets.to(answers.dtype)
    return weighted_sum(errors**2, row_weights)


def loss_denominator(targets: Tensor, class_weights: Tensor | None) -> float:
    """The D for which loss_sums / D is the mean squared error of rows that count alike: their number."""
    return float(len(targets))


def class_weights(
    setting: str | Mapping[str, float],
    labels: npt.NDArray[Any],
    label_names: Sequence[str],
    row_weights: npt.NDArray[Any] | None = None,
) -> None:
    """None: numbers have no classes. RecipeError for any setting but `none`."""
    if setting != "none":
        raise RecipeError("train.class_weights: a regression has no labels to weigh; remove it")


TARGET = Target(
    name="regression",
    problem_type="regression",
    metrics=METRICS["regression"],
    default_metric=DEFAULT_METRIC["regression"],
    loss_sums=loss_sums,
    loss_denominator=loss_denominator,
    class_weights=class_weights,
)
