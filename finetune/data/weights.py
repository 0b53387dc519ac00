"""How much each row counts: the cells of data.weight_column, the words of data.weight_map, and what the audit says of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.data.label_cells import as_number
from finetune.data.rows import SPLITS, RawWeight
from finetune.data.value_map import ValueMap
from finetune.errors import DataError

Weights = NDArray[np.float64]
_SHOWN = 10  # weights of which each is counted; more are a scale, of which the ends and the mean say enough


def read_weight(cell: object, place: str, *, mapped: bool) -> RawWeight:
    """A cell of the weight column: a number above 0, or with `mapped` any value, as it is spelled.

    DataError when it is missing, no number, not finite, or not above 0: a row that shall not count is better removed.
    """
    if cell is None or cell != cell or (isinstance(cell, str) and not cell.strip()):
        raise DataError(f"{place}: the weight is missing; give every row one in data.weight_column, or remove the row")
    if mapped and isinstance(cell, str | int | float):
        return str(cell).strip()
    number = None if isinstance(cell, bool) else as_number(cell)
    if number is None:
        raise DataError(
            f"{place}: the weight {cell!r} is no number; mend data.weight_column, or name it in data.weight_map"
        )
    if not (math.isfinite(number) and number > 0):
        raise DataError(f"{place}: the weight {cell!r} is not a number above 0; mend it or remove the row")
    return number


def map_weights(
    weights: Sequence[RawWeight], places: Sequence[str], meanings: Mapping[str, float] | None
) -> tuple[float, ...]:
    """The weights as numbers; DataError for a value that data.weight_map does not name, or names in vain."""
    if meanings is None or not weights:
        return tuple(float(weight) for weight in weights)
    known = ValueMap("data.weight_map", "weight", meanings)
    mapped = tuple(known.look_up(str(weight), place) for weight, place in zip(weights, places, strict=True))
    known.refuse_unused()
    return mapped


def describe_weights(column: str, weights: Weights, splits: Sequence[str]) -> dict[str, Any]:
    """For the audit: the column, the ends and the mean of the weights, and rows by weight where there are few different ones.

    Per split the sum, which is what a mean over its rows is divided by.
    """
    values, rows = np.unique(weights, return_counts=True)
    of_split = np.asarray(splits)
    return {
        "column": column,
        "least": float(values[0]),
        "greatest": float(values[-1]),
        "mean": float(weights.mean()),
        "rows": [{"weight": float(value), "rows": int(count)} for value, count in zip(values, rows, strict=True)]
        if len(values) <= _SHOWN
        else None,
        "splits": {split: float(weights[of_split == split].sum()) for split in SPLITS},
    }
