"""What a row's answer is, seen from the data: one plain entry per target of a task.

Reading a cell is in `label_cells`, names are in `labels`, balance is in `balance`; here they are put together.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.data.balance import (
    Described,
    describe_label_sets,
    describe_labels,
    describe_values,
    label_warnings,
    set_warnings,
    value_warnings,
)
from finetune.data.label_cells import LabelRules, ReadLabel, label_set, number, one_label
from finetune.data.labels import CHECK, resolve_labels
from finetune.data.rows import RawLabel
from finetune.data.value_map import ValueMap
from finetune.errors import DataError
from finetune.recipe.types import DataSettings

_BINS = 10  # quantile bins of a regression's label
_ROWS_PER_BIN = 20  # fewer would leave a 10 % split with a row or two of a bin
_ONE_LABEL = (
    "the only label of any row is '{}'; a multi-label task needs at least two, so add rows with another, or check "
    "data.label_column, data.label_columns and data.label_separator"
)

Found = Mapping[str, str]  # label → the first place that has it
Names = tuple[tuple[str, ...], dict[str, int]]  # names in index order, and the index of every label that occurs


@dataclass(frozen=True)
class Labelling:
    """How the labels of one target are read, named, turned into arrays, kept balanced over splits, and described."""

    columns: Callable[[DataSettings], tuple[str, ...]]
    """The columns that hold the label of a row."""
    read: ReadLabel
    """A row's cells into its label."""
    one_type: bool
    """Whether the cells of a column must be of one type, and numbers in a CSV file be whole."""
    members: Callable[[RawLabel], tuple[str, ...]]
    """The label names in a row's label."""
    of_members: Callable[[Sequence[str]], RawLabel]
    """The label that has these names; undoes `members`."""
    names: Callable[[Found, Sequence[RawLabel], DataSettings, Sequence[str] | None], Names]
    """Label names in index order; DataError for labels that do not fit the recipe or cannot be learned."""
    array: Callable[[Sequence[RawLabel], Names], NDArray[Any]]
    """Labels as a model learns them; see `Split`."""
    strata: Callable[[NDArray[Any], float], list[int]]
    """What each row is stratified by, given the smallest share of a split."""
    sampled_by: Callable[[RawLabel], object]
    """What keeps its share when data.limit takes a sample."""
    varied: bool
    """Whether there is nothing to learn if all training rows have one label."""
    every_split: bool
    """Whether each split must have a row of every stratum, so that a label with one row is refused."""
    show: Callable[[RawLabel], object]
    """A label as plain JSON."""
    describe: Callable[[NDArray[Any], Sequence[str]], Described]
    """Counts or spread of the labels of some rows, for the audit."""
    warnings: Callable[[Mapping[str, Any]], list[str]]
    """Sentences about the balance that the audit describes."""


def label_columns(settings: DataSettings) -> tuple[str, ...]:
    """The columns that hold the label of a row."""
    return settings.label_columns or (settings.label_column,)


def label_rules(settings: DataSettings) -> LabelRules:
    """The recipe's words on label cells."""
    return LabelRules(settings.label_columns, settings.label_separator, settings.label_map is not None)


def map_labels(
    labelling: Labelling, labels: Sequence[RawLabel], places: Sequence[str], names: Mapping[str, str] | None
) -> tuple[RawLabel, ...]:
    """The labels under the names of data.label_map; DataError for a value without a name or a name without a value."""
    if names is None:
        return tuple(labels)
    known = ValueMap("data.label_map", "name", names)
    mapped = tuple(
        labelling.of_members([known.look_up(value, place) for value in labelling.members(label)])
        for label, place in zip(labels, places, strict=True)
    )
    known.refuse_unused()
    return mapped


def name_labels(
    labelling: Labelling,
    labels: Sequence[RawLabel],
    places: Sequence[str],
    settings: DataSettings,
    declared: Sequence[str] | None,
    limited: bool = False,
) -> Names:
    """Label names in index order for rows whose values are mapped already; `declared` is the order of a ClassLabel.

    limited: whether data.limit took the rows from more, so that it may be why labels are lacking.
    """
    found: dict[str, str] = {}
    for label, place in zip(labels, places, strict=True):
        for name in labelling.members(label):
            found.setdefault(name, place)
    if limited and labelling.varied and (len(set(labels)) == 1 or len(found) == 1):
        shown = "', '".join(found) or labels[0]
        raise DataError(
            f"data.limit is {settings.limit}, so every row that it takes has the label '{shown}' and there is nothing to learn; "
            "raise it or remove it"
        )
    if declared is not None and not set(found) <= set(declared):
        declared = None
    return labelling.names(found, labels, settings, declared)


def _single_names(
    found: Found, labels: Sequence[RawLabel], settings: DataSettings, declared: Sequence[str] | None
) -> Names:
    return resolve_labels(found, settings.labels, declared, where=f"{settings.source}: ")


