"""What makes two recipes the same: hashes over the resolved recipe, and the resolved recipe as YAML."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import yaml

from finetune.recipe.strict_yaml import resolve_plain
from finetune.recipe.types import Recipe, Settings

_WORDS_ONLY = {"name", "description", "output"}
_TRAINING = ("task", "seed", "backbone", "data", "head", "transfer", "train")
_NOT_TRAINING = ("device", "tensorboard", "checkpoint_every_steps", "memory", "eval_batch_size")
_YAML_1_1 = yaml.resolver.Resolver()
_PLAIN = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./@+=-]*")


def recipe_hash(recipe: Recipe) -> str:
    """sha256 over everything the recipe asks for but its name, description and output folder."""
    return _sha256(recipe.model_dump(mode="json", exclude=_WORDS_ONLY))


def training_hash(recipe: Recipe) -> str:
    """sha256 over what the trained weights depend on; a run may be resumed under a recipe with the same one."""
    whole = recipe.model_dump(mode="json")
    part = {key: whole[key] for key in _TRAINING}
    part["train"] = {key: value for key, value in whole["train"].items() if key not in _NOT_TRAINING}
    return _sha256({**part, "evaluation": {"metric": whole["evaluation"]["metric"]}})


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML that `load_recipe` reads back to an equal one; absent optional keys stay absent."""
    return yaml.dump(_written(recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def scalar_text(text: str) -> str:
    """A text as a one-line YAML scalar, in quotes only where it needs them."""
    if _PLAIN.fullmatch(text) and _is_text(text):
        return text
    quoted = yaml.dump(text, Dumper=_Dumper, default_style='"', allow_unicode=True, width=float("inf"))
    return str(quoted).rstrip("\n")


def _sha256(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _written(settings: Settings) -> dict[str, Any]:
    """Every key with its value, but for an absent one whose default is absent as well."""
    result: dict[str, Any] = {}
    for key, field in type(settings).model_fields.items():
        value = getattr(settings, key)
        if value is not None or field.default is not None:
            result[key] = _plain(value)
    return result


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return _written(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _is_text(text: str) -> bool:
    """Whether the text, unquoted, stays text under YAML 1.2; other readers may follow 1.1, so ask PyYAML's rules too."""
    tag = _YAML_1_1.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    try:
        return bool(tag == "tag:yaml.org,2002:str") and resolve_plain(text) == text
    except ValueError:
        return False


class _Dumper(yaml.SafeDumper):
    """Quotes every text that either version of YAML would read as something else; never writes aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        # Line breaks other than \n would be read back as \n unless they are written as escapes.
        plain = text.isprintable() and _is_text(text)
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_Dumper.add_representer(str, _Dumper.represent_text)
