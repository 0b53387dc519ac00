"""From a recipe's data section to three audited splits: load, clean, find duplicates, split, look for leaks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.data.audit import Duplicates, describe_duplicates, describe_leaks, find_duplicates
from finetune.data.balance import imbalance
from finetune.data.labels import look_alikes, refuse_single_rows
from finetune.data.load import POOL, Tables, load_tables
from finetune.data.modalities import MODALITIES
from finetune.data.pile import Pile, clean, pile_of
from finetune.data.rows import SPLITS, LabelledData, Split, fingerprint
from finetune.data.split import assign_splits
from finetune.data.targets import LABELLINGS, Labelling, name_labels
from finetune.data.weights import Weights, describe_weights, per_training_row
from finetune.errors import DataError
from finetune.recipe.types import AuditSettings, DataSettings
from finetune.sources import Source
from finetune.tasks import TaskSpec


def prepare_data(
    task: TaskSpec, settings: DataSettings, source: Source, named: Mapping[str, Source | str], seed: int
) -> LabelledData:
    """Load, audit and split the rows that a recipe asks for.

    `named` holds, for every split that the user named, its Source (file or folder) or the name of a hub split. The result is a
    function of the rows, the settings and the seed alone. Raises DataError for rows that cannot be used as asked,
    SourceError for a hub data set that cannot be had.
    """
    started = time.perf_counter()
    modality, labelling = MODALITIES[task.modality], LABELLINGS[task.target.name]
    tables = load_tables(task, settings, source, named)
    cleaned = clean(pile_of(tables), modality, labelling, settings, seed)
    pile, examined = cleaned.pile, cleaned.examined
    declared = next((rows.label_order for rows in tables.rows.values() if rows.label_order), None)
    # The sample of data.limit is then why something is lacking; without it the rows themselves are.
    limit = settings.limit if settings.limit is not None and settings.limit < cleaned.facts["rows"] else None
    names, index = name_labels(labelling, pile.labels, pile.places, settings, declared, limited=limit is not None)
    labels = labelling.array(pile.labels, (names, index))
    weights = np.array(pile.weights, dtype=np.float64) if pile.weights else None
    duplicates = find_duplicates(pile.identities, lambda distinct: modality.near(distinct, examined, settings))
    splits = _splits(pile, labels, labelling, duplicates, tables, settings, limit)
    mend = "add rows" if limit is None else f"raise data.limit, which takes {limit} rows,"
    _refuse_empty(splits, duplicates, cleaned.facts["dropped_duplicates"], mend, divided=not tables.named)
    _refuse_untrained(pile, labelling, splits, mend, strict=tables.named)

    described = _describe(labelling, labels, names, splits)
    leaks = describe_leaks(duplicates, splits, pile.places)
    warnings = [note for rows in tables.rows.values() for note in rows.notes] + cleaned.warnings
    warnings += look_alikes(names) + labelling.warnings(described)
    warnings += _judge_leaks(leaks, settings.audit) + _unused_names(tables, names)
    audit: dict[str, Any] = {
        **cleaned.facts,
        **described,
        **modality.describe(pile.inputs, pile.identities, examined),
        **describe_duplicates(duplicates, pile.places),
        **leaks,
        "weights": None if weights is None else describe_weights(str(settings.weight_column), weights, splits),
        "similarity_threshold": modality.threshold(settings),
        "warnings": list(dict.fromkeys(warnings)),
        "seconds": round(time.perf_counter() - started, 3),
    }
    rows = {split: [row for row, at in enumerate(splits) if at == split] for split in SPLITS}
    counted = None if weights is None else per_training_row(weights, splits)
    parts = {split: _part(pile, labels, counted, of_split) for split, of_split in rows.items()}
    contents = [
        (parts[split].labels, [modality.content(pile.inputs[row], pile.identities[row]) for row in rows[split]])
        for split in SPLITS
    ]
    identity = fingerprint(names, contents, [parts[split].weights for split in SPLITS])
    return LabelledData(names, **parts, audit=audit, fingerprint=identity)


def _splits(
    pile: Pile,
    labels: NDArray[Any],
    labelling: Labelling,
    duplicates: Duplicates,
    tables: Tables,
    settings: DataSettings,
    limit: int | None,
) -> list[str]:
    """The split of every row: a named table is its own split, the pool is divided by shares."""
    splits = list(pile.roles)
    pool = [row for row, role in enumerate(pile.roles) if role == POOL]
    if not pool:
        return splits
    by_label = settings.splits.stratify and not pile.strata
    if by_label and labelling.every_split:
        refuse_single_rows(Counter(str(pile.labels[row]) for row in pool), limit)
    assigned = assign_splits(
        [pile.keys[row] for row in pool],
        [duplicates.groups[row] for row in pool],
        _strata(pile, labels, labelling, pool, tables.shares, stratify=settings.splits.stratify),
        tables.shares,
        at_least_one=by_label and labelling.every_split,
    )
    for row, split in zip(pool, assigned, strict=True):
        splits[row] = split
    return splits


def _strata(
    pile: Pile,
    labels: NDArray[Any],
    labelling: Labelling,
    pool: Sequence[int],
    shares: Mapping[str, float],
    *,
    stratify: bool,
) -> list[int]:
    """The stratum of each of the pool's rows: of data.stratify_by, of the label, or one for all."""
    if not stratify:
        return [0] * len(pool)
    if not pile.strata:
        smallest = min((share for share in (*shares.values(), 1 - sum(shares.values())) if share > 0), default=1.0)
        return labelling.strata(labels[pool], smallest)
    number = {stratum: at for at, stratum in enumerate(sorted(set(pile.strata)))}
    return [number[pile.strata[row]] for row in pool]


