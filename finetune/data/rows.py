"""What flows out of this package, and the plain rows that flow through it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.preprocess.conversation import Conversation
from finetune.preprocess.image_file import ImageFile

SPLITS = ("train", "validation", "test")

Input = str | Conversation | ImageFile
"""A text, a conversation, or an encoded image that was not opened yet."""
RawLabel = str | tuple[str, ...] | float
"""One label's name or value, the labels of a row (none is a label set too), or a number: by the task's target.
0.0 where texts are their own answer."""
RawWeight = float | str
"""How much a row counts, or the value of the weight column that data.weight_map has a weight for."""


@dataclass(frozen=True)
class Rows:
    """Rows as they were read: an empty text stands for a missing one; a label is always there.

    `strata` holds the row's values of data.stratify_by as one string, and `weights` those of data.weight_column, as they are
    written where data.weight_map names them; both are empty where the recipe names no column.
    `label_order` is the index order that the data itself declares (a ClassLabel), `notes` are sentences for the audit.
    """

    columns: tuple[str, ...]
    inputs: tuple[Input, ...]
    labels: tuple[RawLabel, ...]
    places: tuple[str, ...]
    strata: tuple[str, ...] = ()
    weights: tuple[RawWeight, ...] = ()
    label_order: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Split:
    """The rows of one split: inputs, their labels, and where each row came from.

    Labels are indices (int64, shape (N,)) for a single label, 0 and 1 (float32, (N, C)) for several, and values
    (float32, (N,)) for regression; a language model's rows have none, so theirs are 0. Weights are how much each row counts
    (float64, (N,), all above 0, 1 on average over the training rows), None where all count alike.
    """

    inputs: tuple[Input, ...]
    labels: NDArray[Any]
    places: tuple[str, ...]
    weights: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class LabelledData:
    """Label names in index order (none for regression and language models), three splits, the audit (JSON-ready), a fingerprint of all of it."""

    labels: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    audit: dict[str, Any]
    fingerprint: str


def fingerprint(
    names: Iterable[str],
    contents: Iterable[tuple[NDArray[Any], Sequence[str]]],
    weights: Iterable[NDArray[np.float64] | None] = (),
) -> str:
    """SHA-256 in hex over label names, contents of the inputs, labels, split membership, row order, and weights of rows.

    `contents` holds, per split, the labels and one string per row that says what its input is: the text, or the digest
    of an image's pixels. Every item is written with its length first, so that no two different data sets spell the same
    bytes. `weights` holds those of each split; where rows have none they add nothing.
    """
    digest = hashlib.sha256()

    def add(text: str) -> None:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)

    for name in names:
        add(name)
    for labels, inputs in contents:
        digest.update(b"split" + len(inputs).to_bytes(8, "little"))
        if labels.dtype.kind == "f":
            digest.update(repr(labels.shape).encode())
        digest.update(np.ascontiguousarray(labels, dtype="<f4" if labels.dtype.kind == "f" else "<i8").tobytes())
        for item in inputs:
            add(item)
    for of_split in weights:
        if of_split is not None:
            digest.update(b"weights" + np.ascontiguousarray(of_split, dtype="<f8").tobytes())
    return digest.hexdigest()
