"""The README's commands and the repository's promises stay true."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from finetune.cli import main
from finetune.preprocess.image_file import IMAGE_SUFFIXES
from finetune.recipe import load_recipe

ROOT = Path(__file__).parent.parent


def test_ci_runs_the_readmes_test_command_word_for_word() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    command = next(line.strip() for line in readme.splitlines() if line.strip().endswith("-m pytest"))
    assert command in (ROOT / ".ci" / "run").read_text("utf-8").splitlines()


def test_every_link_of_readme_and_docs_leads_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            if not target.startswith(("http://", "https://")):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_docs_name_every_ending_by_which_images_are_found() -> None:
    page = (ROOT / "docs" / "data.md").read_text("utf-8")
    said = re.search(r"images are (.*?) files", page, re.DOTALL)
    assert said
    assert set(re.findall(r"`(\.\w+)`", said[1])) == IMAGE_SUFFIXES


def test_every_recipe_loads_and_says_its_command() -> None:
    for path in (ROOT / "recipes").glob("*.yaml"):
        assert load_recipe(path).name == path.stem
        assert f"finetune run recipes/{path.name}" in path.read_text("utf-8")


def test_the_distilbert_recipe_is_the_default_with_another_backbone() -> None:
    overridden = load_recipe(ROOT / "recipes/text_cls.yaml", ["backbone.name=distilbert/distilbert-base-uncased"])
    distilbert = load_recipe(ROOT / "recipes/text_cls_distilbert.yaml")
    assert overridden.model_copy(update={"name": distilbert.name, "description": distilbert.description}) == distilbert


def test_the_demo_recipe_validates_without_a_hub(capsys: object) -> None:
    assert main(["validate", str(ROOT / "recipes/text_cls.yaml")]) == 0


def test_lower_bounds_are_met_by_the_constraints() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if "==" in line)
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    for requirement in wanted:
        name, _, bound = re.match(r"([A-Za-z0-9-]+)(\[[^]]*\])?(?:[>=]=(\d+(?:\.\d+)*))?", requirement).groups()  # type: ignore[union-attr]
        if name == "finetune-recipes":
            continue
        assert name in pins, name
        if bound:
            assert tuple(map(int, pins[name].split(".")[:3])) >= tuple(map(int, bound.split("."))), name
