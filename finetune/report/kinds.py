"""What differs on the page by modality and target, in words. A report that names neither is of text classification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune.recipe.task_names import MODALITY_AND_TARGET


@dataclass(frozen=True)
class Modality:
    """How one input, and several, are called."""

    one: str
    many: str


@dataclass(frozen=True)
class Target:
    """How the page speaks of a target's loss and answers."""

    loss: str
    """The metric called `loss`, in words."""
    answers: str
    """What two forms of a model agree on."""


MODALITIES = {"text": Modality("text", "texts"), "image": Modality("image", "images")}
TARGETS = {
    "single_label": Target("cross-entropy loss", "Same answer as PyTorch"),
    "multi_label": Target("binary cross-entropy loss", "Same labels as PyTorch"),
    "regression": Target("mean squared error", "Same number as PyTorch, nearly"),
}


def kind_of(report: Mapping[str, Any]) -> tuple[str, str]:
    """Modality and target of a report, always keys of MODALITIES and TARGETS."""
    run = report.get("run") or {}
    modality, target = MODALITY_AND_TARGET.get(str(run.get("task")), ("text", "single_label"))
    given = (str(run.get("modality") or modality), str(run.get("target") or target))
    return given if given[0] in MODALITIES and given[1] in TARGETS else (modality, target)
