from __future__ import annotations

import typing

import pytest
import torch
import transformers
from transformers.loss.loss_utils import ForSequenceClassificationLoss
from transformers.pipelines import SUPPORTED_TASKS

from finetune.recipe import Recipe
from finetune.recipe.task_names import DEFAULT_METRIC, METRICS, Task
from finetune.tasks import TARGETS, TASKS


def test_every_task_of_the_recipe_has_an_entry_and_no_other() -> None:
    assert set(TASKS) == set(typing.get_args(Task)) == set(typing.get_args(Recipe.model_fields["task"].annotation))
    assert all(name == task.name for name, task in TASKS.items())
    classical = [target for target in TARGETS if target != "next_token"]
    assert {(task.modality, task.target.name) for task in TASKS.values()} == {
        ("language", "next_token"), *((modality, target) for modality in ("text", "image") for target in classical)
    }  # fmt: skip


def test_the_entries_name_what_transformers_and_the_hub_call_it() -> None:
    for task in TASKS.values():
        assert getattr(transformers, task.auto_class) in SUPPORTED_TASKS[task.pipeline_tag]["pt"]
        assert task.pipeline_tag.startswith({"language": "text"}.get(task.modality, task.modality))


@pytest.mark.parametrize(
    ("target", "labels"),
    [
        ("single_label", torch.tensor([0, 2, 1, 1])),
        ("multi_label", torch.tensor([[0.0, 1, 1], [0, 0, 0], [1, 0, 0], [1, 1, 1]])),
        ("regression", torch.tensor([0.5, -1, 3, 0])),
    ],
)
def test_the_loss_is_the_one_that_transformers_computes_for_the_problem_type(target: str, labels: torch.Tensor) -> None:
    outputs = 1 if target == "regression" else 3
    logits = torch.randn(4, outputs, generator=torch.Generator().manual_seed(0))
    entry = TARGETS[target]
    config = transformers.PreTrainedConfig(problem_type=entry.problem_type, num_labels=outputs)
    found = entry.loss_sums(logits, labels, None, 0.0, None) / entry.loss_denominator(labels, None)
    torch.testing.assert_close(found, ForSequenceClassificationLoss(labels, logits, config))


@pytest.mark.parametrize("target", TARGETS)
def test_metrics_are_those_that_the_recipe_accepts(target: str) -> None:
    assert TARGETS[target].metrics == METRICS[target]
    assert TARGETS[target].default_metric == DEFAULT_METRIC[target]
    assert TARGETS[target].default_metric in TARGETS[target].metrics


@pytest.mark.parametrize("target", [target for target in TARGETS if target != "next_token"])
def test_what_is_kept_of_few_logits_is_the_logits(target: str) -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(TARGETS[target].answers(logits, torch.zeros(4)), logits)
    assert TARGETS[target].answers(logits.bfloat16(), torch.zeros(4)).dtype == torch.float32
