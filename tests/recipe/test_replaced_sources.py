"""What a recipe says about a source holds for that source only."""

from __future__ import annotations

from pathlib import Path

from finetune.recipe import load_recipe

RECIPE = """\
name: demo
task: text_classification
backbone: {name: some/model, revision: abc}
data: {source: rows.csv, config: small}
license:
  use: research
  backbone: {id: mit, reason: "read on the model's page"}
  data: {id: cc0-1.0, reason: "read on the data's page"}
card: {base_model: some/original, dataset_name: Rows}
"""


def _load(folder: Path, *overrides: str):  # type: ignore[no-untyped-def]
    path = folder / "recipe.yaml"
    path.write_text(RECIPE)
    return load_recipe(path, overrides)


def test_another_backbone_does_not_inherit_revision_licence_or_original(tmp_path: Path) -> None:
    recipe = _load(tmp_path, "backbone.name=other/model")
    assert (recipe.backbone.revision, recipe.license.backbone, recipe.card.base_model) == (None, None, None)
    assert recipe.license.data is not None
    assert recipe.card.dataset_name == "Rows"


def test_another_data_source_does_not_inherit_licence_or_name(tmp_path: Path) -> None:
    recipe = _load(tmp_path, "data.source=other.csv")
    assert (recipe.data.config, recipe.license.data, recipe.card.dataset_name) == (None, None, None)
    assert recipe.license.backbone is not None


def test_overrides_given_with_the_new_source_are_kept(tmp_path: Path) -> None:
    recipe = _load(tmp_path, "backbone.revision=def", "backbone.name=other/model", "card.base_model=other/original")
    assert (recipe.backbone.revision, recipe.card.base_model) == ("def", "other/original")


def test_naming_the_same_source_again_changes_nothing(tmp_path: Path) -> None:
    assert _load(tmp_path, "backbone.name=some/model") == _load(tmp_path)