def _describe(
    labelling: Labelling, labels: NDArray[Any], names: Sequence[str], splits: Sequence[str]
) -> dict[str, Any]:
    """Rows and labels, of all rows and per split."""
    described = {"rows_used": len(labels), **labelling.describe(labels, names)}
    described["imbalance"] = imbalance(described)
    of_split = np.asarray(splits)
    parts = {split: labels[of_split == split] for split in SPLITS}
    described["splits"] = {
        split: {"rows": len(part), **labelling.describe(part, names)} for split, part in parts.items()
    }
    return described


def _refuse_empty(splits: Sequence[str], duplicates: Duplicates, dropped: int, mend: str, *, divided: bool) -> None:
    """Every split needs rows. Where rows that repeat one another cannot be divided, adding such rows would not help."""
    groups = len(set(duplicates.groups))
    for split in SPLITS:
        if split in splits:
            continue
        if divided and groups < len(SPLITS) <= len(splits) + dropped:
            raise DataError(
                f"the {split} split has no rows, because of {len(splits) + dropped} rows only {groups} differ enough to be told apart, and "
                "duplicates are dropped or stay in one split; add rows that differ"
            )
        raise DataError(f"the {split} split has no rows; {mend} or change data.splits")


def _refuse_untrained(pile: Pile, labelling: Labelling, splits: Sequence[str], mend: str, *, strict: bool) -> None:
    """With named splits, a label that only later splits have is a mistake in them."""
    trained = {label for label, split in zip(pile.labels, splits, strict=True) if split == "train"}
    known = {name for label in trained for name in labelling.members(label)}
    for label, split, place in zip(pile.labels, splits, pile.places, strict=True):
        new = sorted(set(labelling.members(label)) - known) if strict else ()
        if new:
            raise DataError(
                f"{place}: no training row has the label '{new[0]}' of the {split} split; {mend} or mend data.splits"
            )
    if labelling.varied and len(trained) < 2:
        raise DataError(f"the training split has one label only; {mend} or set data.splits.stratify to true")


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


def _part(pile: Pile, labels: NDArray[Any], weights: Weights | None, rows: Sequence[int]) -> Split:
    return Split(
        tuple(pile.inputs[row] for row in rows),
        labels[rows],
        tuple(pile.places[row] for row in rows),
        None if weights is None else weights[rows],
    )
