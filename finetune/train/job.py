"""What training takes and gives, as plain frozen values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.model.backbone import TransferModel
from finetune.recipe import L2SPSettings, TrainSettings
from finetune.tasks import TaskSpec
from finetune.train.predict import Collate
from finetune.transfer.plan import Plan


@dataclass(frozen=True)
class Rows:
    """Preprocessed rows of one split: what `collate` takes, tokens per row, labels int64 (N,)."""

    inputs: Sequence[Any]
    lengths: Sequence[int]
    labels: np.ndarray


@dataclass(frozen=True)
class Job:
    """What training depends on. score(logits, labels) is the metric that chooses the best weights."""

    model: TransferModel
    plan: Plan
    train: Rows
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


@dataclass(frozen=True)
class Result:
    """What training leaves behind, beside the best weights in the network itself."""

    history: list[dict[str, Any]]
    phases: list[dict[str, Any]]
    steps: int
