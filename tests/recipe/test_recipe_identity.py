from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.recipe import Recipe, dump_recipe, load_recipe, recipe_hash, training_hash
from finetune.recipe.identity import scalar_text
from finetune.recipe.strict_yaml import parse_value

RECIPE = "{name: a, task: text_classification, backbone: {name: b}, data: {source: c}, license: {use: research}}"


@pytest.fixture
def load(tmp_path: Path) -> Any:
    path = tmp_path / "a.yaml"
    path.write_text(RECIPE, encoding="utf-8")

    def with_overrides(*overrides: str) -> Recipe:
        return load_recipe(path, overrides)

    return with_overrides


@pytest.mark.parametrize("override", ["name=z", "description=z", "output=z"])
def test_words_change_no_hash(load: Any, override: str) -> None:
    assert recipe_hash(load(override)) == recipe_hash(load())
    assert training_hash(load(override)) == training_hash(load())


@pytest.mark.parametrize(
    "override",
    ["train.device=cpu", "train.tensorboard=true", "train.checkpoint_every_steps=5", "card.tags=[x]", "export.max_drop=0.5",
     "evaluation.calibration=false", "evaluation.metrics=[accuracy]", "license.use=internal"],
)  # fmt: skip
def test_what_training_does_not_depend_on_changes_the_recipe_hash_alone(load: Any, override: str) -> None:
    assert recipe_hash(load(override)) != recipe_hash(load())
    assert training_hash(load(override)) == training_hash(load())


@pytest.mark.parametrize(
    "override",
    ["seed=1", "backbone.name=z", "data.max_length=64", "data.splits.train=0.7999999", "head.dropout=0.5", "transfer.decay=0.5",
     "train.batch_size=8", "train.class_weights={x: 1}", "evaluation.metric=loss"],
)  # fmt: skip
def test_what_training_depends_on_changes_both_hashes(load: Any, override: str) -> None:
    assert recipe_hash(load(override)) != recipe_hash(load())
    assert training_hash(load(override)) != training_hash(load())


def test_spelling_and_order_do_not_change_the_hash(load: Any) -> None:
    first, second = load("train.class_weights={x: 1, y: 2}"), load("train.class_weights={y: 2.0, x: 1e0}")
    assert recipe_hash(first) == recipe_hash(second)
    assert recipe_hash(load("train.clip_norm=1")) == recipe_hash(load())


def test_hashes_are_sha256_in_hexadecimal(load: Any) -> None:
    assert re.fullmatch("[0-9a-f]{64}", recipe_hash(load()))
    assert re.fullmatch("[0-9a-f]{64}", training_hash(load()))


def test_an_explicit_null_survives_the_dump(load: Any, tmp_path: Path) -> None:
    recipe = load("train.clip_norm=null")
    path = tmp_path / "dump.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(path).train.clip_norm is None


def test_a_dump_means_the_same_to_a_yaml_1_1_reader(load: Any) -> None:
    recipe = load("transfer.l2sp.coupling=off", "description=no", "card.tags=['1:30', '017', 2024-01-31, '1_0']")
    read = yaml.safe_load(dump_recipe(recipe))
    assert read["transfer"]["l2sp"]["coupling"] == "off"
    assert read["description"] == "no"
    assert read["card"]["tags"] == ["1:30", "017", "2024-01-31", "1_0"]


@pytest.mark.parametrize(
    "text", ["a/b@c", "no", "1e-4", "017", "a: b", " a", "é\n🙂", '"', "C:\\data", "#", "", "\u2028\x7f"]
)
def test_a_text_becomes_one_line_that_reads_back(text: str) -> None:
    written = scalar_text(text)
    assert "\n" not in written
    assert parse_value(f"k: {written}  # comment\n", str)[0] == {"k": text}


def test_a_simple_path_needs_no_quotes() -> None:
    assert scalar_text("distilbert/distilbert-base-uncased") == "distilbert/distilbert-base-uncased"
    assert scalar_text("package:a/b") == '"package:a/b"'
