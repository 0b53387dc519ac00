from __future__ import annotations

from pathlib import Path

import pytest

from finetune.errors import RecipeError
from finetune.recipe import load_recipe, parse_overrides

RECIPE = """\
name: news
task: text_classification
backbone:
  name: package:some-package/model
data:
  source: data/news.csv
transfer:
  phases:
    - trainable: 1
    - trainable: all
license:
  use: research
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def test_a_package_backbone_is_replaced_by_a_hub_id(path: Path) -> None:
    recipe = load_recipe(path, ["backbone.name=distilbert/distilbert-base-uncased"])
    assert recipe.backbone.name == "distilbert/distilbert-base-uncased"
    assert recipe.data == load_recipe(path).data


def test_overrides_follow_the_scalar_rules_of_the_file(path: Path) -> None:
    recipe = load_recipe(
        path,
        [
            "transfer.learning_rate=2e-5",
            "train.bucket_by_length = false",
            "train.clip_norm=null",
            "card.dataset_name=no",
            "card.tags=[a, 'b c']",
            "train.class_weights={sports: 2, tech: 0.5}",
            "transfer.phases[1].epochs=3",
            "description=first: a #1 try, [not a list]",
            'card.intended_use="1.5"',
            "seed=017",
        ],
    )
    assert recipe.transfer.learning_rate == 2e-5
    assert recipe.train.bucket_by_length is False
    assert recipe.train.clip_norm is None
    assert recipe.card.dataset_name == "no"
    assert recipe.card.tags == ("a", "b c")
    assert recipe.train.class_weights == {"sports": 2.0, "tech": 0.5}
    assert recipe.transfer.phases is not None
    assert [phase.epochs for phase in recipe.transfer.phases] == [1, 3]
    assert recipe.description == "first: a #1 try, [not a list]"
    assert recipe.card.intended_use == "1.5"
    assert recipe.seed == 17


def test_a_mapping_of_overrides_takes_python_values(path: Path) -> None:
    recipe = load_recipe(path, {"output": Path("out"), "card.tags": ("a",), "train.clip_norm": None, "seed": 3})
    assert (recipe.output, recipe.card.tags, recipe.train.clip_norm, recipe.seed) == ("out", ("a",), None, 3)


def test_later_overrides_win_and_sections_are_made_on_the_way(path: Path) -> None:
    recipe = load_recipe(path, ["train.batch_size=8", "train={batch_size: 4}", "train.warmup=0.2"])
    assert (recipe.train.batch_size, recipe.train.warmup) == (4, 0.2)


def test_parsed_overrides_are_overrides_again(path: Path) -> None:
    texts = ["train.batch_size=8", "transfer.phases[0].epochs=2", "card.tags=[x]"]
    parsed = parse_overrides(texts)
    assert parsed == {"train.batch_size": 8, "transfer.phases[0].epochs": 2, "card.tags": ["x"]}
    assert load_recipe(path, parsed) == load_recipe(path, texts)


def test_one_override_may_be_given_as_a_plain_string(path: Path) -> None:
    assert load_recipe(path, "seed=5").seed == 5


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("seed", "override 'seed': no value; write key=value, such as train.batch_size=16"),
        ("train.bach_size=8", "override 'train.bach_size=8': train.bach_size: unknown key; did you mean 'batch_size'?"),
        ("trian.batch_size=8", "override 'trian.batch_size=8': trian: unknown key; did you mean 'train'?"),
        ("train.batch_size=0", "override 'train.batch_size=0': train.batch_size: must be at least 1, found 0"),
        (
            "train.batch_size=big",
            "override 'train.batch_size=big': train.batch_size: expected a whole number of at least 1, "
            "found the string 'big'",
        ),
        ("train.warmup=.nan", "override 'train.warmup=.nan': train.warmup: '.nan' is not a finite number; write another value"),
        ("name.first=a", "override 'name.first=a': name: expected a section, found the string 'news'; set 'name' as a whole"),
        (
            "transfer.phases[2].epochs=1",
            "override 'transfer.phases[2].epochs=1': transfer.phases: the list has 2 items, counted from [0]; "
            "set it as a whole",
        ),
        ("transfer[0]=1", "override 'transfer[0]=1': transfer: expected a list, found a mapping; set 'transfer' as a whole"),
        ("transfer.unfreeze=full", "override 'transfer.unfreeze=full': transfer: give either unfreeze or phases, not both"),
        (
            "card.tags=[a",
            "override 'card.tags=[a': a bracket is opened and never closed, or a comma is missing; "
            "mend the list or mapping",
        ),
        ("a..b=1", "override 'a..b=1': 'a..b' is not a key path; write it like transfer.phases[0].epochs"),
        ("backbone=null", "override 'backbone=null': backbone: expected a section with keys such as 'name', found nothing; "
                          "give a value or remove the key"),
        ("seed=\udc80", "override 'seed= ': seed: the text holds half of a surrogate pair, which is no character; "
                        "write another value"),
    ],
)  # fmt: skip
def test_a_bad_override_is_told_in_one_exact_sentence(path: Path, override: str, sentence: str) -> None:
    with pytest.raises(RecipeError) as refused:
        load_recipe(path, [override])
    assert str(refused.value) == sentence


def test_values_that_no_recipe_can_hold_are_refused(path: Path) -> None:
    endless: list[object] = []
    endless.append(endless)
    for value in (float("nan"), object(), {1: 2}, endless, 10**500, "\ud800"):
        with pytest.raises(RecipeError, match=r"^override 'card\.tags="):
            load_recipe(path, {"card.tags": value})


def test_an_error_in_the_file_is_told_before_one_in_an_override(path: Path) -> None:
    path.write_text(RECIPE.replace("use: research", "use: fun"), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"a\.yaml:12: license\.use: .* also wrong: seed \(override 'seed=-1'\)$"):
        load_recipe(path, ["seed=-1"])


def test_an_override_mends_the_file(path: Path) -> None:
    path.write_text(RECIPE.replace("use: research", "use: fun"), encoding="utf-8")
    assert load_recipe(path, ["license.use=internal"]).license.use == "internal"
