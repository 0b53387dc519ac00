"""From a recipe's data section to three audited splits: load, clean, find duplicates, split, look for leaks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from finetune.data.audit import (
    EXAMPLES,
    Duplicates,
    balance_warnings,
    conflicting,
    copies_of,
    describe_duplicates,
    describe_leaks,
    describe_rows,
    empty_rows,
    find_duplicates,
)
from finetune.data.labels import look_alikes, refuse_single_rows, resolve_labels
from finetune.data.load import POOL, Tables, load_tables
from finetune.data.near import normalise, text_key
from finetune.data.rows import SPLITS, Split, TextData, fingerprint
from finetune.data.split import assign_splits, sample_rows
from finetune.errors import DataError
from finetune.recipe.types import AuditSettings, DataSettings
from finetune.sources import Source


@dataclass(frozen=True)
class _Pile:
    """All rows of all tables, side by side; `roles` says which table each row came from, `keys` orders them."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    places: tuple[str, ...]
    roles: tuple[str, ...]
    normalised: tuple[str, ...] = ()
    keys: tuple[int, ...] = ()

    def keep(self, rows: Iterable[int]) -> _Pile:
        """The pile with these rows only, in this order."""
        chosen = list(rows)
        columns = {name: tuple(column[row] for row in chosen) for name, column in vars(self).items() if column}
        return replace(self, **columns)

    def without(self, rows: Iterable[int]) -> _Pile:
        """The pile without these rows."""
        gone = set(rows)
        return self.keep(row for row in range(len(self.texts)) if row not in gone) if gone else self


def prepare_text(settings: DataSettings, source: Source, named: Mapping[str, Source | str], seed: int) -> TextData:
    """Load, audit and split the rows that a recipe asks for.

    `named` holds, for every split that the user named, its Source (file or folder) or the name of a hub split. The result is a
    function of the rows, the settings and the seed alone. Raises DataError for rows that cannot be used as asked,
    SourceError for a hub data set that cannot be had.
    """
    started = time.perf_counter()
    tables = load_tables(settings, source, named)
    pile, facts = _clean(_pile_of(tables), settings, seed)
    names, index = _labels_of(pile, settings, tables)
    duplicates = find_duplicates(pile.normalised, settings.audit.near_duplicate_similarity)
    splits = _splits(pile, index, duplicates, tables, settings)
    _refuse_untrained(pile, splits, strict=tables.named)

    described = describe_rows(pile.texts, [names[index[label]] for label in pile.labels], splits, names)
    leaks = describe_leaks(duplicates, splits, pile.places)
    warnings = [note for rows in tables.rows.values() for note in rows.notes] + facts.pop("warnings")
    warnings += look_alikes(names) + balance_warnings(described)
    warnings += _judge_leaks(leaks, settings.audit) + _unused_names(tables, names)
    audit: dict[str, Any] = {
        **facts,
        **described,
        **describe_duplicates(duplicates, pile.places),
        **leaks,
        "similarity_threshold": settings.audit.near_duplicate_similarity,
        "warnings": list(dict.fromkeys(warnings)),
        "seconds": round(time.perf_counter() - started, 3),
    }
    parts = {split: _part(pile, index, splits, split) for split in SPLITS}
    return TextData(names, **parts, audit=audit, fingerprint=fingerprint(names, parts.values()))


def _pile_of(tables: Tables) -> _Pile:
    rows = tables.rows
    places = [place for table in rows.values() for place in table.places]
    if len(set(places)) < len(places):  # folders named for splits may hold files of the same name
        places = [f"{role}: {place}" for role, table in rows.items() for place in table.places]
    return _Pile(
        texts=tuple(text for table in rows.values() for text in table.texts),
        labels=tuple(label for table in rows.values() for label in table.labels),
        places=tuple(places),
        roles=tuple(role for role, table in rows.items() for _ in table.places),
    )


def _clean(pile: _Pile, settings: DataSettings, seed: int) -> tuple[_Pile, dict[str, Any]]:
    """Drop empty texts, apply the limit, and treat identical texts as the recipe says; with what was found."""
    rows = len(pile.texts)
    empty = empty_rows(pile.texts)
    warnings = []
    if empty:
        shown = ", ".join(pile.places[row] for row in empty[:3])
        warnings.append(f"{len(empty)} rows have an empty text and were dropped: {shown}")
    if len(empty) == rows:
        raise DataError(f"every text is empty, from {pile.places[0]} on; check data.text_column")
    pile = pile.without(empty)
    normalised = tuple(map(normalise, pile.texts))
    pile = replace(pile, normalised=normalised, keys=tuple(text_key(text, seed) for text in normalised))
    if settings.limit is not None:
        pile = pile.keep(sample_rows(pile.keys, list(zip(pile.roles, pile.labels, strict=True)), settings.limit))
    copies = copies_of(pile.normalised)
    conflicts = conflicting(copies, pile.labels)
    facts = {
        "rows": rows,
        "empty_texts": len(empty),
        "exact_duplicate_groups": len(copies),
        "exact_duplicate_rows": sum(len(group) - 1 for group in copies),
        "conflicting_label_groups": len(conflicts),
        "conflicts": [
            {"places": [pile.places[row] for row in group], "labels": [pile.labels[row] for row in group]}
            for group in conflicts[:EXAMPLES]
        ],
    }
    warnings += _judge_conflicts(pile, conflicts, settings.audit)
    dropped = {row for group in conflicts for row in group} if settings.audit.conflicts == "drop" else set()
    surplus = _surplus(pile, copies, dropped) if settings.audit.exact_duplicates == "drop" else []
    facts |= {"dropped_duplicates": len(surplus), "warnings": warnings}
    pile = pile.without([*dropped, *surplus])
    if not pile.texts:
        raise DataError(
            "no rows are left after dropping conflicting labels; look at the rows or set data.audit.conflicts"
        )
    return pile, facts


