"""One label per row: a linear head on an encoder, class-weighted and label-smoothed cross-entropy.

The loss is given as a sum and a denominator because a step may be computed in parts, on several devices, with
padding rows at the end: sums and denominators add up over parts, means do not.
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
    """Σ over rows of torch's cross-entropy, each times the row's weight, a scalar in float32 or wider.

    Args: logits (B, C); targets (B,) int64, or (B, C) float shares that add up to 1, as mixup makes them (Zhang et al. 2018);
    weights (C,) per class or None; label_smoothing ε in [0, 1), which gives each class ε/C of the target (Szegedy et al. 2016);
    row_weights (B,), how much each row counts, 0 for padding, or None.
    """
    import torch
    from torch.nn.functional import cross_entropy

    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    if weights is not None:
        weights = weights.to(device=logits.device, dtype=logits.dtype)
    targets = targets.to(logits.dtype) if targets.is_floating_point() else targets
    losses = cross_entropy(logits, targets, weight=weights, label_smoothing=label_smoothing, reduction="none")
    return weighted_sum(losses, row_weights)


def loss_denominator(targets: Tensor, class_weights: Tensor | None) -> float:
    """The D for which loss_sums / D is torch's mean over rows that count alike: the sum over rows of the true class's weight.

    torch divides by Σ w[y] also under label smoothing, although the smoothed part of the loss weights every class. With
    targets as shares (B, C) the weight of a row is Σ_k y_k·w_k, so that a share of 1 is the same as its label; torch itself would
    divide by the rows there. Args as in `loss_sums`; rows' own weights play no part, see `finetune.tasks.row_weights`.
    """
    import torch

    if class_weights is None:
        return float(len(targets))
    weights = class_weights.to(device=targets.device, dtype=torch.float64)
    of_class = targets.double() @ weights if targets.is_floating_point() else weights[targets]
    return float(of_class.sum())


def class_weights(
    setting: str | Mapping[str, float],
    labels: npt.NDArray[Any],
    label_names: Sequence[str],
    row_weights: npt.NDArray[np.float64] | None = None,
) -> npt.NDArray[np.float32] | None:
    """Weight of each class (C,), or None for `none`. Labels: int64 (N,); row_weights: (N,), how much each row counts, or None.

    `balanced` gives class k the weight N / (C · N_k) (King & Zeng 2001), with rows counted by their weights, so that every class
    has the same total weight and the weights average 1 over the training rows. A mapping must name every label once.
    Raises RecipeError (a label unknown or left out), DataError (`balanced` and a label without a training row).
    """
    if isinstance(setting, Mapping):
        return named_weights(setting, label_names)
    if setting == "none":
        return None
    refuse_unknown(setting)
    counts = np.bincount(np.asarray(labels, dtype=np.int64), weights=row_weights, minlength=len(label_names))
    if not counts.all():
        empty = label_names[int(np.argmin(counts))]
        raise DataError(
            f"train.class_weights: 'balanced' needs a training row of every label, but '{empty}' has none; add rows or name weights"
        )
    return np.asarray(counts.sum() / (len(label_names) * counts), dtype=np.float32)


TARGET = Target(
    name="single_label",
    problem_type="single_label_classification",
    metrics=METRICS["single_label"],
    default_metric=DEFAULT_METRIC["single_label"],
    loss_sums=loss_sums,
    loss_denominator=loss_denominator,
    class_weights=class_weights,
)
