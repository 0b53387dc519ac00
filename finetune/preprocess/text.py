"""Text to token ids in numpy: the same code feeds training and serving, so both see the same numbers.

The tokenizer file is the one that a Hugging Face fast tokenizer saves (`tokenizer.json`). Truncation and padding settings
found inside it are replaced by ours. Needs tokenizers and numpy; imports neither torch nor transformers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence, Sized
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from finetune.errors import BundleError, DataError, RecipeError, SourceError, nearest
from finetune.preprocess.stored import stored_fields

Side = Literal["right", "left"]
MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class TextPreprocess:
    """How a text becomes the model's inputs; kept in the bundle's `preprocess.json`.

    `max_length` counts tokens, special tokens included. `inputs` are the arrays that the model takes, a subset of
    `MODEL_INPUTS`. Sides are where padding is added and where a long text is cut.
    """

    max_length: int
    inputs: tuple[str, ...]
    pad_token_id: int
    pad_type_id: int = 0
    padding_side: Side = "right"
    truncation_side: Side = "right"

    def __post_init__(self) -> None:
        for name in self.inputs:
            if name not in MODEL_INPUTS:
                raise BundleError(
                    f"the text preprocessing names an unknown model input '{name}'{nearest(name, MODEL_INPUTS)}"
                )
        if "input_ids" not in self.inputs:
            raise BundleError("the text preprocessing lacks the model input 'input_ids'")
        if self.max_length < 1:
            raise BundleError(
                f"the text preprocessing asks for a max_length of {self.max_length}; it must be at least 1"
            )

    def to_json(self) -> dict[str, object]:
        """Plain values that JSON can hold; `from_json` reads them back."""
        return {**asdict(self), "inputs": list(self.inputs)}

    @classmethod
    def from_json(cls, fields: object) -> TextPreprocess:
        """The settings that `to_json` wrote; BundleError names a field that is missing, unknown or of a wrong type."""
        place = "the text section of preprocess.json"
        # Fields that have a default may be absent.
        stored = stored_fields(cls, fields, place, required=("max_length", "inputs", "pad_token_id"))
        inputs = stored["inputs"]
        if not isinstance(inputs, list) or not all(isinstance(name, str) for name in inputs):
            raise BundleError(f"{place}: 'inputs' must be a list of names")
        for key in ("max_length", "pad_token_id", "pad_type_id"):
            if type(stored.get(key, 0)) is not int:
                raise BundleError(f"{place}: '{key}' must be a whole number")
        for key in ("padding_side", "truncation_side"):
            if stored.get(key, "right") not in ("right", "left"):
                raise BundleError(f"{place}: '{key}' must be 'right' or 'left'")
        return cls(**{**stored, "inputs": tuple(inputs)})


@dataclass(frozen=True, slots=True)
class Encoded:
    """One text as tokens, not yet padded. `length_before` is the token count before truncation, special tokens included."""

    ids: list[int]
    type_ids: list[int]
    length_before: int


def open_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer of a `tokenizer.json`; SourceError if it cannot be read."""
    # A thread pool inside tokenizers warns in, and may deadlock, every process forked after its use (data workers,
    # pre-forking servers). A user who sets the variable keeps their choice.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception for a missing and for a malformed file
        raise SourceError(f"{file}: not a readable tokenizer.json ({error}); take a whole copy of the model") from error


class TextEncoder:
    """Texts to padded id arrays, token for token what AutoTokenizer gives with the same truncation and padding.

    Immutable after construction and safe to share between threads.
    """

    def __init__(self, tokenizer_file: Path, settings: TextPreprocess) -> None:
        """Read `tokenizer.json`; SourceError if it cannot be read, RecipeError if no token of a text would fit."""
        tokenizer = open_tokenizer(tokenizer_file)
        self._special = int(tokenizer.num_special_tokens_to_add(False))
        if settings.max_length <= self._special:
            raise RecipeError(
                f"data.max_length is {settings.max_length}, but the tokenizer adds {self._special} special tokens to every text; raise it"
            )
        tokenizer.no_padding()
        tokenizer.enable_truncation(settings.max_length, direction=settings.truncation_side)
        self.settings = settings
        self._tokenizer = tokenizer

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Tokens of each text, truncated to `max_length`. An empty text gives its special tokens only."""
        try:
            encodings = self._tokenizer.encode_batch(list(texts))
        except TypeError:
            refuse_what_is_no_text(texts)
            raise
        return [Encoded(e.ids, e.type_ids, self._length_before(len(e.ids), e.overflowing)) for e in encodings]

    def _length_before(self, kept: int, cut_off: Sequence[Sized]) -> int:
        """Tokens before truncation: each cut-off piece carries its own copy of the special tokens."""
        return kept + sum(len(piece) - self._special for piece in cut_off)

    def collate(self, rows: Sequence[Encoded]) -> dict[str, NDArray[np.int64]]:
        """Padded int64 arrays (B, T), T the longest row of this batch (at least 1), one per model input."""
        settings = self.settings
        shape = (len(rows), max((len(row.ids) for row in rows), default=0) or 1)
        ids = np.full(shape, settings.pad_token_id, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        types = np.full(shape, settings.pad_type_id, dtype=np.int64)
        for index, row in enumerate(rows):
            used = len(row.ids)
            columns = slice(0, used) if settings.padding_side == "right" else slice(shape[1] - used, shape[1])
            ids[index, columns] = row.ids
            mask[index, columns] = 1
            types[index, columns] = row.type_ids
        arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        return {name: arrays[name] for name in settings.inputs}

    def size_of(self, row: Encoded) -> int:
        """Tokens of a row, special tokens included."""
        return len(row.ids)

    def __call__(self, texts: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        """`collate(encode(texts))`."""
        return self.collate(self.encode(texts))


def refuse_what_is_no_text(texts: Sequence[object]) -> None:
    """Name the first item that is no string, or no valid Unicode; JSON can smuggle in half of a surrogate pair."""
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"text {index} is of type {type(text).__name__}; every text must be a string")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"text {index} holds half of a surrogate pair at character {error.start}, which is no Unicode text; mend or remove it"
            ) from error
