"""The recipe's JSON Schema, and what can be asked of it: which keys a section has, what a value should look like.

Field descriptions are the docstrings under the fields in the modules of recipe types. Pydantic could collect them itself, but it
would read their source again for every class at import; here each file is parsed once, and only when a schema is asked for.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from finetune.recipe import data_types, learning_types, result_types, types
from finetune.recipe.strict_yaml import KeyPath

DRAFT = "https://json-schema.org/draft/2020-12/schema"
Node = Mapping[str, Any]


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a recipe file, every key described, unknown keys refused; a fresh dict each time."""
    schema = types.Recipe.model_json_schema()
    words = _descriptions()
    for name, section in ((types.Recipe.__name__, schema), *schema["$defs"].items()):
        section["description"] = inspect.getdoc(getattr(types, name))
        for key, node in section["properties"].items():
            node["description"] = words[name, key]
    return {"$schema": DRAFT, **schema}


def _descriptions() -> dict[tuple[str, str], str]:
    """(class, field) → the string literal that follows the field."""
    words = {}
    modules = (types, data_types, learning_types, result_types)
    for section in (node for module in modules for node in ast.parse(inspect.getsource(module)).body):
        if isinstance(section, ast.ClassDef):
            for field, after in zip(section.body, section.body[1:]):
                if (
                    isinstance(field, ast.AnnAssign)
                    and isinstance(field.target, ast.Name)
                    and isinstance(after, ast.Expr)
                ):
                    words[section.name, field.target.id] = inspect.cleandoc(str(ast.literal_eval(after.value)))
    return words


@cache
def _cached_schema() -> dict[str, Any]:
    return json_schema()


def alternatives(node: Node, root: Node | None = None) -> Iterator[Node]:
    """A schema node with references followed and `anyOf` opened up. `root` holds the definitions (the recipe's schema)."""
    if "$ref" in node:
        root = root or _cached_schema()
        yield root["$defs"][node["$ref"].removeprefix("#/$defs/")]
    elif "anyOf" in node:
        for option in node["anyOf"]:
            yield from alternatives(option, root)
    else:
        yield node


def node_at(path: KeyPath) -> Node | None:
    """The schema node of a key path, None if the recipe has no such key."""
    nodes: list[Node] = [_cached_schema()]
    for part in path:
        nodes = [child for node in nodes for child in _children(node, part)]
    return nodes[0] if nodes else None


def _children(node: Node, part: str | int) -> Iterator[Node]:
    for option in alternatives(node):
        if isinstance(part, int):
            if "items" in option:
                yield option["items"]
        elif part in option.get("properties", {}):
            yield option["properties"][part]
        elif isinstance(option.get("additionalProperties"), dict):
            yield option["additionalProperties"]


def keys_of(path: KeyPath) -> tuple[str, ...]:
    """The keys that the section at `path` may have, in the order of types.py; empty if it is no section."""
    node = node_at(path)
    options = alternatives(node) if node is not None else ()
    return tuple(key for option in options for key in option.get("properties", {}))


def literals(node: Node) -> tuple[str, ...]:
    """The words that a value may be, when the schema lists them."""
    options = list(alternatives(node))
    return tuple(
        word for option in options for word in (option.get("enum") or [option.get("const")]) if word is not None
    )


def kinds(node: Node) -> frozenset[str]:
    """JSON types that a value may have: string, number, integer, boolean, array, object, null."""
    return frozenset(option.get("type", "string") for option in alternatives(node))


def expected(node: Node) -> str:
    """What a value should be, in words: "a number greater than 0", "one of 'loss', 'off'"."""
    phrases = [_phrase(option) for option in alternatives(node) if option.get("type") != "null"]
    return " or ".join(phrases)


def _phrase(node: Node) -> str:
    if "enum" in node:
        return f"one of {', '.join(repr(word) for word in node['enum'])}"
    if "const" in node:
        return repr(node["const"])
    kind = node["type"]
    if kind == "array":
        return f"a list of {_PLURAL.get(node['items'].get('type', ''), 'sections')}"
    if kind == "object":
        if "properties" in node:
            first = next(iter(node.get("required") or node["properties"]))
            return f"a section with keys such as '{first}'"
        return f"a mapping of names to {_PLURAL[node['additionalProperties']['type']]}"
    return _SINGULAR[kind] + _bounds(node)


_SINGULAR = {"string": "text", "number": "a number", "integer": "a whole number", "boolean": "true or false"}
_PLURAL = {"string": "texts", "number": "numbers", "integer": "whole numbers"}


def _bounds(node: Node) -> str:
    """ " from 1 to 5", " of at least 1, below 8", " greater than 0": the limits of a number, empty if there are none."""
    low, above, high, below = (node.get(k) for k in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"))
    if low is not None and high is not None:
        return f" from {low} to {high}"
    words = []
    if low is not None:
        words.append(f"of at least {low}")
    if above is not None:
        words.append(f"greater than {above}")
    if high is not None:
        words.append(f"at most {high}")
    if below is not None:
        words.append(f"below {below}")
    return " " + " and ".join(words) if words else ""
