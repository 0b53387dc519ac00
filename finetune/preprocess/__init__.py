"""What turns an input into a network's numbers: the same code trains and serves. Imports neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from finetune.preprocess.image import ImageEncoder, ImageFile, ImageInput, ImagePreprocess, open_image
from finetune.preprocess.language import IGNORED, Conversation, LanguageEncoder, LanguageInput, LanguagePreprocess
from finetune.preprocess.text import MODEL_INPUTS, Encoded, TextEncoder, TextPreprocess

__all__ = [
    "IGNORED",
    "MODEL_INPUTS",
    "Conversation",
    "Encoded",
    "Encoder",
    "ImageEncoder",
    "ImageFile",
    "ImageInput",
    "ImagePreprocess",
    "LanguageEncoder",
    "LanguageInput",
    "LanguagePreprocess",
    "TextEncoder",
    "TextPreprocess",
    "open_image",
]


class Encoder(Protocol):
    """Inputs of one modality into the arrays that a network takes; safe to share between threads."""

    @property
    def settings(self) -> Any:
        """The frozen settings that `preprocess.json` keeps."""

    def encode(self, items: Sequence[Any], /) -> Sequence[Any]:
        """One row per input: token ids of a text or a conversation; an image as it is, to be decoded when it is needed."""

    def collate(self, rows: Sequence[Any], /) -> Mapping[str, NDArray[Any]]:
        """Arrays with the batch first, one per input of the network."""

    def size_of(self, row: Any, /) -> int:
        """What a row costs: the tokens of a text; 1 for an image, as all have the same size."""
