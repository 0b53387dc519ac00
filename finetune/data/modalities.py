"""What goes into a model, seen from the data: one plain entry per modality of a task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.data import images, texts
from finetune.data.examined import Examined
from finetune.data.layout import TEXT_FILES, ClassFiles, DataFile
from finetune.data.near import normalise
from finetune.data.near_images import CORRELATION
from finetune.data.rows import Input
from finetune.recipe.types import DataSettings


@dataclass(frozen=True)
class Modality:
    """How the inputs of one modality are read, told apart, and described."""

    noun: str
    """What a message calls one input."""
    column_key: str
    """The field of the recipe that names the input's column."""
    column: Callable[[DataSettings], str]
    class_files: ClassFiles
    """The files that are rows where a folder is a class."""
    opens_class_files: bool
    """Whether reading such a file opens it, so that large folders are not read through before training."""
    cell: Callable[[object, str, Path | None], tuple[Input, str]]
    """An input from a table's cell, its place, and the folder that relative paths start from; with the place to name."""
    file: Callable[[DataFile, str, list[str]], Input]
    """An input from a class folder's file, in one of the encodings; files that needed a later one join the list."""
    root: Callable[[DataSettings], Path | None]
    """The folder that relative paths start from, None for the table's own."""
    is_empty: Callable[[Input], bool]
    """Whether an input holds nothing, so that its row is dropped."""
    sampled_as: Callable[[Input, str], str]
    """What an input and its place are ordered by when data.limit takes a sample; cheap, nothing is decoded."""
    examine: Callable[[Sequence[Input], DataSettings], Examined]
    """Read every input, and say which are the same."""
    near: Callable[[Sequence[str], Examined, DataSettings], list[tuple[int, int, float]]]
    """Pairs i < j of distinct identities that are near duplicates, with their similarity."""
    threshold: Callable[[DataSettings], float]
    """The similarity from which two inputs are near duplicates."""
    content: Callable[[Input, str], str]
    """What of an input and its identity enters the fingerprint."""
    describe: Callable[[Sequence[Input], Sequence[str], Examined], dict[str, Any]]
    """The audit's facts about the inputs that are used."""
    glance: Callable[[Sequence[Input], DataSettings], list[str]]
    """What can be said of the inputs at once, without examining all of them."""


MODALITIES: dict[str, Modality] = {
    "text": Modality(
        noun="text",
        column_key="text_column",
        column=lambda settings: settings.text_column,
        class_files=TEXT_FILES,
        opens_class_files=True,
        cell=texts.text_cell,
        file=texts.text_file,
        root=lambda settings: None,
        is_empty=texts.text_is_empty,
        sampled_as=lambda text, place: normalise(str(text)),
        examine=texts.examine_texts,
        near=texts.near_texts,
        threshold=lambda settings: settings.audit.near_duplicate_similarity,
        content=lambda text, identity: str(text),
        describe=texts.describe_texts,
        glance=lambda inputs, settings: [],
    ),
    "image": Modality(
        noun="image",
        column_key="image_column",
        column=lambda settings: settings.image_column,
        class_files=images.IMAGE_FILES,
        opens_class_files=False,
        cell=images.image_cell,
        file=images.image_file,
        root=images.image_root,
        is_empty=images.image_is_empty,
        sampled_as=lambda image, place: place,
        examine=images.examine_images,
        near=images.near_images,
        threshold=lambda settings: CORRELATION,
        content=lambda image, identity: identity,
        describe=images.describe_images,
        glance=images.glance_at_images,
    ),
}
