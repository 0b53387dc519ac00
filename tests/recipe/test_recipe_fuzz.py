"""Whatever a file holds, loading it ends in a Recipe or in a RecipeError of one line."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError
from recipe_strategies import ANY_TEXT, SCHEMA, recipe_data

from finetune.errors import RecipeError
from finetune.recipe import Recipe, dump_recipe, load_recipe, parse_overrides, problems, recipe_hash, training_hash

YAML_PIECES = st.sampled_from(
    ["name", "task", "train", ": ", ":", " ", "  ", "\n", "\n  ", "- ", "[", "]", "{", "}", ",", "&x ", "*x", "!", "!!str ", "'", '"',
     "|", ">", "|+2\n", "# c", "%YAML 1.2\n", "%TAG ! !a\n", "\t", "---", "\n---\n", "...", "? ", "<<", "1e5", ".inf", "0x", "0o8", "\\",
     '"\\U', "\\x", "\r\n", "\x85", "\u2028", "\ufeff", "\x00", "é", "🙂", "9" * 5000, "~", "@", "`"]
)  # fmt: skip
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | ANY_TEXT
    | st.just(10**30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=6,
)


def examples(count: int) -> settings:
    """Many examples share one folder, since each writes its file anew."""
    slow = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much]
    return settings(deadline=None, suppress_health_check=slow, max_examples=count)


def load_or_refuse(path: Path, overrides: Any = ()) -> Recipe | None:
    try:
        return load_recipe(path, overrides)
    except RecipeError as error:
        message = str(error)
    assert message.isprintable(), "one line that a terminal can show"
    return None


@examples(300)
@given(st.binary(max_size=200) | st.lists(YAML_PIECES, max_size=30).map(lambda parts: "".join(parts).encode()) | st.text().map(
    lambda text: text.encode("utf-8", "surrogatepass")))  # fmt: skip
@example(b"%YAML 1." + b"9" * 5000 + b"\n---\na: 1")
@example(b'"\\U00110000"')
@example("name: a".encode("utf-16"))
def test_any_bytes_end_in_a_recipe_or_a_recipe_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    load_or_refuse(path)


@examples(40)
@given(recipe_data())
def test_a_dumped_recipe_loads_equal_with_equal_hashes(tmp_path: Path, data: dict[str, Any]) -> None:
    try:
        recipe = Recipe.model_validate_json(json.dumps(data))
    except ValidationError:
        assume(False)
    path = tmp_path / "a.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    again = load_recipe(path)
    assert again == recipe
    assert recipe_hash(again) == recipe_hash(recipe)
    assert training_hash(again) == training_hash(recipe)
    assert dump_recipe(again) == dump_recipe(recipe)


@examples(100)
@given(recipe_data(), st.data())
def test_a_damaged_recipe_is_told_in_our_own_words(tmp_path: Path, data: dict[str, Any], draw: st.DataObject) -> None:
    damaged = copy.deepcopy(data)
    for _ in range(draw.draw(st.integers(1, 3))):
        section: Any = damaged
        while True:
            keys = list(section) if isinstance(section, dict) else list(range(len(section)))
            if not keys:
                break
            key = draw.draw(st.sampled_from(keys))
            if not isinstance(section[key], dict | list) or draw.draw(st.booleans()):
                section[key] = draw.draw(JSON_VALUES)
                break
            section = section[key]
        if isinstance(section, dict) and draw.draw(st.booleans()):
            section[draw.draw(ANY_TEXT)] = draw.draw(JSON_VALUES)
    path = tmp_path / "a.yaml"
    path.write_text(json.dumps(damaged, ensure_ascii=False, indent=1), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(problems, "_unforeseen", lambda error: pytest.fail(f"no sentence for {error}"))
        if load_or_refuse(path):
            assert not list(Draft202012Validator(SCHEMA).iter_errors(damaged)), "the schema is as wide as the types"


@examples(100)
@given(
    st.lists(
        st.text(max_size=20)
        | st.builds("{}={}".format, st.sampled_from(["seed", "train", "card.tags", "a[0]"]), st.text()),
        max_size=3,
    )
)
def test_any_override_ends_in_a_recipe_or_a_recipe_error(tmp_path: Path, overrides: list[str]) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        "{name: a, task: text_classification, backbone: {name: b}, data: {source: c}, license: {use: research}}"
    )
    if load_or_refuse(path, overrides):
        assert load_recipe(path, parse_overrides(overrides)) == load_recipe(path, overrides)
