"""What flows out of this package, and the plain rows that flow through it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Rows:
    """Rows as they were read: an empty text stands for a missing one; a label is always there, as its name.

    `label_order` is the index order that the data itself declares (a ClassLabel), `notes` are sentences for the audit.
    """

    columns: tuple[str, ...]
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    places: tuple[str, ...]
    label_order: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Split:
    """The rows of one split: texts, label indices (int64, shape (N,)) and where each row came from."""

    texts: tuple[str, ...]
    labels: NDArray[np.int64]
    places: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class TextData:
    """Label names in index order, three splits, the audit (JSON-ready) and a fingerprint of all of it."""

    labels: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    audit: dict[str, Any]
    fingerprint: str


def fingerprint(labels: Iterable[str], splits: Iterable[Split]) -> str:
    """SHA-256 in hex over label names, texts, label indices, split membership and row order.

    Every item is written with its length first, so that no two different data sets spell the same bytes.
    """
    digest = hashlib.sha256()

    def add(text: str) -> None:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)

    for name in labels:
        add(name)
    for split in splits:
        digest.update(b"split" + len(split).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(split.labels, dtype="<i8").tobytes())
        for text in split.texts:
            add(text)
    return digest.hexdigest()
