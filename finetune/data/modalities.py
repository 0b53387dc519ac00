"""What goes into a model, seen from the data: one plain entry per modality of a task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.data import images, language, texts
from finetune.data.examined import Examined
from finetune.data.language import ReadCell
from finetune.data.layout import DOCUMENT_FILES, TEXT_FILES, ClassFiles, DataFile
from finetune.data.near import normalise
from finetune.data.near_images import CORRELATION
from finetune.data.rows import Input
from finetune.recipe.types import DataSettings


@dataclass(frozen=True)
class Modality:
    """How the inputs of one modality are read, told apart, and described."""

    noun: str
    """What a message calls one input."""
    columns: Callable[[DataSettings], tuple[tuple[str, str], ...]]
    """The columns that make up an input, each with the field of the recipe that names it."""
    class_files: ClassFiles
    """The files that are rows of a folder."""
    opens_class_files: bool
    """Whether reading such a file opens it, so that large folders are not read through before training."""
    cell: Callable[[DataSettings], ReadCell]
    """What makes an input of a table's cells, their place, and the folder that relative paths start from; it returns the place
    to name as well."""
    file: Callable[[DataFile, str, list[str]], Input]
    """An input from a folder's file, in one of the encodings; files that needed a later one join the list."""
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
        columns=lambda settings: (("text_column", settings.text_column),),
        class_files=TEXT_FILES,
        opens_class_files=True,
        cell=lambda settings: texts.text_cell,
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
    "language": Modality(
        noun="text",
        columns=language.input_columns,
        class_files=DOCUMENT_FILES,
        opens_class_files=True,
        cell=language.cell_reader,
        file=texts.text_file,
        root=lambda settings: None,
        is_empty=language.is_empty_input,
        sampled_as=lambda item, place: normalise(str(item)),
        examine=language.examine_language,
        near=language.near_language,
        threshold=lambda settings: settings.audit.near_duplicate_similarity,
        content=lambda item, identity: language.content_of(item),
        describe=texts.describe_texts,
        glance=lambda inputs, settings: [],
    ),
    "image": Modality(
        noun="image",
        columns=lambda settings: (("image_column", settings.image_column),),
        class_files=images.IMAGE_FILES,
        opens_class_files=False,
        cell=lambda settings: images.image_cell,
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
