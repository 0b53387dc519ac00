"""The sections of `preprocess.json` as settings: what is said of one with a field too many or too few, whatever the modality."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields as fields_of
from typing import Any

from finetune.errors import BundleError


def stored_fields(
    settings: type[Any], stored: object, place: str, *, required: Collection[str] | None = None
) -> Mapping[str, Any]:
    """What a section holds for the dataclass `settings`; BundleError names a field that is unknown or missing.

    `place` is the section in words. `required` are all fields when None: a section is written in full, so that a later
    default changes no old bundle.
    """
    if not isinstance(stored, Mapping):
        raise BundleError(f"{place} is not an object; take a whole copy of the bundle")
    known = [field.name for field in fields_of(settings)]
    if unknown := [str(key) for key in stored if key not in known]:
        raise BundleError(
            f"{place} has an unknown field '{unknown[0]}'; open the bundle with a newer version of finetune"
        )
    for key in known if required is None else required:
        if key not in stored:
            raise BundleError(f"{place} lacks '{key}'; take a whole copy of the bundle")
    return stored


def tuples(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The same fields with tuples in place of JSON's lists, as frozen settings hold them."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()}
