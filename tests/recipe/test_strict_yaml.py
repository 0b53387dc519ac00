from __future__ import annotations

from pathlib import Path

import pytest

from finetune.errors import RecipeError
from finetune.recipe.strict_yaml import Document, parse_document, read_document


def parse(text: str) -> Document:
    return parse_document(text.encode(), lambda line: f"a.yaml:{line}")


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("2e-5", 2e-5),
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("-1.5e+3", -1500.0),
        ("12", 12),
        ("-3", -3),
        ("+3", 3),
        ("017", 17),
        ("0o17", 15),
        ("0x1F", 31),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("No", "No"),
        ("on", "on"),
        ("off", "off"),
        ("tRue", "tRue"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2024-01-31", "2024-01-31"),
        ("2024-01-31T10:00:00Z", "2024-01-31T10:00:00Z"),
        ("0b11", "0b11"),
        ("=", "="),
        ("1e", "1e"),
        ("'1'", "1"),
        ('"true"', "true"),
        ('"\\u00e9"', "é"),
    ],
)
def test_scalars_follow_the_core_schema_of_yaml_1_2(scalar: str, value: object) -> None:
    result = parse(f"key: {scalar}\n").data["key"]
    assert result == value
    assert type(result) is type(value)


def test_every_key_and_item_knows_its_line() -> None:
    document = parse(
        "# head\nname: a\ntransfer:\n  phases:\n    - trainable: 1\n      epochs: 2\n    - {trainable: 3}\n"
    )
    assert document.lines == {
        (): 2,
        ("name",): 2,
        ("transfer",): 3,
        ("transfer", "phases"): 4,
        ("transfer", "phases", 0): 5,
        ("transfer", "phases", 0, "trainable"): 5,
        ("transfer", "phases", 0, "epochs"): 6,
        ("transfer", "phases", 1): 7,
        ("transfer", "phases", 1, "trainable"): 7,
    }


def test_lines_are_right_after_windows_line_ends_and_a_byte_order_mark() -> None:
    document = parse("\ufeffname: a\r\nseed: 1\r\n")
    assert document.data == {"name": "a", "seed": 1}
    assert document.lines[("seed",)] == 2


def test_a_small_alias_is_expanded() -> None:
    assert parse("a: &x [1, 2]\nb: *x\n").data == {"a": [1, 2], "b": [1, 2]}


def test_an_alias_bomb_is_refused_at_once() -> None:
    levels = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]\n" for i in range(1, 12))
    with pytest.raises(
        RecipeError, match=r"^a\.yaml:\d+: more than 10000 values once aliases are expanded; write out fewer$"
    ):
        parse("l0: &l0 [lol]\n" + levels)


def test_an_alias_inside_itself_is_refused() -> None:
    with pytest.raises(
        RecipeError, match="nested deeper than 20 levels, or an alias that contains itself; write it out"
    ):
        parse("a: &a [*a]\n")


def test_depth_is_counted_through_aliases() -> None:
    deep = "[" * 15 + "]" * 15
    with pytest.raises(RecipeError, match="nested deeper than 20 levels"):
        parse(f"a: &a {deep}\nb: {'[' * 10}*a{']' * 10}\n")


@pytest.mark.parametrize("depth", [20, 21])
def test_twenty_levels_are_the_most(depth: int) -> None:
    text = "a: " + "[" * (depth - 1) + "1" + "]" * (depth - 1) + "\n"
    if depth == 20:
        parse(text)
    else:
        with pytest.raises(RecipeError, match="nested deeper than 20 levels"):
            parse(text)


@pytest.mark.parametrize("count", [9_998, 9_999])
def test_ten_thousand_values_are_the_most(count: int) -> None:
    text = "a: [" + "0," * count + "]\n"  # and the list, and the mapping
    if count == 9_998:
        assert len(parse(text).data["a"]) == count
    else:
        with pytest.raises(RecipeError, match="more than 10000 values"):
            parse(text)


def test_a_flood_of_brackets_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(RecipeError, match="nested deeper than 20 levels"):
        parse("a: " + "[" * 500_000)


@pytest.mark.parametrize("text", ["{[1]: 2}", "? {a: 1}\n: b\n", "{~: 1}", "{true: 1}", "{1.5: 1}"])
def test_only_text_is_a_key(text: str) -> None:
    with pytest.raises(RecipeError, match=r"cannot be a key|a key must be text"):
        parse(text)


@pytest.mark.parametrize("tag", ["!!str 1", "!!python/object/apply:os.system [ls]", "! 1", "!mine {a: 1}", "!!set {a}"])
def test_tags_are_refused(tag: str) -> None:
    with pytest.raises(RecipeError, match="tags such as"):
        parse(f"a: {tag}\n")


def test_duplicate_keys_are_refused_where_they_are_nested() -> None:
    with pytest.raises(
        RecipeError, match=r"^a\.yaml:4: data\.splits\.train: given twice, first on line 3; remove one$"
    ):
        parse("data:\n  splits:\n    train: 0.8\n    'train': 0.7\n")


def test_a_path_that_no_system_accepts_is_a_recipe_error() -> None:
    with pytest.raises(RecipeError):
        read_document(Path("a\0b"))
