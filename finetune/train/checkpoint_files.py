"""What lies in a folder of checkpoints, told without torch: which are complete, how far the last came, what it depends on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from finetune.disk import read_json
from finetune.errors import BundleError, RecipeError, TrainingError
from finetune.recipe import Recipe, training_hash

FORMAT = 1
PROGRESS, MANIFEST = "progress.json", "manifest.json"
# So many keys that changed are named, and so many characters of a value shown.
KEYS, LONGEST = 3, 40


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.name.isdigit() and (p / MANIFEST).is_file())


def how_far(folder: Path) -> str | None:
    """How far the run of a folder of checkpoints came, in words; None when it has no complete one."""
    found = complete(folder)
    if not found:
        return None
    try:
        progress: Any = read_json(found[-1] / PROGRESS)
        return f"after {progress['global_step']:,} steps, in phase {progress['phase'] + 1}"
    except (BundleError, KeyError, TypeError, ValueError):
        return "after steps that its damaged checkpoint does not tell"


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, its keys checked; TrainingError when it is no manifest any more."""
    try:
        manifest: Any = read_json(path / MANIFEST)
    except BundleError as error:
        raise damaged(path) from error
    if not isinstance(manifest, dict) or not {"format", "key", "files"} <= manifest.keys():
        raise damaged(path)
    if not isinstance(manifest["key"], dict):
        raise damaged(path)
    return manifest


def damaged(path: Path) -> TrainingError:
    """The error for a checkpoint whose files are not those that were written."""
    return TrainingError(
        f"checkpoint '{path}' was altered after it was written; remove that folder, or start anew with --overwrite "
        "instead of --resume"
    )


def require_same_recipe(folder: Path, recipe: Recipe) -> None:
    """RecipeError when the last checkpoint is one of another recipe, as far as training depends on it."""
    found = complete(folder)
    if not found:
        return
    manifest = read_manifest(found[-1])
    if manifest["format"] == FORMAT and manifest["key"].get("recipe") != training_hash(recipe):
        raise another_run(folder, "recipe", changed_keys(manifest.get("recipe"), recipe))


def another_run(folder: Path, what: str, changes: str = "") -> RecipeError:
    """The error for a checkpoint that depends on another recipe, other data and so on."""
    return RecipeError(
        f"--resume: the {what.replace('_', ' ')} changed since the checkpoint in '{folder}' was written"
        f"{changes and ': '}{changes}; restore it, or start anew with --overwrite instead of --resume"
    )


def changed_keys(written: object, now: Recipe) -> str:
    """The keys that training depends on and that differ from those of a dumped recipe, with both values, in words.

    Nothing when that recipe is not known or cannot be read any more.
    """
    try:
        before = Recipe.model_validate_json(json.dumps(written))
    except ValidationError:  # of another version
        return ""
    found = [
        f"{'.'.join(path)} was {_shown(old)} and is {_shown(new)}"
        for path, old, new in _differences(before, now)
        if training_hash(_with(now, path, old)) != training_hash(now)  # so what counts is said in one place
    ]
    more = len(found) - KEYS
    return ", ".join([*found[:KEYS], *([f"and {more} more"] if more > 0 else [])])


def _differences(
    before: BaseModel, now: BaseModel, at: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """(path, value before, value now) of every key that differs."""
    for name in type(now).model_fields:
        old, new = getattr(before, name), getattr(now, name)
        if isinstance(old, BaseModel) and type(old) is type(new):
            yield from _differences(old, new, (*at, name))
        elif old != new:
            yield (*at, name), old, new


def _with(settings: Any, path: tuple[str, ...], value: Any) -> Any:
    """A copy in which one key has another value."""
    name, *rest = path
    inner = _with(getattr(settings, name), tuple(rest), value) if rest else value
    return settings.model_copy(update={name: inner})


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) and value else json.dumps(_plain(value), ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_defaults=True)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
