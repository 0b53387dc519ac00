"""Write docs/recipe.md, the reference of every recipe key, from the recipe's JSON Schema.

python docs/generate_recipe_reference.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune.recipe import json_schema
from finetune.recipe.schema import alternatives, expected

TARGET = Path(__file__).with_name("recipe.md")

HEAD = """\
# Recipe reference

<!-- Written by docs/generate_recipe_reference.py from the types in finetune/recipe/; do not edit by hand. -->

A recipe is one YAML file. `finetune validate FILE` checks it, `finetune new DATA` writes one to start from, and
`finetune schema` prints this page as a JSON Schema: save it as `recipe.schema.json` and begin a recipe with
`# yaml-language-server: $schema=recipe.schema.json`, and editors complete and check it.

How a recipe is read:

- YAML 1.2 core schema: `2e-5` is a number; `yes`, `no`, `on` and `off` are text; `017` is seventeen; dates are text.
- Unknown keys, keys given twice, wrong types and impossible combinations are refused, with file, line and key path.
- Tags (`!!python/…`) and merge keys (`<<`) are refused; a file has at most 1 MiB, 20 levels and 10,000 values.
- `KEY=VALUE` on the command line changes one key for one run, as in `transfer.learning_rate=1e-4`,
  `card.tags=[news, english]` or `transfer.phases[0].epochs=2`. Values follow the rules of the file, but a text needs no quotes
  unless it starts with a quote or bracket. An empty value is null.
"""


def render() -> str:
    """The whole page as Markdown."""
    schema = json_schema()
    parts = [HEAD]
    for path, section in sections(schema, schema, ""):
        title = f"`{path}`" if path else "Top level"
        parts.append(f"\n## {title}\n\n{section['description']}\n\n{table(section, schema)}")
    return "".join(parts)


def sections(
    section: Mapping[str, Any], schema: Mapping[str, Any], path: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each section with its key path, in the order of the file."""
    yield path, section
    for key, node in section["properties"].items():
        for option in alternatives(node, schema):
            for suffix, inner in (("", option), ("[]", next(alternatives(option.get("items", {}), schema)))):
                if "properties" in inner:
                    yield from sections(inner, schema, f"{path}.{key}{suffix}".lstrip("."))


def table(section: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """Markdown table of a section's keys: key, type, default, description."""
    required = section.get("required", ())
    rows = ["| Key | Value | Default | Meaning |", "| --- | --- | --- | --- |"]
    for key, node in section["properties"].items():
        default = "required" if key in required else default_of(node, schema)
        meaning = " ".join(node["description"].replace("|", "\\|").split())  # a row of a table is one line
        rows.append(f"| `{key}` | {value_of(node, schema)} | {default} | {meaning} |")
    return "\n".join(rows) + "\n"


def value_of(node: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    options = list(alternatives(node, schema))
    if any("properties" in option for option in options):
        return "section"
    words = re.sub("'([^']*)'", r"`\1`", expected(node))
    return words + (" or null" if any(option.get("type") == "null" for option in options) else "")


def default_of(node: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    default = node.get("default")
    if isinstance(default, dict):
        return "see below"
    if default is None:
        return "absent"
    return (
        f"`{json.dumps(default, ensure_ascii=False)}`"
        if not isinstance(default, str) or not default
        else f"`{default}`"
    )


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
