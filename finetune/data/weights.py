"""How much each row counts: the cells of data.weight_column, the words of data.weight_map, and what the audit says of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.data.label_cells import as_number, shown
from finetune.data.rows import SPLITS, RawWeight
from finetune.data.value_map import ValueMap
from finetune.errors import DataError

Weights = NDArray[np.float64]
MOST = 1e30
_SHOWN = 10  # weights of which each is counted; more are a scale, of which the ends and the mean say enough


def read_weight(cell: object, place: str, *, mapped: bool) -> RawWeight:
    """A cell of the weight column: a number, or with `mapped` any word or number, as it is spelled.

    DataError when it is missing, or nothing of the kind.
    """
    if isinstance(cell, Decimal):  # as Parquet has them; compared with itself, one that signals NaN would raise
        cell = str(cell)
    if cell is None or cell != cell or (isinstance(cell, str) and not cell.strip()):
        raise DataError(f"{place}: the weight is missing; give every row one in data.weight_column, or remove the row")
    if mapped:
        if not isinstance(cell, str | int | float):
            raise DataError(
                f"{place}: the weight {shown(cell)} is of type {type(cell).__name__}; data.weight_map names texts and numbers"
            )
        return str(cell).strip()
    number = None if isinstance(cell, bool) else as_number(cell)
    if number is None:
        raise DataError(
            f"{place}: the weight {shown(cell)} is no number; mend data.weight_column, or name its values in data.weight_map"
        )
    return number


def map_weights(
    weights: Sequence[RawWeight], places: Sequence[str], meanings: Mapping[str, float] | None
) -> tuple[float, ...]:
    """The weights as numbers.

    DataError for a value that data.weight_map does not name, or names in vain, and for a number that is no weight: not finite, not
    above 0 (a row that shall not count is better removed), or beyond MOST and its inverse, where sums overflow.
    """
    if meanings is None or not weights:
        mapped = tuple(float(weight) for weight in weights)
    else:
        known = ValueMap("data.weight_map", "weight", meanings)
        mapped = tuple(known.look_up(str(weight), place) for weight, place in zip(weights, places, strict=True))
        known.refuse_unused()
    for weight, place in zip(mapped, places):
        if not (math.isfinite(weight) and weight > 0):
            raise DataError(f"{place}: the weight {weight:g} is not a number above 0; mend it or remove the row")
        if not 1 / MOST <= weight <= MOST:
            raise DataError(
                f"{place}: the weight {weight:g} is beyond {1 / MOST:g} to {MOST:g}; only ratios of weights matter, so scale all of them"
            )
    return mapped


def per_training_row(weights: Weights, splits: Sequence[str]) -> Weights:
    """The weights over the mean of those of training rows: a training row counts 1 on average, so no learning rate, nor the strength
    of a baseline's regularisation, means something else because of the unit that weights are written in."""
    return np.asarray(weights / weights[np.asarray(splits) == "train"].mean())


def describe_weights(column: str, weights: Weights, splits: Sequence[str]) -> dict[str, Any]:
    """For the audit: the column, the ends and the mean of the weights as they were given, and rows by weight where there are few
    different ones; per split the sum."""
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
