"""The form of a task's entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor


class LossSums(Protocol):
    """Sum of the rows' losses; see `text_classification.loss_sums`."""

    def __call__(
        self, logits: Tensor, labels: Tensor, weights: Tensor | None, label_smoothing: float, row_weights: Tensor | None
    ) -> Tensor: ...


class LossDenominator(Protocol):
    """What the sum is divided by to give the mean loss; see `text_classification.loss_denominator`."""

    def __call__(self, labels: Tensor, class_weights: Tensor | None, row_weights: Tensor | None) -> float: ...


class ClassWeights(Protocol):
    """Weight of each class in the loss; see `text_classification.class_weights`."""

    def __call__(
        self, setting: str | Mapping[str, float], labels: npt.NDArray[np.int64], label_names: Sequence[str]
    ) -> npt.NDArray[np.float32] | None: ...


@dataclass(frozen=True)
class TaskSpec:
    """Everything the rest of the package asks of a task."""

    name: str
    """The recipe's `task`."""
    columns: tuple[str, ...]
    """What each row must hold; the recipe's `data.<name>_column` says under which header."""
    auto_class: str
    """Name of the transformers class that loads the backbone with this task's head."""
    loss_sums: LossSums
    loss_denominator: LossDenominator
    class_weights: ClassWeights
