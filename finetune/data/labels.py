"""From the labels of rows to label names in index order."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from finetune.errors import DataError, nearest

_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")


ONE_LABEL = "every row has the label '{}'; a classifier needs at least two labels"


def resolve_labels(
    found: Mapping[str, str],
    listed: Sequence[str] | None,
    declared: Sequence[str] | None,
    alone: str = ONE_LABEL,
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Label names in index order, and the index of every label that occurs.

    `found` maps each label in the data to the first place that has it; `listed` is data.labels; `declared` is the order
    of a ClassLabel. Without either, labels are sorted, integers by value. Integer labels 0…n−1 are
    indices into `listed` when it names none of them. Raises DataError for labels that do not fit, and with the sentence
    `alone` when there is only one.
    """
    if listed is None:
        if declared is not None:
            names = tuple(name for name in declared if name in found)
        elif all(_INTEGER.fullmatch(name) for name in found):
            names = tuple(sorted(found, key=int))
        else:
            names = tuple(sorted(found))
        index = {name: at for at, name in enumerate(names)}
    else:
        names = tuple(listed)
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise DataError(f"data.labels names '{twice[0]}' twice; name each label once")
        index = _listed_index(found, names)
    if len(found) == 1:
        only = next(iter(found))
        raise DataError(alone.format(only))
    return names, index


def _listed_index(found: Mapping[str, str], names: tuple[str, ...]) -> dict[str, int]:
    index = {name: at for at, name in enumerate(names)}
    numbers = {str(at): at for at in range(len(names))}
    if not set(found) & set(index) and set(found) <= set(numbers):
        index = numbers
    for label, place in found.items():
        if label not in index:
            raise DataError(f"{place}: the label '{label}' is not in data.labels{nearest(label, names)}")
    missing = [names[at] for label, at in index.items() if label not in found]
    if missing:
        raise DataError(f"data.labels names '{missing[0]}', but no row has it; remove it or add rows")
    return index


def refuse_single_rows(counts: Mapping[str, int], limited: bool) -> None:
    """DataError naming the labels with one row, which no stratified split can divide."""
    single = [label for label, count in counts.items() if count == 1]
    if single:
        named = ", ".join(f"'{label}'" for label in single[:5])
        also = " or raise data.limit," if limited else ""
        raise DataError(
            f"only one row has the label {named}, so it cannot be in every split;{also} "
            "add rows, remove the label, or set data.splits.stratify to false"
        )


def look_alikes(names: Sequence[str]) -> list[str]:
    """A sentence for every pair of labels that differ only in case or white space."""
    folded: dict[str, str] = {}
    notes = []
    for name in names:
        key = " ".join(name.casefold().split())
        if key in folded:
            notes.append(f"the labels '{folded[key]}' and '{name}' differ only in case or white space")
        folded.setdefault(key, name)
    return notes
