"""What a recipe can learn: one plain entry per task and per target. Imports no torch; the losses do when they are called."""

from typing import cast

from finetune.recipe.task_names import MODALITY_AND_TARGET
from finetune.tasks import multi_label, next_token, regression, single_label
from finetune.tasks.spec import Modality, Target, TaskSpec

TARGETS: dict[str, Target] = {
    target.name: target for target in (single_label.TARGET, multi_label.TARGET, regression.TARGET, next_token.TARGET)
}

AUTO_CLASS = {
    "text": "AutoModelForSequenceClassification",
    "image": "AutoModelForImageClassification",
    "language": "AutoModelForCausalLM",
}
"""By modality. transformers has one head class for all targets of texts, and one for those of images; the configuration's
`problem_type` tells them apart."""
PIPELINE_TAG = {"text": "text-classification", "image": "image-classification", "language": "text-generation"}

TASKS: dict[str, TaskSpec] = {
    name: TaskSpec(name, cast(Modality, modality), TARGETS[target], AUTO_CLASS[modality], PIPELINE_TAG[modality])
    for name, (modality, target) in MODALITY_AND_TARGET.items()
}

__all__ = ["TARGETS", "TASKS", "Target", "TaskSpec"]