def _set_names(
    found: Found, labels: Sequence[RawLabel], settings: DataSettings, declared: Sequence[str] | None
) -> Names:
    if not found:
        raise DataError(
            f"{settings.source}: no row has any label; check data.label_column, data.label_columns and data.label_separator"
        )
    if settings.label_columns is not None:
        names = settings.label_map or {}
        columns = tuple(dict.fromkeys(names.get(column, column) for column in settings.label_columns))
        for column in columns:
            if column not in found:
                raise DataError(f"no row has a 1 for the label '{column}' of data.label_columns; remove it or add rows")
        declared = columns
    return resolve_labels(found, settings.labels, declared, _ONE_LABEL, f"{settings.source}: ")


def _no_names(
    found: Found, labels: Sequence[RawLabel], settings: DataSettings, declared: Sequence[str] | None
) -> Names:
    if len(set(labels)) == 1:
        raise DataError(
            f"{settings.source}: every row has the label {labels[0]!r}; a regression needs values that differ, {CHECK}"
        )
    return (), {}


def _indices(labels: Sequence[RawLabel], names: Names) -> NDArray[np.int64]:
    return np.array([names[1][str(label)] for label in labels], dtype=np.int64)


def _flags(labels: Sequence[RawLabel], names: Names) -> NDArray[np.float32]:
    flags = np.zeros((len(labels), len(names[0])), dtype=np.float32)
    for row, label in enumerate(labels):
        flags[row, [names[1][name] for name in _members(label)]] = 1
    return flags


def _values(labels: Sequence[RawLabel], names: Names) -> NDArray[np.float32]:
    return np.array(labels, dtype=np.float32)


def _by_label(labels: NDArray[Any], smallest_share: float) -> list[int]:
    return [int(label) for label in labels]


def _by_combination(labels: NDArray[Any], smallest_share: float) -> list[int]:
    """The combination of a row's labels; a combination too rare to reach every split gives way to its most frequent label.

    Sechidis et al. (2011) balance each label on its own, row by row; whole combinations do as well where they are
    common, and let the split of a row depend on its key alone.
    """
    frequent = labels.sum(axis=0)
    combinations = [tuple(np.flatnonzero(row).tolist()) for row in labels]
    rows = Counter(combinations)
    needed = math.ceil(1 / smallest_share)
    keys = [
        (0, c) if rows[c] >= needed or not c else (1, (max(c, key=lambda label: (frequent[label], -label)),))
        for c in combinations
    ]
    number = {key: at for at, key in enumerate(sorted(set(keys)))}
    return [number[key] for key in keys]


def _by_quantile(labels: NDArray[Any], smallest_share: float) -> list[int]:
    """The number of the label's quantile bin; where few values occur, each is a bin."""
    values = np.unique(labels)
    bins = max(1, min(_BINS, len(labels) // _ROWS_PER_BIN))
    edges = values[1:] if len(values) <= bins else np.unique(np.quantile(labels, np.arange(1, bins) / bins))
    return [int(at) for at in np.searchsorted(edges, labels, side="right")]


def _members(label: RawLabel) -> tuple[str, ...]:
    assert isinstance(label, tuple)
    return label


SINGLE_LABEL = Labelling(
    columns=label_columns,
    read=one_label,
    one_type=True,
    members=lambda label: (str(label),),
    of_members=lambda names: names[0],
    names=_single_names,
    array=_indices,
    strata=_by_label,
    sampled_by=lambda label: label,
    varied=True,
    every_split=True,
    show=lambda label: label,
    describe=describe_labels,
    warnings=label_warnings,
)

MULTI_LABEL = Labelling(
    columns=label_columns,
    read=label_set,
    one_type=False,
    members=_members,
    of_members=lambda names: tuple(sorted(set(names))),
    names=_set_names,
    array=_flags,
    strata=_by_combination,
    sampled_by=lambda label: label,
    varied=True,
    every_split=False,
    show=lambda label: list(_members(label)),
    describe=describe_label_sets,
    warnings=set_warnings,
)

REGRESSION = Labelling(
    columns=label_columns,
    read=number,
    one_type=False,
    members=lambda label: (),
    of_members=lambda names: 0.0,
    names=_no_names,
    array=_values,
    strata=_by_quantile,
    sampled_by=lambda label: None,
    varied=True,
    every_split=False,
    show=lambda label: label,
    describe=describe_values,
    warnings=value_warnings,
)

NEXT_TOKEN = Labelling(
    columns=lambda settings: (),
    read=lambda cells, place, rules: 0.0,
    one_type=False,
    members=lambda label: (),
    of_members=lambda names: 0.0,
    names=lambda found, labels, settings, declared: ((), {}),
    array=_values,
    strata=lambda labels, smallest_share: [0] * len(labels),
    sampled_by=lambda label: None,
    varied=False,
    every_split=False,
    show=lambda label: None,
    describe=lambda labels, names: {"labels": {}},
    warnings=lambda described: [],
)
"""A text is its own answer: no cell is read, and every row has the same empty label."""

LABELLINGS: dict[str, Labelling] = {
    "single_label": SINGLE_LABEL,
    "multi_label": MULTI_LABEL,
    "regression": REGRESSION,
    "next_token": NEXT_TOKEN,
}
