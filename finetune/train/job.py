"""What training takes and gives, as plain frozen values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from finetune.model.backbone import TransferModel
from finetune.recipe import L2SPSettings, TrainSettings
from finetune.tasks import TaskSpec
from finetune.transfer.batchnorm import Policy
from finetune.transfer.plan import Plan

Collate = Callable[[Sequence[Any]], Mapping[str, np.ndarray]]
Batch = tuple[Mapping[str, np.ndarray], np.ndarray]
"""Arguments of the network, and targets as `loss_sums` takes them."""


@dataclass(frozen=True)
class Moment:
    """When rows are drawn, all counted from 0: everything that their noise may depend on beside the rows themselves.

    step: all rows of the optimizer step, of which a process or an accumulation part sees only a share.
    """

    seed: int
    phase: int
    epoch: int
    cursor: int
    step: tuple[int, ...]


class Examples(Protocol):
    """Training rows that can be drawn. Drawing the same rows at the same moment gives the same bits, in any process."""

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens per row; 1 for each of rows that are all of one size, whose batches then come in plain shuffled order."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """What the rows are before any noise: int64 (N,), float32 (N, C), float32 (N,), or a language model's int64 (N, T)."""
        ...

    def batch(self, rows: Sequence[int], moment: Moment) -> Batch:
        """Some rows of a step, with the noise of that moment."""
        ...


@dataclass(frozen=True)
class EncodedExamples:
    """Rows without noise. `collate` makes a batch of what `rows` hold; see `Examples` for lengths and labels."""

    rows: Sequence[Any]
    lengths: Sequence[int]
    labels: np.ndarray
    collate: Collate

    def batch(self, rows: Sequence[int], moment: Moment) -> Batch:
        """The same at every moment."""
        return self.collate([self.rows[row] for row in rows]), self.labels[list(rows)]


@dataclass(frozen=True)
class Rows:
    """Preprocessed rows of one split: what `collate` takes, their lengths and labels as in `Examples`, weights as in `Job`."""

    inputs: Sequence[Any]
    lengths: Sequence[int]
    labels: np.ndarray
    weights: np.ndarray | None = None


@dataclass(frozen=True)
class Job:
    """What training depends on.

    plain: the training rows as evaluation would see them, to measure gradients and statistics on; the same as `train` where
    that has no noise. collate: for the rows of `validation`; collate_of_phase: in phases whose images have a size of their own.
    score(answers, labels): the metric that chooses the best weights,
    from what the task's target keeps of the logits (`Target.answers`).
    row_weights: how much each training row counts in the loss, float64 (N,), 1 on average, None where all count alike.
    batchnorm: see transfer/batchnorm.py. workers: processes that make batches ahead of the step, 0 for none.
    """

    model: TransferModel
    plan: Plan
    train: Examples
    plain: Examples
    validation: Rows
    collate: Collate
    task: TaskSpec
    settings: TrainSettings
    l2sp: L2SPSettings
    class_weights: np.ndarray | None
    score: Callable[[np.ndarray, np.ndarray], float]
    validation_loss: Callable[[np.ndarray, np.ndarray], float]
    higher_is_better: bool
    seed: int
    row_weights: np.ndarray | None = None
    batchnorm: Policy = "train"
    workers: int = 0
    collate_of_phase: Mapping[int, Collate] = field(default_factory=dict)

    def weights_of(self, rows: Sequence[int]) -> np.ndarray:
        """How much each of these training rows counts in the loss, float64 (B,)."""
        return np.ones(len(rows)) if self.row_weights is None else self.row_weights[list(rows)]


@dataclass(frozen=True)
class Result:
    """What training leaves behind, beside the best weights in the network itself.

    choice: which layer groups `unfreeze: auto` chose and why (`Choice.to_json`), None without it; batchnorm: the policy,
    how many layers it was for, and what recalibration changed (`records.describe_batchnorm`).
    """

    history: list[dict[str, Any]]
    phases: list[dict[str, Any]]
    steps: int
    choice: dict[str, Any] | None
    batchnorm: dict[str, Any]
