"""`preprocess.json` and `labels.json`: how an input becomes the network's arrays, and how its numbers become an answer."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.bundle.contents import FORMAT, LABELS, PREPROCESS, TOKENIZER, check_format
from finetune.disk import read_json, write_json
from finetune.errors import BundleError, nearest
from finetune.preprocess import (
    Encoder,
    ImageEncoder,
    ImagePreprocess,
    LanguageEncoder,
    LanguagePreprocess,
    TextEncoder,
    TextPreprocess,
)

Settings = TextPreprocess | ImagePreprocess | LanguagePreprocess
"""How an input is prepared: one kind for each modality."""


@dataclass(frozen=True)
class Modality:
    """What a bundle keeps for one kind of input; its name is the key of the settings in `preprocess.json`."""

    settings: type[TextPreprocess] | type[ImagePreprocess] | type[LanguagePreprocess]
    files: tuple[str, ...]
    """What the encoder reads beside `preprocess.json`."""
    encoder: Callable[[Path, Any], Encoder]
    """The encoder of a bundle's folder and its settings."""


MODALITIES = {
    "text": Modality(TextPreprocess, (TOKENIZER,), lambda folder, settings: TextEncoder(folder / TOKENIZER, settings)),
    "image": Modality(ImagePreprocess, (), lambda _, settings: ImageEncoder(settings)),
    "language": Modality(
        LanguagePreprocess, (TOKENIZER,), lambda folder, settings: LanguageEncoder(folder / TOKENIZER, settings)
    ),
}

# Fewest and most label names of each target; a regression head has none and one output, a next token is no label.
LABEL_COUNTS: dict[str, tuple[int, float]] = {
    "single_label": (2, math.inf),
    "multi_label": (1, math.inf),
    "regression": (0, 0),
    "next_token": (0, 0),
}


@dataclass(frozen=True)
class Preprocessing:
    """The content of `preprocess.json`."""

    task: str
    target: str
    """A key of `LABEL_COUNTS`."""
    modality: str
    """A key of `MODALITIES`."""
    settings: Settings
    temperature: float
    interval: float | None


def write_preprocessing(
    folder: Path,
    *,
    task: str,
    target: str,
    preprocess: Settings,
    temperature: float = 1.0,
    interval: float | None = None,
) -> None:
    """`preprocess.json` of one task: its target, how an input is prepared, and what calibration found.

    Logits are divided by `temperature` (1 for none); `interval` is the half-width around a regression's value, in the
    label's unit, None for none.
    """
    section = next(name for name, modality in MODALITIES.items() if isinstance(preprocess, modality.settings))
    document = {
        "format": FORMAT, "task": task, "target": target, section: preprocess.to_json(),
        "temperature": temperature, "interval": interval,
    }  # fmt: skip
    write_json(folder / PREPROCESS, document)


def read_preprocessing(folder: Path) -> Preprocessing:
    """`preprocess.json` of a bundle; BundleError names what cannot be right in it.

    Bundles of before there was a choice name no target: theirs is one label of several.
    """
    path = folder / PREPROCESS
    document = check_format(path, read_json(path))
    task, target = document.get("task"), document.get("target", "single_label")
    if not isinstance(task, str):
        raise BundleError(f"{path}: names no task; take a whole copy of the bundle")
    if not isinstance(target, str) or target not in LABEL_COUNTS:
        raise BundleError(
            f"{path}: the target {target!r} is not known{nearest(str(target), LABEL_COUNTS)}; update finetune"
        )
    sections = [name for name in MODALITIES if name in document]
    if len(sections) != 1:
        raise BundleError(
            f"{path}: must have one section of {', '.join(MODALITIES)}, but has {len(sections)}; update finetune"
        )
    (modality,) = sections
    if (modality == "language") != (target == "next_token"):
        raise BundleError(
            f"{path}: a bundle that reads {modality} cannot answer with {target}; take a whole copy of it"
        )
    temperature, interval = _number(document.get("temperature")), _number(document.get("interval"))
    if not temperature:
        raise BundleError(f"{path}: the temperature must be a number above zero; take a whole copy of the bundle")
    if interval is None and document.get("interval") is not None:
        raise BundleError(f"{path}: the interval must be null or a number of at least zero; take a whole copy of it")
    settings = MODALITIES[modality].settings.from_json(document[modality])
    return Preprocessing(task, target, modality, settings, temperature, interval)


def read_labels(folder: Path, target: str) -> tuple[str, ...]:
    """Label names in the order of the logits, as many as the target wants; BundleError otherwise."""
    path = folder / LABELS
    labels = read_json(path)
    fewest, most = LABEL_COUNTS[target]
    if (
        not isinstance(labels, list)
        or not all(isinstance(label, str) for label in labels)
        or len(set(labels)) != len(labels)
        or not fewest <= len(labels) <= most
    ):
        wanted = f"a list of at least {fewest} names, all different," if most else "an empty list"
        raise BundleError(f"{path}: must be {wanted} for the target {target}; take a whole copy of the bundle")
    return tuple(labels)


def _number(value: object) -> float | None:
    """A JSON value as a number, if it is a finite one of at least zero."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= sys.float_info.max:
        return None
    return float(value)
