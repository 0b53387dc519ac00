"""From the labels of rows to label names in index order."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from finetune.data.rows import SPLITS, RawLabel
from finetune.data.split import least_sample
from finetune.errors import DataError, nearest

_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")


CHECK = "so add rows with another, or check data.source (of a table also data.label_column)"
ONE_LABEL = f"every row has the label '{{}}'; a classifier needs at least two labels, {CHECK}"


def resolve_labels(
    found: Mapping[str, str],
    listed: Sequence[str] | None,
    declared: Sequence[str] | None,
    alone: str = ONE_LABEL,
    where: str = "",
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Label names in index order, and the index of every label that occurs.

    `found` maps each label in the data to the first place that has it; `listed` is data.labels; `declared` is the order
    of a ClassLabel. Without either, labels are sorted, integers by value. Integer labels 0…n−1 are
    indices into `listed` when it names none of them. Raises DataError for labels that do not fit, and with the sentence
    `alone`, after `where`, when there is only one.
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
        raise DataError(where + alone.format(only))
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


def refuse_single_rows(counts: Mapping[str, int], limit: int | None = None) -> None:
    """DataError naming the labels with one row, which no stratified split can divide; `limit` is data.limit where it took a sample."""
    single = [label for label, count in counts.items() if count == 1]
    if single:
        named = ", ".join(f"'{label}'" for label in single[:5]) + (", …" if len(single) > 5 else "")
        row = "row" if limit is None else f"of the {limit} rows that data.limit takes"
        has = "has the label" if len(single) == 1 else "each has the labels"
        it = "it" if len(single) == 1 else "they"
        mend = "add rows, remove the label," if limit is None else "raise data.limit"
        raise DataError(
            f"only one {row} {has} {named}, so {it} cannot be in every split; {mend} or set data.splits.stratify to false"
        )


def refuse_limit(limit: int, rows: int, labels: Mapping[RawLabel, int] | None) -> None:
    """DataError when a sample of `limit` of the rows cannot be divided into splits, whatever the seed.

    `labels` are the rows of each label where every split needs each of them; else one row in each split must do.
    """
    splits = len(SPLITS)
    least = min(least_sample(list(labels.values()), splits) if labels else splits, rows)
    if limit < least:
        each, to = (f" with each of the {len(labels)} labels", f" to {least} or more,") if labels else ("", "")
        raise DataError(f"data.limit is {limit}, too few rows for {splits} splits{each}; raise it{to} or remove it")


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
