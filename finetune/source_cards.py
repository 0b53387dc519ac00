"""The card of a local model or data set: the README.md whose YAML front matter tells its licence, languages and data."""

from __future__ import annotations

import re
from pathlib import Path

from finetune.errors import SourceError
from finetune.gguf_metadata import is_gguf, read_gguf
from finetune.model_files import first_line

CARD = "README.md"
_FRONT_MATTER = re.compile(r"\A\ufeff?---\s*\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)
_DEPTH = 50


def find_card(path: Path | None) -> Path | None:
    """The README.md of a folder, or beside a lone file; None when there is none.

    Beside a GGUF file, which carries its own licence, a README.md without front matter is somebody's notes and no card.
    """
    if path is None:
        return None
    card = (path if path.is_dir() else path.parent) / CARD
    if not card.is_file() or (is_gguf(path) and not _FRONT_MATTER.match(card.read_text("utf-8", errors="replace"))):
        return None
    return card


def read_card_metadata(path: Path | None) -> dict[str, object]:
    """The front matter of a source's card; empty when there is none. SourceError when it is no valid YAML.

    A GGUF file without a card has the licence and the languages in its own metadata.
    """
    card = find_card(path)
    if card is None:
        return _of_gguf(path) if path is not None and is_gguf(path) else {}
    match = _FRONT_MATTER.match(card.read_text("utf-8", errors="replace"))
    return _parsed(card, match[1]) if match else {}


def _parsed(card: Path, front_matter: str) -> dict[str, object]:
    import yaml

    # Model cards with benchmark results are long; the parser in C is tens of times faster.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        depth = 0
        for event in yaml.parse(front_matter, Loader=loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            # Aliases of aliases expand to gigabytes when printed; deep nesting overflows the loader's stack.
            if isinstance(event, yaml.AliasEvent) or depth > _DEPTH:
                raise SourceError(
                    f"{card}: its metadata block has aliases or is nested too deep; write plain values or remove it"
                )
        data = yaml.load(front_matter, Loader=loader)  # a safe loader
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-13-01
        raise SourceError(
            f"{card}: its metadata block is not valid YAML ({first_line(error)}); mend or remove it"
        ) from error
    return {str(k): v for k, v in data.items()} if isinstance(data, dict) else {}


def _of_gguf(path: Path) -> dict[str, object]:
    """What a GGUF file's metadata say in the words of a card's front matter."""
    metadata = read_gguf(path, lists=("general.languages",)).metadata
    keys = {
        "license": "license",
        "license.name": "license_name",
        "license.link": "license_link",
        "languages": "language",
    }
    return {key: metadata[f"general.{name}"] for name, key in keys.items() if f"general.{name}" in metadata}
