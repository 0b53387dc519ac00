"""What a recipe's task allows: keys of another modality or target are refused, metrics must fit, absent ones are filled in."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from finetune.errors import nearest
from finetune.recipe.task_names import (
    DEFAULT_METRIC,
    DEFAULT_METRICS,
    METRICS,
    MODALITY_AND_TARGET,
    MODALITY_KEYS,
    TARGET_KEYS,
)

if TYPE_CHECKING:
    from finetune.recipe.result_types import EvaluationSettings
    from finetune.recipe.settings import Settings
    from finetune.recipe.types import Recipe


def with_task_defaults(task: str, evaluation: EvaluationSettings) -> EvaluationSettings:
    """The section with the metrics that the task has by default where the recipe names none."""
    target = MODALITY_AND_TARGET[task][1]
    usual = {"metric": DEFAULT_METRIC[target], "metrics": DEFAULT_METRICS[target]}
    absent = {key: value for key, value in usual.items() if key not in evaluation.model_fields_set}
    return evaluation.model_copy(update=absent)


def check_task(recipe: Recipe) -> None:
    """ValueError for the first key or metric that does not belong to the recipe's task."""
    modality, target = MODALITY_AND_TARGET[recipe.task]
    for fitting, keys in MODALITY_KEYS.items():
        for key in keys:
            if modality not in fitting and _differs(recipe, key):
                raise ValueError(
                    f"{key}: it is for {' and '.join(fitting)} tasks, and task is {recipe.task}; remove it"
                )
    for number, phase in enumerate(recipe.transfer.phases or ()):
        if phase.image_size is not None and modality != "image":
            raise ValueError(
                f"transfer.phases[{number}].image_size: it is for image tasks, and task is {recipe.task}; remove it"
            )
    if recipe.transfer.phases and recipe.transfer.phases[-1].image_size is not None:
        raise ValueError(
            f"transfer.phases[{len(recipe.transfer.phases) - 1}].image_size: the last phase trains on images of the size that is shipped; "
            "remove it"
        )
    for key, targets in TARGET_KEYS.items():
        if target not in targets and _differs(recipe, key):
            meant = " or ".join(name.replace("_", "-") for name in targets)
            raise ValueError(f"{key}: it is for {meant} tasks, and task is {recipe.task}; remove it")
    _check_metrics(recipe, target)
    _check_augment(recipe, target)
    _check_weights(recipe)


def _check_metrics(recipe: Recipe, target: str) -> None:
    known = METRICS[target]
    for key, names in (("metric", (recipe.evaluation.metric,)), ("metrics", recipe.evaluation.metrics)):
        for name in names:
            outside = key == "metrics" and re.fullmatch(r"evaluate:.+", name)
            if name not in known and not outside:
                raise ValueError(f"evaluation.{key}: unknown metric '{name}' for {recipe.task}{nearest(name, known)}")


def _check_augment(recipe: Recipe, target: str) -> None:
    augment = recipe.train.augment
    if target == "regression" and augment.cutmix:
        raise ValueError(
            "train.augment.cutmix: it mixes labels by area, which means nothing for a number; use mixup or neither"
        )


def _check_weights(recipe: Recipe) -> None:
    if recipe.data.weight_column is None:
        if recipe.data.weight_map is not None:
            raise ValueError("data.weight_map: it names values of data.weight_column, which is absent; add it")
        return
    for name in ("mixup", "cutmix"):
        if getattr(recipe.train.augment, name):
            raise ValueError(
                f"train.augment.{name}: a mixture of two rows has no weight of its own; remove it or data.weight_column"
            )


def _differs(recipe: Recipe, key: str) -> bool:
    """Whether the recipe says something other than the default. A value that equals it asks for nothing."""
    section: Settings = recipe
    *sections, name = key.split(".")
    for part in sections:
        section = getattr(section, part)
    return bool(getattr(section, name) != type(section).model_fields[name].default)
