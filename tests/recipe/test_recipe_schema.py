from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from finetune.recipe import json_schema
from finetune.recipe.schema import expected, keys_of, node_at

DOCS = Path(__file__).parents[2] / "docs"


def sections(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "Recipe", schema
    yield from schema["$defs"].items()


def test_the_schema_is_valid_draft_2020_12() -> None:
    Draft202012Validator.check_schema(json_schema())
    assert json_schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_every_section_and_every_key_is_described() -> None:
    for name, section in sections(json_schema()):
        assert section["description"].strip(), name
        for key, node in section["properties"].items():
            assert node["description"].strip().endswith((".", "`")), f"{name}.{key}"


def test_unknown_keys_are_refused_in_every_section() -> None:
    assert all(section["additionalProperties"] is False for _, section in sections(json_schema()))


def test_a_changed_copy_does_not_change_the_schema() -> None:
    json_schema()["properties"].clear()
    assert json_schema()["properties"]
    assert node_at(("seed",)) is not None


def test_the_schema_accepts_a_recipe_and_refuses_a_misspelt_one() -> None:
    recipe = {
        "name": "a",
        "task": "text_classification",
        "backbone": {"name": "b"},
        "data": {"source": "c", "splits": {"train": "train.csv", "validation": 0.1, "test": "test.csv"}},
        "train": {"class_weights": {"sports": 2}},
        "license": {"use": "research"},
    }
    check = Draft202012Validator(json_schema())
    assert check.is_valid(recipe)
    assert not check.is_valid({**recipe, "sed": 1})
    assert not check.is_valid({**recipe, "train": {"batch_size": 0}})


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (("transfer", "decay"), "a number greater than 0 and at most 1"),
        (("seed",), "a whole number of at least 0 and below 2147483648"),
        (("evaluation", "calibration_bins"), "a whole number from 2 to 100"),
        (("transfer", "phases"), "a list of sections"),
        (("transfer", "phases", 3, "trainable"), "a whole number of at least 1 or 'all'"),
        (("train", "class_weights"), "one of 'none', 'balanced' or a mapping of names to numbers"),
        (("license", "data"), "a section with keys such as 'id'"),
    ],
)
def test_what_is_expected_is_said_in_words(path: tuple[str | int, ...], words: str) -> None:
    node = node_at(path)
    assert node is not None
    assert expected(node) == words


def test_keys_are_looked_up_by_path() -> None:
    assert keys_of(("transfer", "l2sp")) == ("coupling", "alpha", "beta")
    assert keys_of(("seed",)) == ()
    assert node_at(("transfer", "nothing")) is None
    assert node_at(("transfer", 0)) is None


def test_the_recipe_reference_is_current() -> None:
    spec = importlib.util.spec_from_file_location("generate_recipe_reference", DOCS / "generate_recipe_reference.py")
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    committed = (DOCS / "recipe.md").read_text(encoding="utf-8")
    assert generator.render() == committed, "run: python docs/generate_recipe_reference.py"


def test_the_schema_is_plain_json() -> None:
    assert json.loads(json.dumps(json_schema(), allow_nan=False)) == json_schema()
