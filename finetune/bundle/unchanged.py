"""A language model's generation config, special tokens and chat template: fine-tuning leaves them as the backbone had them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from finetune.disk import read_json, reading, sha256
from finetune.errors import BundleError

GENERATION, CHAT_TEMPLATE, SPECIAL_TOKENS = "generation_config.json", "chat_template", "special_tokens_map"
_TOKENIZER_CONFIG, _TEMPLATE_FILE = "tokenizer_config.json", "chat_template.jinja"
_TEMPLATE_FOLDER = "additional_chat_templates"


def unchanged_files(backbone: Path, model: Path) -> dict[str, str]:
    """SHA-256 of what the backbone's folder says and the model's folder must say too; what neither has is left out.

    The generation config is compared byte by byte. The chat template and the special tokens may stand in one file or
    another, so their texts are compared. BundleError names what differs.
    """
    before, after = _facts(backbone), _facts(model)
    for name, said in before.items():
        if after.get(name) != said:
            lost = "is missing" if name not in after else "differs"
            raise BundleError(
                f"{model}: the {name} {lost} from the backbone's in {backbone}; it must travel unchanged, so copy it from there"
            )
    if added := [name for name in (CHAT_TEMPLATE, SPECIAL_TOKENS) if name in after and name not in before]:
        raise BundleError(
            f"{model}: has a {added[0]}, but the backbone in {backbone} has none; it must travel unchanged, so remove it"
        )
    return before


def _facts(folder: Path) -> dict[str, str]:
    facts: dict[str, str] = {}
    if (folder / GENERATION).is_file():
        with reading(folder / GENERATION):
            facts[GENERATION] = sha256(folder / GENERATION)
    for name, said in ((CHAT_TEMPLATE, _templates(folder)), (SPECIAL_TOKENS, _special_tokens(folder))):
        if said:
            text = said if isinstance(said, str) else json.dumps(said, sort_keys=True, ensure_ascii=False)
            facts[name] = hashlib.sha256(text.encode()).hexdigest()
    return facts


def _templates(folder: Path) -> str | dict[str, str] | None:
    """The chat template, or several by name: from their own files, else from the tokenizer's configuration."""
    said = _object(folder / _TOKENIZER_CONFIG).get("chat_template")
    if isinstance(said, list):
        said = {str(each["name"]): each["template"] for each in said if isinstance(each, Mapping)}
    named = dict(said) if isinstance(said, Mapping) else {"default": said} if isinstance(said, str) else {}
    with reading(folder):
        if (folder / _TEMPLATE_FILE).is_file():
            named["default"] = (folder / _TEMPLATE_FILE).read_bytes().decode("utf-8", "replace")
        for file in sorted((folder / _TEMPLATE_FOLDER).glob("*.jinja")):
            named[file.stem] = file.read_bytes().decode("utf-8", "replace")
    return named["default"] if list(named) == ["default"] else named or None


def _special_tokens(folder: Path) -> dict[str, object]:
    """Text of each special token by name (`bos_token`, …); those of a list in their order."""
    said = {**_object(folder / _TOKENIZER_CONFIG), **_object(folder / "special_tokens_map.json")}
    found: dict[str, object] = {}
    for name, value in said.items():
        if name.endswith("_token") and (text := _text(value)) is not None:
            found[name] = text
        elif name in ("additional_special_tokens", "extra_special_tokens") and isinstance(value, list) and value:
            found["additional_special_tokens"] = [_text(each) for each in value]
    return found


def _text(token: object) -> str | None:
    """A token is written as its text, or as an object that holds it."""
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else None


def _object(path: Path) -> Mapping[str, object]:
    content = read_json(path) if path.is_file() else {}
    return content if isinstance(content, Mapping) else {}
