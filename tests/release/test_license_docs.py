"""docs/licenses.md says what the policy does."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from finetune.recipe.types import LicenseSettings
from finetune.release._hub_ids import HUB_LICENSES
from finetune.release.policy import FAMILIES, SEVERITY, USES

PAGE = (Path(__file__).parents[2] / "docs" / "licenses.md").read_text(encoding="utf-8")


def rows(first_header):
    table = PAGE.split(f"| {first_header} |", 1)[1].split("\n\n", 1)[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {row[0].strip("` "): row[1:] for row in cells}


def test_the_family_table_is_the_policy():
    documented = rows("Family")
    assert list(documented) == list(FAMILIES)
    for family, (train, distribute, commercial, ids) in documented.items():
        rules = FAMILIES[family]
        assert (train, distribute, commercial) == (rules.train, rules.distribute, rules.commercial)
        assert set(re.findall("`([^`]+)`", ids)) == {row.id for row in HUB_LICENSES.values() if row.family == family}


def test_the_uses_and_verdicts_are_the_policys():
    assert {use: tuple(cells[1].split(", ")) for use, cells in rows("Use").items()} == USES
    assert list(rows("Verdict")) == list(SEVERITY)


def test_every_recipe_example_is_accepted():
    examples = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
    assert len(examples) == 4
    for example in examples:
        LicenseSettings.model_validate(example["license"])
