from __future__ import annotations

import json
import re
from typing import Any

import pytest
from pydantic import ValidationError

from finetune.recipe import AugmentSettings, Recipe, SplitSettings
from finetune.recipe.task_names import DEFAULT_METRIC, METRICS, MODALITY_AND_TARGET

RECIPE: dict[str, Any] = {
    "name": "a",
    "task": "text_classification",
    "backbone": {"name": "b"},
    "data": {"source": "c"},
    "license": {"use": "research"},
}


@pytest.mark.parametrize(
    "shares",
    [
        {},
        {"train": 0.5, "validation": 0.25, "test": 0.25},
        {"train": "train.csv"},
        {"train": "train.csv", "validation": 0.2, "test": "test.csv"},
        {"train": "train.csv", "validation": "dev.csv", "test": "test.csv"},
        {"train": 0.9, "validation": 0.1, "test": "test.csv"},
    ],
)
def test_splits_that_can_be_made(shares: dict[str, Any]) -> None:
    assert SplitSettings(**shares)


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ({"train": 0.9}, "the shares add up to 1.1, not 1"),
        ({"train": 1.0}, "less than 1"),
        ({"test": 0.0}, "greater than 0"),
        ({"train": 0.9, "validation": 0.2, "test": "test.csv"}, "the shares add up to 1.1, more than 1"),
        ({"train": "train.csv", "validation": 0.5, "test": 0.5}, "leave no training rows"),
        ({"validation": "dev.csv"}, "name a table for train too"),
        ({"validation": "dev.csv", "test": "test.csv"}, "name a table for train too"),
    ],
)
def test_splits_that_cannot_be_made(shares: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        SplitSettings(**shares)


def test_recipes_are_frozen() -> None:
    recipe = Recipe(**RECIPE)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.seed = 1  # type: ignore[misc]


def test_a_reported_metric_is_built_in_or_from_the_evaluate_library() -> None:
    assert Recipe(**RECIPE, evaluation={"metrics": ("accuracy", "evaluate:./mine")})
    with pytest.raises(ValidationError, match="did you mean 'f1_macro'"):
        Recipe(**RECIPE, evaluation={"metrics": ("f1-macro",)})
    with pytest.raises(ValidationError, match="unknown metric"):
        Recipe(**RECIPE, evaluation={"metric": "evaluate:accuracy"})


@pytest.mark.parametrize("task", MODALITY_AND_TARGET)
def test_every_task_has_metrics_of_its_own_by_default(task: str) -> None:
    recipe = Recipe(**{**RECIPE, "task": task})
    _, target = MODALITY_AND_TARGET[task]
    assert recipe.evaluation.metric == DEFAULT_METRIC[target]
    assert set(recipe.evaluation.metrics) <= set(METRICS[target])


@pytest.mark.parametrize(
    ("task", "section", "sentence"),
    [
        (
            "image_classification",
            {"data": {"source": "d", "max_length": 64}},
            "data.max_length: it is for text and language tasks",
        ),
        (
            "text_classification",
            {"transfer": {"phases": [{"trainable": 1, "image_size": 64}, {"trainable": 2}]}},
            "transfer.phases[0].image_size: it is for image tasks",
        ),
        (
            "image_classification",
            {"transfer": {"phases": [{"trainable": 1}, {"trainable": 2, "image_size": 64}]}},
            "transfer.phases[1].image_size: the last phase trains on images of the size that is shipped",
        ),
        ("text_regression", {"transfer": {"adapter": {"kind": "lora"}}}, "transfer.adapter: it is for language tasks"),
        ("causal_lm", {"head": {"dropout": 0.1}}, "head.dropout: it is for text and image tasks"),
        ("causal_lm", {"train": {"label_smoothing": 0.1}}, "train.label_smoothing: it is for single-label or multi"),
        ("causal_lm", {"transfer": {"adapter": {"base": "nf4"}}}, "base means nothing without an adapter; set kind"),
        (
            "causal_lm",
            {"transfer": {"adapter": {"kind": "lora", "base": "nf4"}}, "train": {"device": "cpu"}},
            "transfer.adapter.base: nf4 weights need a GPU, and train.device is cpu",
        ),
        (
            "causal_lm",
            {"transfer": {"adapter": {"kind": "lora"}, "l2sp": {"coupling": "loss", "alpha": 0.3}}},
            "transfer.l2sp.alpha: an adapter leaves the pretrained weights where they are",
        ),
        ("causal_lm", {"evaluation": {"memorisation": {"ngram": 60}}}, "hold no run of ngram; raise max_new_tokens"),
        ("text_classification", {"data": {"source": "d", "image_size": 64}}, "data.image_size: it is for image tasks"),
        ("text_regression", {"train": {"augment": {"mixup": 0.2}}}, "train.augment: it is for image tasks"),
        (
            "image_regression",
            {"train": {"label_smoothing": 0.1}},
            "train.label_smoothing: it is for single-label or multi",
        ),
        ("image_regression", {"train": {"augment": {"cutmix": 0.2}}}, "train.augment.cutmix: it mixes labels by area"),
        (
            "image_classification",
            {"data": {"source": "d", "weight_column": "w"}, "train": {"augment": {"mixup": 0.2}}},
            "train.augment.mixup: a mixture of two rows has no weight of its own",
        ),
        (
            "image_multi_label_classification",
            {"data": {"source": "d", "weight_column": "w"}, "train": {"augment": {"cutmix": 1.0}}},
            "train.augment.cutmix: a mixture of two rows has no weight of its own",
        ),
        (
            "text_classification",
            {"data": {"source": "d", "weight_map": {"a": 1.0}}},
            "data.weight_map: it names values of data.weight_column, which is absent; add it",
        ),
        (
            "text_classification",
            {"data": {"source": "d", "weight_column": "w", "weight_map": {"a": 0.0}}},
            "greater than 0",
        ),
        ("causal_lm", {"data": {"source": "d", "weight_column": "w"}}, "data.weight_column: it is for text and image"),
        ("text_classification", {"data": {"source": "d", "label_columns": ["a", "b"]}}, "it is for multi-label tasks"),
        ("image_regression", {"evaluation": {"metric": "accuracy"}}, "unknown metric 'accuracy' for image_regression"),
    ],
)
def test_a_key_of_another_kind_of_task_is_refused(task: str, section: dict[str, object], sentence: str) -> None:
    written = {**RECIPE, "task": task, **section}
    with pytest.raises(ValidationError, match=re.escape(sentence)):
        Recipe.model_validate_json(json.dumps(written))


def test_an_adapter_may_be_pulled_to_zero() -> None:
    transfer = {"adapter": {"kind": "lora"}, "l2sp": {"coupling": "decoupled", "beta": 0.1}}
    recipe = Recipe(**{**RECIPE, "task": "causal_lm", "transfer": transfer})
    assert recipe.transfer.l2sp.beta == 0.1
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_a_key_of_another_kind_of_task_may_hold_its_default() -> None:
    assert Recipe(**{**RECIPE, "task": "image_regression", "train": {"label_smoothing": 0.0}})


def test_a_random_crop_needs_two_rising_shares() -> None:
    for shares, sentence in (((0.9, 0.5), "must not be above"), ((0.5,), "at least 2"), ((0.0, 1.0), "greater than 0")):
        with pytest.raises(ValidationError, match=sentence):
            AugmentSettings(random_resized_crop=shares)


def test_a_decoupled_pull_may_not_jump_past_the_anchor() -> None:
    pull = {"l2sp": {"coupling": "decoupled", "alpha": 50.0}}
    assert Recipe(**RECIPE, transfer={**pull, "learning_rate": 2e-5})
    with pytest.raises(ValidationError, match="must stay below 1"):
        Recipe(**RECIPE, transfer={**pull, "learning_rate": 2e-2})
