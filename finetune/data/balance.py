"""How labels are spread over all rows and over splits, and what there is to say about it: per target of a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.data.rows import SPLITS

Described = dict[str, Any]

IMBALANCE = 10.0  # from this ratio on, accuracy says little about the small labels
FEW_ROWS = 10


def describe_labels(labels: NDArray[Any], names: Sequence[str]) -> Described:
    """Rows per label, from label indices (N,)."""
    counts = np.bincount(labels, minlength=len(names)) if len(labels) else np.zeros(len(names), int)
    return {"labels": {name: int(count) for name, count in zip(names, counts, strict=True)}}


def describe_label_sets(labels: NDArray[Any], names: Sequence[str]) -> Described:
    """Rows per label, rows without any, and labels per row, from 0 and 1 (N, C)."""
    counts = {name: int(count) for name, count in zip(names, labels.sum(axis=0), strict=True)}
    per_row = labels.sum(axis=1)
    mean = round(float(per_row.mean()), 4) if len(labels) else 0.0
    return {"labels": counts, "without_label": int((per_row == 0).sum()), "labels_per_row": mean}


def describe_values(labels: NDArray[Any], names: Sequence[str]) -> Described:
    """Spread of a regression's values (N,); `std` is the population's."""
    if not len(labels):
        return {"labels": {}, "values": None}
    values = labels.astype(np.float64)
    spread = {"min": values.min(), "median": np.median(values), "max": values.max()}
    spread |= {"mean": values.mean(), "std": values.std()}
    return {"labels": {}, "values": {key: float(f"{value:.6g}") for key, value in spread.items()}}


def imbalance(described: Mapping[str, Any]) -> float | None:
    """Rows of the most frequent label over those of the rarest; None where there are no labels."""
    counts = [count for count in described["labels"].values() if count]
    return round(max(counts) / min(counts), 4) if counts else None


def label_warnings(described: Mapping[str, Any]) -> list[str]:
    """Sentences about imbalance, and about labels that a split has too few rows of to be measured."""
    warnings = []
    if (described["imbalance"] or 0) >= IMBALANCE:
        ratio = f"{described['imbalance']:.0f}"
        warnings.append(
            f"the most frequent label has {ratio} times the rows of the rarest; "
            "look at f1_macro and per-label recall, and consider train.class_weights: balanced"
        )
    for split, found in described["splits"].items():
        absent = [name for name, count in found["labels"].items() if count == 0]
        if absent:
            warnings.append(f"the {split} split has no row with the label {_quoted(absent)}")
    few = [name for name, count in described["splits"]["train"]["labels"].items() if 0 < count < FEW_ROWS]
    if few:
        warnings.append(f"fewer than {FEW_ROWS} training rows have the label {_quoted(few)}")
    return warnings


def set_warnings(described: Mapping[str, Any]) -> list[str]:
    """As for single labels, and labels that say nothing because every row has them."""
    always = [name for name, count in described["labels"].items() if count == described["rows_used"]]
    said = [f"every row has the label {_quoted(always)}, so there is nothing to learn about it"] if always else []
    return said + label_warnings(described)


def value_warnings(described: Mapping[str, Any]) -> list[str]:
    """Splits whose values are all the same, on which no correlation and no r2 is defined."""
    spreads = {split: described["splits"][split]["values"] for split in SPLITS}
    flat = [split for split, values in spreads.items() if values and values["min"] == values["max"]]
    return [f"all rows of the {split} split have the same value, so r2 means nothing there" for split in flat]


def _quoted(names: Sequence[str]) -> str:
    more = ", …" if len(names) > 5 else ""
    return ", ".join(f"'{name}'" for name in names[:5]) + more
