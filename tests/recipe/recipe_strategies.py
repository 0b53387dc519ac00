"""Hypothesis strategies that follow the recipe's own JSON Schema, so that a new field is covered as soon as it exists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from finetune.recipe import json_schema

SCHEMA = json_schema()
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
AWKWARD_TEXTS = st.sampled_from(
    [
        "yes",
        "no",
        "off",
        "null",
        "~",
        "1e-4",
        "017",
        "1_000",
        "2024-01-31",
        "1:30",
        "<<",
        "=",
        " a ",
        "a: b",
        "#",
        "- x",
        "é🙂",
        "a\nb",
        "\x85",
        "\u2028",
        "\t",
        "\r\n",
        "\ufeff",
        "\x7f",
    ]
)
ANY_TEXT = TEXTS | AWKWARD_TEXTS


def values(node: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """Values that fit a schema node; what the validators ask beyond the schema is left to the caller."""
    if "$ref" in node:
        return sections(SCHEMA["$defs"][node["$ref"].removeprefix("#/$defs/")])
    if "anyOf" in node:
        return st.one_of([values(option) for option in node["anyOf"]])
    if "enum" in node:
        return st.sampled_from(node["enum"])
    if "const" in node:
        return st.just(node["const"])
    if "pattern" in node:
        return st.from_regex(node["pattern"].replace("$", r"\Z"), alphabet=st.characters(codec="ascii"))
    match node["type"]:
        case "null":
            return st.none()
        case "boolean":
            return st.booleans()
        case "string":
            least = node.get("minLength", 0)
            return ANY_TEXT.map(lambda text: text + "x" * max(0, least - len(text)))
        case "integer":
            return st.integers(
                node.get("minimum", -5), node.get("maximum", node.get("exclusiveMaximum", 10**6 + 1) - 1)
            )
        case "number":
            return numbers(node)
        case "array":
            return st.lists(values(node["items"]), min_size=node.get("minItems", 0), max_size=3)
        case "object" if "properties" in node:
            return sections(node)
        case "object":
            return st.dictionaries(ANY_TEXT, values(node["additionalProperties"]), max_size=3)
    raise AssertionError(f"the schema has a type that no strategy knows: {node}")


def numbers(node: Mapping[str, Any]) -> st.SearchStrategy[float]:
    low = node.get("minimum", node.get("exclusiveMinimum", -10))
    high = node.get("maximum", node.get("exclusiveMaximum", 10))
    return st.floats(
        low, high, exclude_min="exclusiveMinimum" in node, exclude_max="exclusiveMaximum" in node, allow_nan=False
    )


def sections(node: Mapping[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    special = {"metric": st.just("f1_macro"), "metrics": st.just(["accuracy", "evaluate:a/b"])}
    fields = {key: special[key] if key in special else values(child) for key, child in node["properties"].items()}
    required = set(node.get("required", ()))
    return st.fixed_dictionaries(
        {key: fields[key] for key in required},
        optional={key: fields[key] for key in fields if key not in required},
    )


def recipe_data() -> st.SearchStrategy[dict[str, Any]]:
    """Raw recipes that fit the schema, most of which the validators accept too."""
    return sections(SCHEMA)
