"""Pydantic's errors in plain sentences: what is wrong, what was expected, how to mend it."""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import ErrorDetails

from finetune.errors import nearest
from finetune.recipe import schema
from finetune.recipe.strict_yaml import KeyPath, found, resolve_plain, shorten

_PATTERNS = {
    r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$": "use at most 80 letters, digits, '.', '_' and '-', the first a letter or digit",
}
_BOUNDS = {
    "greater_than": ("gt", "must be greater than"),
    "greater_than_equal": ("ge", "must be at least"),
    "less_than": ("lt", "must be below"),
    "less_than_equal": ("le", "must be at most"),
}
_MISMATCHES = ("literal_error", "int_from_float", "none_required")
_YES_NO = {**dict.fromkeys(("yes", "on", "y"), "true"), **dict.fromkeys(("no", "off", "n"), "false")}
_MENTIONS_KEY = re.compile(r"(?P<key>[a-z0-9_]+(\.[a-z0-9_]+)+): (?P<what>.+)", re.DOTALL)


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the recipe at a key path; `whole_section` if no single key is to blame."""

    path: KeyPath
    what: str
    whole_section: bool = False


def problems(errors: Sequence[ErrorDetails], data: Any) -> list[Problem]:
    """One problem per key path, from the errors of validating `data` as a Recipe.

    A union reports an error for each of its members, one of them perhaps deeper inside: those are told as one. A missing
    key is left out when a misspelt one beside it is plainly meant for it.
    """
    groups: dict[KeyPath, list[ErrorDetails]] = {}
    for error in errors:
        groups.setdefault(_key_path(error, data), []).append(error)
    inner = {path[:n] for path in groups for n in range(len(path))}
    misspelt: dict[KeyPath, list[str]] = defaultdict(list)
    for path, group in groups.items():
        if group[0]["type"] == "extra_forbidden":
            misspelt[path[:-1]].append(str(path[-1]))
    return [
        _problem(path, group, _value_at(path, data))
        for path, group in groups.items()
        if path not in inner and not (group[0]["type"] == "missing" and _meant(str(path[-1]), misspelt[path[:-1]]))
    ]


def _meant(key: str, misspelt: Iterable[str]) -> bool:
    return bool(difflib.get_close_matches(key, misspelt, n=1, cutoff=0.6))


def _key_path(error: ErrorDetails, data: Any) -> KeyPath:
    """The error's location without the names of union members that pydantic puts between the keys."""
    path: list[str | int] = []
    value = data
    for part in error["loc"]:
        in_section = isinstance(value, dict) and part in value
        in_list = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if in_section or in_list:
            value = value[part]
        elif not (error["type"] == "missing" and part == error["loc"][-1]):
            continue
        path.append(part)
    while schema.node_at(tuple(path)) is None and error["type"] != "extra_forbidden":
        path.pop()  # a key of the user's own that is spelt like a union member
    return tuple(path)


def _value_at(path: KeyPath, data: Any) -> Any:
    for part in path:
        data = data.get(part) if isinstance(data, dict) else data[part]
    return data


def _problem(path: KeyPath, group: Sequence[ErrorDetails], value: Any) -> Problem:
    kind = group[0]["type"]
    node = schema.node_at(path) or {}
    if kind == "extra_forbidden":
        return Problem(path, f"unknown key{nearest(str(path[-1]), schema.keys_of(path[:-1]))}")
    if kind == "missing":
        return Problem(path, f"required, but missing; add it ({schema.expected(node)})")
    if kind == "value_error":
        return _from_validator(path, str(group[0].get("ctx", {})["error"]))
    for error in group:
        limit = _limit(error, value)
        if limit:
            return Problem(path, limit)
    if not all(error["type"].endswith("_type") or error["type"] in _MISMATCHES for error in group):
        return Problem(path, _unforeseen(group[0]))
    return Problem(path, f"expected {schema.expected(node)}, found {found(value)}{_fix(value, node)}")


def _unforeseen(error: ErrorDetails) -> str:
    """Pydantic's own words, for an error that the recipe's types could not cause when this was written."""
    return error["msg"][:1].lower() + error["msg"][1:]


def _from_validator(path: KeyPath, message: str) -> Problem:
    """A validator's own words; those of a section may begin with the key, as in 'train.weight_decay: …'."""
    mention = _MENTIONS_KEY.fullmatch(message)
    if mention:
        inside = tuple(mention["key"].split("."))
        if schema.node_at(inside) is not None:
            return Problem(inside, mention["what"])
    return Problem(path, message, whole_section=bool(schema.keys_of(path)))


def _limit(error: ErrorDetails, value: Any) -> str | None:
    """The sentence for a value of the right type outside its limits; None for any other error."""
    kind, limits = error["type"], error.get("ctx", {})
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        return f"{words} {limits[key]:g}, found {shorten(str(value))}"
    if kind == "string_too_short":
        least = limits["min_length"]
        return "must not be empty" if least == 1 else f"needs at least {least} characters, found {len(value)}"
    if kind == "too_short":
        if limits["min_length"] > 1:
            return f"needs at least {limits['min_length']} items, found {limits['actual_length']}"
        return "must not be an empty list; add an item or remove the key"
    if kind == "too_long":
        return f"takes at most {limits['max_length']} items, found {limits['actual_length']}"
    if kind == "string_pattern_mismatch":
        rule = _PATTERNS.get(limits["pattern"], f"it must match {limits['pattern']}")
        return f"{found(value)} does not fit; {rule}"
    return None


def _fix(value: Any, node: Mapping[str, Any]) -> str:
    """What to write instead, when that can be guessed from the value; starts with '; ' or is empty."""
    kinds = schema.kinds(node)
    words = schema.literals(node)
    if value is None:
        return "; give a value or remove the key"
    if isinstance(value, str):
        close = difflib.get_close_matches(value, words, n=1, cutoff=0.6)
        if close:
            return f"; did you mean '{close[0]}'?"
        if "boolean" in kinds and value.lower() in _YES_NO:
            return f"; write {_YES_NO[value.lower()]}"
        if "array" in kinds:
            return f"; write [{shorten(value)}]"
        return "; remove the quotes" if _is_quoted(value, kinds) else ""
    if isinstance(value, bool | int | float) and "string" in kinds and not words:
        return "; put it in quotes"
    return ""


def _is_quoted(value: str, kinds: frozenset[str]) -> bool:
    try:
        meant = resolve_plain(value)
    except ValueError:
        return False
    if isinstance(meant, bool):
        return "boolean" in kinds
    return isinstance(meant, int | float) and ("number" in kinds or ("integer" in kinds and isinstance(meant, int)))
