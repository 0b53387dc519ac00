"""Texts as the data layer sees them: reading a cell or a file, emptiness, identity, description."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.encodings import decode_file
from finetune.data.examined import Examined
from finetune.data.label_cells import as_unicode
from finetune.data.layout import DataFile
from finetune.data.near import is_empty, near_pairs, normalise
from finetune.data.rows import Input
from finetune.errors import DataError
from finetune.recipe.types import DataSettings


def as_text(value: object, place: str, key: str = "text_column") -> str:
    """A row's text, empty for null; DataError for anything that is not a valid Unicode string."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{place}: the text is of type {type(value).__name__}, not a string; check data.{key}")
    return as_unicode(value, place, "text")


def text_cell(cells: Sequence[object], place: str, root: Path | None) -> tuple[Input, str]:
    """The text of a row of a table, and the row's place."""
    (value,) = cells
    return as_text(value, place), place


def text_file(file: DataFile, encoding: str, fallback: list[str]) -> Input:
    """The text of one document, with \\n as its line end."""
    return decode_file(file, encoding, fallback).replace("\r\n", "\n").replace("\r", "\n")


def text_is_empty(text: Input) -> bool:
    """Whether a text holds nothing visible."""
    return is_empty(str(text))


def examine_texts(texts: Sequence[Input], settings: DataSettings) -> Examined:
    """Two texts are identical if their normalised forms are."""
    return Examined(tuple(normalise(str(text)) for text in texts))


def near_texts(identities: Sequence[str], examined: Examined, settings: DataSettings) -> list[tuple[int, int, float]]:
    """Pairs of distinct normalised texts with many word 8-grams in common."""
    return near_pairs(identities, settings.audit.near_duplicate_similarity)


def describe_texts(texts: Sequence[Input], identities: Sequence[str], examined: Examined) -> dict[str, Any]:
    """Lengths in characters."""
    lengths = np.array([len(str(text)) for text in texts])
    p50, p95 = (int(value) for value in np.percentile(lengths, (50, 95)))
    return {"characters": {"p50": p50, "p95": p95, "max": int(lengths.max())}}
