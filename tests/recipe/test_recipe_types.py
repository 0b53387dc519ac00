from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from finetune.recipe import EvaluationSettings, Recipe, SplitSettings

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
    assert EvaluationSettings(metrics=("accuracy", "evaluate:./mine"))
    with pytest.raises(ValidationError, match="did you mean 'f1_macro'"):
        EvaluationSettings(metrics=("f1-macro",))
    with pytest.raises(ValidationError, match="unknown metric"):
        EvaluationSettings(metric="evaluate:accuracy")


def test_a_decoupled_pull_may_not_jump_past_the_anchor() -> None:
    pull = {"l2sp": {"coupling": "decoupled", "alpha": 50.0}}
    assert Recipe(**RECIPE, transfer={**pull, "learning_rate": 2e-5})
    with pytest.raises(ValidationError, match="must stay below 1"):
        Recipe(**RECIPE, transfer={**pull, "learning_rate": 2e-2})
