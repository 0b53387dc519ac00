"""Any number of labels per row: each label is a yes or no of its own, learned by binary cross-entropy on its logit.

Sum and denominator as in `single_label`: they add up over the parts of a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from finetune.errors import DataError
from finetune.recipe.task_names import DEFAULT_METRIC, METRICS
from finetune.tasks.label_weights import named_weights, refuse_unknown
from finetune.tasks.row_weights import weighted_sum
from finetune.tasks.spec import Target

if TYPE_CHECKING:
    from torch import Tensor


def loss_sums(
    logits: Tensor, targets: Tensor, weights: Tensor | None, label_smoothing: float, row_weights: Tensor | None
) -> Tensor:
    """Σ over rows of the row's weight times the mean over labels of torch's binary cross-entropy on logits, a scalar in float32
    or wider.

    Args: logits (B, C); targets (B, C) float, 0, 1 or a share between them; weights (C,), the weight of each label's positive
    rows, or None; label_smoothing ε in [0, 1), which moves both answers ε/2 towards a half; row_weights (B,), how much each
    row counts, 0 for padding, or None.
    """
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    targets = targets.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / 2
    if weights is not None:
        weights = weights.to(device=logits.device, dtype=logits.dtype)
    losses = binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="none")
    return weighted_sum(losses.mean(dim=1), row_weights)


def loss_denominator(targets: Tensor, class_weights: Tensor | None) -> float:
    """The D for which loss_sums / D is torch's mean over rows that count alike: their number, whatever the weights of labels."""
    return float(len(targets))


def class_weights(
    setting: str | Mapping[str, float],
    labels: npt.NDArray[Any],
    label_names: Sequence[str],
    row_weights: npt.NDArray[np.float64] | None = None,
) -> npt.NDArray[np.float32] | None:
    """Weight of each label's positive rows (C,), or None for `none`. Labels: (N, C) of 0 and 1; row_weights: (N,), how much each
    row counts, or None.

    `balanced` gives a label its negative over its positive rows, counted by their weights, so that both sides weigh the same. A
    mapping must name every label once. Raises RecipeError (a label unknown or left out), DataError (`balanced` and a label that no
    training row has, or all).
    """
    if isinstance(setting, Mapping):
        return named_weights(setting, label_names)
    if setting == "none":
        return None
    refuse_unknown(setting)
    counted = np.ones(len(labels)) if row_weights is None else row_weights
    flags = np.asarray(labels, dtype=np.float64)
    positive, negative = counted @ flags, counted @ (1 - flags)
    for count, who in ((positive, "no training row has"), (negative, "every training row has")):
        if not count.all():
            raise DataError(
                "train.class_weights: 'balanced' needs training rows with and without every label, "
                f"but {who} '{label_names[int(np.argmin(count))]}'; add rows or name weights"
            )
    return np.asarray(negative / positive, dtype=np.float32)


TARGET = Target(
    name="multi_label",
    problem_type="multi_label_classification",
    metrics=METRICS["multi_label"],
    default_metric=DEFAULT_METRIC["multi_label"],
    loss_sums=loss_sums,
    loss_denominator=loss_denominator,
    class_weights=class_weights,
)
