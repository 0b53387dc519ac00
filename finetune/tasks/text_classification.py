"""Text classification: one label per text, a linear head on an encoder, class-weighted and label-smoothed cross-entropy.

The loss is given as a sum and a denominator because a step may be computed in parts, on several devices, with
padding rows at the end: sums and denominators add up over parts, means do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from finetune.errors import DataError, RecipeError, nearest
from finetune.tasks.spec import TaskSpec

if TYPE_CHECKING:
    from torch import Tensor


def loss_sums(
    logits: Tensor, labels: Tensor, weights: Tensor | None, label_smoothing: float, row_weights: Tensor | None
) -> Tensor:
    """Σ over rows of torch's cross-entropy (reduction="sum"), a scalar in float32 or wider.

    Args: logits (B, C); labels (B,) int64; weights (C,) per class or None; label_smoothing ε in [0, 1), which gives
    each class ε/C of the target (Szegedy et al. 2016); row_weights (B,), 1 for rows that count and 0 for padding, or None.
    """
    import torch
    from torch.nn.functional import cross_entropy

    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    ignored = -100
    if row_weights is not None:
        labels = torch.where(row_weights != 0, labels, torch.full_like(labels, ignored))
    if weights is not None:
        weights = weights.to(device=logits.device, dtype=logits.dtype)
    return cross_entropy(
        logits, labels, weight=weights, ignore_index=ignored, label_smoothing=label_smoothing, reduction="sum"
    )


def loss_denominator(labels: Tensor, class_weights: Tensor | None, row_weights: Tensor | None) -> float:
    """The D for which loss_sums / D is torch's mean: the sum of the true classes' weights over the rows that count.

    torch divides by Σ w[y] also under label smoothing, although the smoothed part of the loss weights every class.
    Args as in `loss_sums`. Zero if no row counts, so check before dividing.
    """
    import torch

    counted = labels if row_weights is None else labels[row_weights != 0]
    if class_weights is None:
        return float(counted.numel())
    return float(class_weights.to(device=labels.device, dtype=torch.float64)[counted].sum())


def class_weights(
    setting: str | Mapping[str, float], labels: npt.NDArray[np.int64], label_names: Sequence[str]
) -> npt.NDArray[np.float32] | None:
    """Weight of each class (C,), or None for `none`.

    `balanced` gives class k the weight N / (C · N_k) (King & Zeng 2001), so that every class has the same total weight
    and the weights average 1 over the training rows. A mapping must name every label once.
    Raises RecipeError (a label unknown or left out), DataError (`balanced` and a label without a training row).
    """
    if isinstance(setting, Mapping):
        for name in setting:
            if name not in label_names:
                raise RecipeError(
                    f"train.class_weights: '{name}' is not a label of the data{nearest(name, label_names)}"
                )
        missing = [name for name in label_names if name not in setting]
        if missing:
            raise RecipeError(
                f"train.class_weights: label '{missing[0]}' has no weight; give one to every label (1 is neutral)"
            )
        return np.array([setting[name] for name in label_names], dtype=np.float32)
    if setting == "none":
        return None
    if setting != "balanced":
        raise RecipeError(f"train.class_weights: unknown setting '{setting}'{nearest(setting, ('none', 'balanced'))}")
    counts = np.bincount(np.asarray(labels, dtype=np.int64), minlength=len(label_names))
    if not counts.all():
        empty = label_names[int(np.argmin(counts))]
        raise DataError(
            f"train.class_weights: 'balanced' needs a training row of every label, but '{empty}' has none; add rows or name weights"
        )
    return np.asarray(counts.sum() / (len(label_names) * counts), dtype=np.float32)


TASK = TaskSpec(
    name="text_classification",
    columns=("text", "label"),
    auto_class="AutoModelForSequenceClassification",
    loss_sums=loss_sums,
    loss_denominator=loss_denominator,
    class_weights=class_weights,
)
