"""Recipe file and overrides in, a validated Recipe out; every error names the file and line, or the override."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finetune.errors import RecipeError
from finetune.recipe.problems import Problem, problems
from finetune.recipe.strict_yaml import (
    MAX_DEPTH,
    KeyPath,
    check_text,
    dotted,
    found,
    parse_value,
    read_document,
    resolve_plain,
    shorten,
)
from finetune.recipe.types import Recipe

# What a recipe says about a source holds for that source only: an override of the key on the left takes these away, so
# that the licence asserted for one model, say, never covers another.
BOUND_TO_SOURCE: dict[KeyPath, tuple[KeyPath, ...]] = {
    ("backbone", "name"): (
        ("backbone", "revision"),
        ("backbone", "architecture"),
        ("backbone", "rename"),
        ("backbone", "allow_pickle"),
        ("license", "backbone"),
        ("card", "base_model"),
    ),
    ("data", "source"): (("data", "config"), ("license", "data"), ("card", "dataset_name")),
}

_NAMED = 4
"""Keys with further problems that an error names."""

_SEGMENT = re.compile(r"(?P<key>[^\[\]]+)(?P<indices>(\[[0-9]{1,6}\])*)")


@dataclass(frozen=True, order=True)
class _Place:
    """Where a value was written; places sort in the order of the file, overrides after it."""

    override: int
    line: int
    words: str


@dataclass(frozen=True)
class _Override:
    words: str
    path: KeyPath
    value: Any


def load_recipe(path: str | Path, overrides: Sequence[str] | Mapping[str, object] = ()) -> Recipe:
    """Read a recipe file, apply overrides, and validate the whole.

    Overrides are `train.batch_size=16` strings, or a mapping of dotted keys to values; they are applied in order before
    validation. Overriding `backbone.name` or `data.source` with another one drops what the file says about the one that
    it replaces: revision, licence assertion, names for the card. Relative paths inside a recipe are left as written. RecipeError
    tells the first problem in file order, and names the keys of the others.
    """
    document = read_document(Path(path))
    data = document.data
    places = {key: _Place(0, line, f"{path}:{line}") for key, line in document.lines.items()}
    read = _read_overrides(overrides)
    _drop_stale(read, data)
    for number, override in enumerate(read, start=1):
        _apply(override, data, places, _Place(number, 0, override.words))
    try:
        # JSON mode: strict about types, yet a YAML list may become a tuple.
        return Recipe.model_validate_json(json.dumps(data, allow_nan=False))
    except ValidationError as error:
        raise RecipeError(_first(problems(error.errors(include_url=False), data), places)) from error


def _drop_stale(overrides: Sequence[_Override], data: dict[str, Any]) -> None:
    """Remove what the file says about a source that an override replaces."""
    for override in overrides:
        section, key = override.path[0], override.path[-1]
        before = data.get(str(section))
        if (
            override.path not in BOUND_TO_SOURCE
            or not isinstance(before, dict)
            or before.get(str(key)) == override.value
        ):
            continue
        for owner, name in BOUND_TO_SOURCE[override.path]:
            bound = data.get(str(owner))
            if isinstance(bound, dict):
                bound.pop(str(name), None)


def parse_overrides(overrides: Sequence[str] | Mapping[str, object]) -> dict[str, object]:
    """`["a.b=2e-5"]` → `{"a.b": 2e-05}`; keys and values are checked for form, not yet against the recipe's keys.

    A value follows the recipe's own scalar rules, and may be a list or mapping in flow style (`[a, b]`, `{a: 1}`) or
    quoted; anything else is taken whole, so `description=first: a #1 try` needs no quotes. An empty value is null.
    """
    return {dotted(override.path): override.value for override in _read_overrides(overrides)}


def _read_overrides(overrides: Sequence[str] | Mapping[str, object]) -> list[_Override]:
    if isinstance(overrides, Mapping):
        return [_from_value(key, value) for key, value in overrides.items()]
    return [_from_text(text) for text in ([overrides] if isinstance(overrides, str) else overrides)]


def _from_text(text: str) -> _Override:
    words = f"override '{shorten(text, 80)}'"
    key, equals, value = text.partition("=")
    if not equals:
        raise RecipeError(f"{words}: no value; write key=value, such as train.batch_size=16")
    path = _key_path(key.strip(), words)
    value = value.strip()
    if value[:1] in ("[", "{", "'", '"') and value:
        return _Override(words, path, parse_value(value, lambda line: words)[0])
    try:
        return _Override(words, path, resolve_plain(value))
    except ValueError as error:
        raise RecipeError(f"{words}: {shorten(dotted(path), 160)}: {error}; write another value") from error


def _from_value(key: str, value: object) -> _Override:
    words = f"override '{shorten(f'{key}={value!r}', 80)}'"
    path = _key_path(key, words)
    try:
        return _Override(words, path, _plain(value))
    except ValueError as error:
        raise RecipeError(f"{words}: {shorten(dotted(path), 160)}: {error}; write another value") from error


def _key_path(key: str, words: str) -> KeyPath:
    parts: list[str | int] = []
    for segment in key.split("."):
        match = _SEGMENT.fullmatch(segment)
        if not match:
            raise RecipeError(f"{words}: '{shorten(key)}' is not a key path; write it like transfer.phases[0].epochs")
        parts += [match["key"], *(int(index) for index in re.findall("[0-9]+", match["indices"]))]
    if len(parts) > MAX_DEPTH:
        raise RecipeError(f"{words}: nested deeper than {MAX_DEPTH} levels; a recipe needs five at most")
    return tuple(parts)


def _plain(value: object, depth: int = 0) -> Any:
    """A Python value as JSON would hold it; ValueError for what JSON cannot hold."""
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, Path):
        value = str(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return check_text(str(value))
    if isinstance(value, int):
        return resolve_plain(str(int(value)))
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is not a finite number")
        return float(value)
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {check_text(key): _plain(item, depth + 1) for key, item in value.items()}
    raise ValueError(f"a {type(value).__name__} cannot stand in a recipe")


def _apply(override: _Override, data: dict[str, Any], places: dict[KeyPath, _Place], place: _Place) -> None:
    """Set one value in the raw data, making the sections on the way, and note where it came from."""
    section: Any = data
    for depth, part in enumerate(override.path):
        here, last = override.path[: depth + 1], depth == len(override.path) - 1
        _check_step(section, part, here, override.words)
        if last:
            section[part] = override.value
            for old in [key for key in places if key[: len(here)] == here]:
                del places[old]
            places[here] = place
        else:
            if isinstance(part, str) and section.get(part) is None:
                section[part] = {}
                places[here] = place
            section = section[part]


def _check_step(section: Any, part: str | int, here: KeyPath, words: str) -> None:
    parent = shorten(dotted(here[:-1]), 160)
    if isinstance(part, int):
        if not isinstance(section, list):
            raise RecipeError(f"{words}: {parent}: expected a list, found {found(section)}; set '{parent}' as a whole")
        if part >= len(section):
            raise RecipeError(
                f"{words}: {parent}: the list has {len(section)} items, counted from [0]; set it as a whole"
            )
    elif not isinstance(section, dict):
        raise RecipeError(f"{words}: {parent}: expected a section, found {found(section)}; set '{parent}' as a whole")


def _first(found_problems: list[Problem], places: Mapping[KeyPath, _Place]) -> str:
    located = sorted((_place_of(problem, places), i) for i, problem in enumerate(found_problems))
    place, index = located[0]
    problem = found_problems[index]
    words = ": ".join(filter(None, (place.words, shorten(dotted(problem.path), 160), shorten(problem.what, 1000))))
    others = [
        f"{shorten(dotted(found_problems[at].path), 60)} ({other.words if other.override else f'line {other.line}'})"
        for other, at in located[1:]
    ]
    if not others:
        return words
    left = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
    return f"{words}; also wrong: {', '.join(others[:_NAMED])}{left}"


def _place_of(problem: Problem, places: Mapping[KeyPath, _Place]) -> _Place:
    """The place of the key, or of the nearest section above it that was written down."""
    if problem.whole_section:  # two keys that do not fit together: the one that was overridden is to blame
        below = [place for key, place in places.items() if place.override and key[: len(problem.path)] == problem.path]
        if below:
            return max(below)
    return next(places[problem.path[:n]] for n in range(len(problem.path), -1, -1) if problem.path[:n] in places)