def _surplus(pile: _Pile, copies: Sequence[Sequence[int]], dropped: set[int]) -> list[int]:
    """Copies beyond the first within one table; copies in two named splits are a leak, which is judged, not hidden."""
    surplus = []
    for group in copies:
        seen: set[str] = set()
        for row in group:
            if row in dropped:
                continue
            if pile.roles[row] in seen:
                surplus.append(row)
            seen.add(pile.roles[row])
    return surplus


def _judge_conflicts(pile: _Pile, conflicts: Sequence[Sequence[int]], audit: AuditSettings) -> list[str]:
    if not conflicts:
        return []
    a = conflicts[0][0]
    b = next(row for row in conflicts[0] if pile.labels[row] != pile.labels[a])
    example = f"{pile.places[a]} ('{pile.labels[a]}') and {pile.places[b]} ('{pile.labels[b]}')"
    if audit.conflicts == "refuse":
        raise DataError(
            f"{len(conflicts)} texts carry different labels in different rows, such as {example}; "
            "mend the labels, or set data.audit.conflicts to drop or warn"
        )
    rows = sum(len(group) for group in conflicts)
    ending = f"; their {rows} rows were dropped" if audit.conflicts == "drop" else ""
    return [f"{len(conflicts)} texts carry different labels in different rows, such as {example}{ending}"]


def _labels_of(pile: _Pile, settings: DataSettings, tables: Tables) -> tuple[tuple[str, ...], dict[str, int]]:
    found: dict[str, str] = {}
    for label, place in zip(pile.labels, pile.places, strict=True):
        found.setdefault(label, place)
    declared = next((rows.label_order for rows in tables.rows.values() if rows.label_order), None)
    if declared is not None and not set(found) <= set(declared):
        declared = None
    return resolve_labels(found, settings.labels, declared)


def _splits(
    pile: _Pile, index: Mapping[str, int], duplicates: Duplicates, tables: Tables, settings: DataSettings
) -> list[str]:
    """The split of every row: a named table is its own split, the pool is divided by shares."""
    splits = list(pile.roles)
    pool = [row for row, role in enumerate(pile.roles) if role == POOL]
    if not pool:
        return splits
    if settings.splits.stratify:
        refuse_single_rows(Counter(pile.labels[row] for row in pool), settings.limit is not None)
    assigned = assign_splits(
        [pile.keys[row] for row in pool],
        [duplicates.groups[row] for row in pool],
        [index[pile.labels[row]] for row in pool],
        tables.shares,
        stratify=settings.splits.stratify,
    )
    for row, split in zip(pool, assigned, strict=True):
        splits[row] = split
    return splits


def _refuse_untrained(pile: _Pile, splits: Sequence[str], *, strict: bool) -> None:
    """Every split needs rows; with named splits, a label that only later splits have is a mistake in them."""
    for split in SPLITS:
        if split not in splits:
            raise DataError(f"the {split} split has no rows; add rows or change data.splits")
    trained = {label for label, split in zip(pile.labels, splits, strict=True) if split == "train"}
    for label, split, place in zip(pile.labels, splits, pile.places, strict=True):
        if strict and label not in trained:
            raise DataError(f"{place}: no training row has the label '{label}' of the {split} split; mend data.splits")
    if len(trained) < 2:
        raise DataError("the training split has one label only; add rows or set data.splits.stratify to true")


def _judge_leaks(leaks: Mapping[str, Any], audit: AuditSettings) -> list[str]:
    """Leaks come about only between tables that the user named; the recipe says what to do about them."""
    found = {pair: count for pair, count in leaks["leaks"].items() if count}
    if not found:
        return []
    counted = ", ".join(f"{count} between {pair.replace('/', ' and ')}" for pair, count in found.items())
    example = leaks["leak_examples"][0]
    text = (
        f"rows of one split have exact or near duplicates in an earlier one ({counted}), "
        f"such as {example['places'][1]} and {example['places'][0]} (similarity {example['similarity']:g})"
    )
    if audit.leaks == "refuse":
        raise DataError(f"{text}; remove them, or set data.audit.leaks to warn")
    return [f"{text}: the measured results are too good by what these rows add"]


def _unused_names(tables: Tables, names: Sequence[str]) -> list[str]:
    declared = {name for rows in tables.rows.values() for name in rows.label_order or ()}
    unused = sorted(declared - set(names))
    return [f"the data set declares labels that no row has: {', '.join(unused[:5])}"] if unused else []


def _part(pile: _Pile, index: Mapping[str, int], splits: Sequence[str], split: str) -> Split:
    rows = [row for row, at in enumerate(splits) if at == split]
    labels = np.array([index[pile.labels[row]] for row in rows], dtype=np.int64)
    return Split(tuple(pile.texts[row] for row in rows), labels, tuple(pile.places[row] for row in rows))
