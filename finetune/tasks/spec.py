"""The form of a task's entry: a modality (what goes in) and a target (what comes out, and how it is learned)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

Modality = Literal["text", "image", "language"]
TargetName = Literal["single_label", "multi_label", "regression", "next_token"]


class LossSums(Protocol):
    """Sum of the rows' losses, a scalar in float32 or wider; see each target's `loss_sums` for the shapes."""

    def __call__(
        self,
        logits: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        label_smoothing: float,
        row_weights: Tensor | None,
        /,
    ) -> Tensor: ...


class LossDenominator(Protocol):
    """What the sum is divided by to give the mean loss; see each target's `loss_denominator`."""

    def __call__(self, targets: Tensor, class_weights: Tensor | None, /) -> float: ...


class Answers(Protocol):
    """What is kept of a batch's logits when rows are evaluated, the rows first; see each target's `answers`."""

    def __call__(self, logits: Tensor, targets: Tensor, /) -> Tensor: ...


class ClassWeights(Protocol):
    """Weight of each label in the loss (C,), or None; see each target's `class_weights`."""

    def __call__(
        self,
        setting: str | Mapping[str, float],
        labels: npt.NDArray[Any],
        label_names: Sequence[str],
        row_weights: npt.NDArray[Any] | None = None,
        /,
    ) -> npt.NDArray[np.float32] | None: ...


def the_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """The logits themselves in float32: what a classifier or a regression answers. The targets play no part."""
    return logits.float()


@dataclass(frozen=True)
class Target:
    """What a row's answer is: one label, any number of labels, a number, or the next of each of its tokens."""

    name: TargetName
    problem_type: str
    """What transformers calls it in a model's configuration."""
    metrics: tuple[str, ...]
    """Built-in metrics; `finetune.evaluation` computes them."""
    default_metric: str
    """The metric that chooses the best weights when the recipe names none."""
    loss_sums: LossSums
    loss_denominator: LossDenominator
    class_weights: ClassWeights
    answers: Answers = the_logits
    """What evaluation keeps of the logits: all of them, where there are few, or what the metrics need of them."""


@dataclass(frozen=True)
class TaskSpec:
    """Everything the rest of the package asks of a task."""

    name: str
    """The recipe's `task`."""
    modality: Modality
    target: Target
    auto_class: str
    """Name of the transformers class that loads the backbone with this task's head."""
    pipeline_tag: str
    """What the Hub calls the task; it has no tag of its own for several labels or for a number."""
