"""What docs/ says of language models is what the program takes and reports."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import yaml

from finetune.predict_command import add_arguments
from finetune.recipe import load_recipe

DOCS = Path(__file__).parent.parent / "docs"
REPORT = Path(__file__).parent / "report" / "causal_lm_report.json"


def page(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


def examples(name: str) -> list[dict[str, object]]:
    return [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page(name), re.DOTALL)]


def test_recipes_in_the_docs_are_accepted(tmp_path: Path) -> None:
    (whole,), (part,) = examples("causal-lm.md"), examples("methods/lora.md")
    for given in (whole, whole | part):
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(given), "utf-8")
        recipe = load_recipe(file)
        assert recipe.task == "causal_lm"
        assert recipe.transfer.adapter.kind == "lora"


def test_options_of_predict_are_documented_and_exist() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    group = next(one for one in parser._action_groups if one.title == "language models")
    options = {name for action in group._group_actions for name in action.option_strings}
    text = page("predict.md")
    section = text[text.index("## Language models") : text.index("## From Python")]
    rows = "\n".join(line.split("|")[1] for line in section.splitlines() if line.startswith("|"))
    assert set(re.findall(r"--[a-z][a-z-]+", rows)) == options
    assert set(re.findall(r"--[a-z][a-z-]+", section)) <= options


def test_keys_of_the_report_are_documented() -> None:
    report, text = json.loads(REPORT.read_text("utf-8")), page("report.md")
    keys = {
        *report["language"],
        *report["language"]["memorisation"],
        *report["language"]["memory"],
        *report["language"]["unchanged"],
        *report["language"]["generations"][0],
        *report["data"]["tokens"]["train"],
        *report["transfer"]["adapter"],
        *report["export"]["greedy"],
        "ms_first_token",
        "tokens_per_second",
    }
    missing = [key for key in sorted(keys) if not re.search(rf"[`\"]{re.escape(key)}[`\"]", text)]
    assert missing == []
