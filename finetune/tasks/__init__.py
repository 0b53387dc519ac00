"""What a recipe can learn: one plain entry per task. Imports no torch; the losses do when they are called."""

from finetune.tasks import text_classification
from finetune.tasks.spec import TaskSpec

TASKS: dict[str, TaskSpec] = {"text_classification": text_classification.TASK}

__all__ = ["TASKS", "TaskSpec"]
