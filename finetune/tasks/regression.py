"""A number per row: one output, learned by the squared error.

Sum and denominator as in `single_label`: they add up over the parts of a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from finetune.errors import RecipeError
from finetune.recipe.task_names import DEFAULT_METRIC, METRICS
from finetune.tasks.spec import Target

if TYPE_CHECKING:
    from torch import Tensor


def loss_sums(
    logits: Tensor, targets: Tensor, weights: Tensor | None, label_smoothing: float, row_weights: Tensor | None
) -> Tensor:
    """Σ over rows of (answer − target)², a scalar in float32 or wider.

    Args: logits (B, 1), the answers; targets (B,) float; row_weights (B,), 1 for rows that count and 0 for padding, or None.
    There are no labels that `weights` or `label_smoothing` could be about, and the recipe refuses both.
    """
    import torch

    answers = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    # (B, 1) − (B,) would silently be all pairs; reshaping also refuses a head with two outputs.
    errors = answers.reshape(targets.shape) - targets.to(answers.dtype)
    if row_weights is not None:
        errors = errors * (row_weights != 0)
    return (errors**2).sum()


def loss_denominator(targets: Tensor, class_weights: Tensor | None, row_weights: Tensor | None) -> float:
    """The D for which loss_sums / D is the mean squared error: the rows that count."""
    return float(len(targets) if row_weights is None else int((row_weights != 0).sum()))


def class_weights(setting: str | Mapping[str, float], labels: npt.NDArray[Any], label_names: Sequence[str]) -> None:
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
