"""All rows of all tables side by side, and the cleaning that comes before they are split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from finetune.data.audit import EXAMPLES, conflicting, copies_of
from finetune.data.examined import Examined
from finetune.data.images import judge_unreadable
from finetune.data.load import Tables
from finetune.data.modalities import Modality
from finetune.data.near import text_key
from finetune.data.rows import Input, RawLabel, RawWeight
from finetune.data.split import sample_rows
from finetune.data.targets import Labelling, map_labels
from finetune.data.weights import map_weights
from finetune.errors import DataError
from finetune.recipe.types import AuditSettings, DataSettings


@dataclass(frozen=True)
class Pile:
    """Rows as columns; `roles` says which table each row came from.

    `strata` and `weights` are empty unless the recipe names columns for them. `identities` and `keys`, which order the rows, are
    there once the inputs were examined.
    """

    inputs: tuple[Input, ...]
    labels: tuple[RawLabel, ...]
    places: tuple[str, ...]
    roles: tuple[str, ...]
    strata: tuple[str, ...] = ()
    weights: tuple[RawWeight, ...] = ()
    identities: tuple[str, ...] = ()
    keys: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.inputs)

    def keep(self, rows: Iterable[int]) -> Pile:
        """The pile with these rows only, in this order."""
        chosen = list(rows)
        columns = {name: tuple(column[row] for row in chosen) for name, column in vars(self).items() if column}
        return replace(self, **columns)

    def without(self, rows: Iterable[int]) -> Pile:
        """The pile without these rows."""
        gone = set(rows)
        return self.keep(row for row in range(len(self)) if row not in gone) if gone else self


@dataclass(frozen=True)
class Cleaned:
    """The rows that are used, what was found out about their inputs, facts for the audit, and sentences worth telling."""

    pile: Pile
    examined: Examined
    facts: dict[str, Any]
    warnings: list[str] = field(default_factory=list)


def pile_of(tables: Tables) -> Pile:
    """Every row of every table. Places that occur twice, in folders named for splits, get their table's name before them."""
    rows = tables.rows
    places = [place for table in rows.values() for place in table.places]
    if len(set(places)) < len(places):
        places = [f"{role}: {place}" for role, table in rows.items() for place in table.places]
    return Pile(
        inputs=tuple(item for table in rows.values() for item in table.inputs),
        labels=tuple(label for table in rows.values() for label in table.labels),
        places=tuple(places),
        roles=tuple(role for role, table in rows.items() for _ in table.places),
        strata=tuple(stratum for table in rows.values() for stratum in table.strata),
        weights=tuple(weight for table in rows.values() for weight in table.weights),
    )


def clean(pile: Pile, modality: Modality, labelling: Labelling, settings: DataSettings, seed: int) -> Cleaned:
    """Drop empty and unreadable inputs, translate the values of labels and weights, apply the limit, and treat identical inputs as asked."""
    rows = len(pile)
    pile = replace(
        pile,
        labels=map_labels(labelling, pile.labels, pile.places, settings.label_map),
        weights=map_weights(pile.weights, pile.places, settings.weight_map),
    )
    pile, empty, warnings = _without_empty(pile, modality, settings)
    if settings.limit is not None:
        pile = _sample(pile, modality, labelling, settings.limit, seed)
    pile, examined, unread = _examine(pile, modality, settings, seed)
    copies = copies_of(pile.identities)
    conflicts = conflicting(copies, pile.labels)
    facts = {
        "rows": rows,
        "empty_texts": empty,
        "exact_duplicate_groups": len(copies),
        "exact_duplicate_rows": sum(len(group) - 1 for group in copies),
        "conflicting_label_groups": len(conflicts),
        "conflicts": [
            {
                "places": [pile.places[row] for row in group],
                "labels": [labelling.show(pile.labels[row]) for row in group],
            }
            for group in conflicts[:EXAMPLES]
        ],
    }
    warnings += unread + _judge_conflicts(pile, conflicts, settings.audit, modality.noun)
    dropped = {row for group in conflicts for row in group} if settings.audit.conflicts == "drop" else set()
    surplus = _surplus(pile, copies, dropped) if settings.audit.exact_duplicates == "drop" else []
    facts["dropped_duplicates"] = len(surplus)
    pile = pile.without([*dropped, *surplus])
    if not pile.inputs:
        raise DataError(
            "no rows are left after dropping conflicting labels; look at the rows or set data.audit.conflicts"
        )
    return Cleaned(pile, examined, facts, warnings)


def _without_empty(pile: Pile, modality: Modality, settings: DataSettings) -> tuple[Pile, int, list[str]]:
    empty = [row for row, item in enumerate(pile.inputs) if modality.is_empty(item)]
    if not empty:
        return pile, 0, []
    if len(empty) == len(pile):
        keys = " and ".join(f"data.{key}" for key, _ in modality.columns(settings))
        raise DataError(f"every {modality.noun} is empty, from {pile.places[0]} on; check {keys}")
    shown = ", ".join(pile.places[row] for row in empty[:3])
    have, were = ("row has", "was") if len(empty) == 1 else ("rows have", "were")
    said = f"{len(empty)} {have} an empty {modality.noun} and {were} dropped: {shown}"
    return pile.without(empty), len(empty), [said]


def _sample(pile: Pile, modality: Modality, labelling: Labelling, limit: int, seed: int) -> Pile:
    named = zip(pile.inputs, pile.places, strict=True)
    keys = [text_key(modality.sampled_as(item, place), seed) for item, place in named]
    balanced: Sequence[object] = pile.strata or [labelling.sampled_by(label) for label in pile.labels]
    return pile.keep(sample_rows(keys, list(zip(pile.roles, balanced, strict=True)), limit))


def _examine(pile: Pile, modality: Modality, settings: DataSettings, seed: int) -> tuple[Pile, Examined, list[str]]:
    examined = modality.examine(pile.inputs, settings)
    said = judge_unreadable(list(examined.reasons.values()), pile.inputs, settings)
    pile = pile.without(examined.reasons)
    identities = tuple(identity for identity in examined.identities if identity is not None)
    keys = tuple(text_key(identity, seed) for identity in identities)
    return replace(pile, identities=identities, keys=keys), examined, said


def _surplus(pile: Pile, copies: Sequence[Sequence[int]], dropped: set[int]) -> list[int]:
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


def _judge_conflicts(pile: Pile, conflicts: Sequence[Sequence[int]], audit: AuditSettings, noun: str) -> list[str]:
    if not conflicts:
        return []
    a = conflicts[0][0]
    b = next(row for row in conflicts[0] if pile.labels[row] != pile.labels[a])
    example = " and ".join(f"{pile.places[row]} ({_spelled(pile.labels[row])})" for row in (a, b))
    carry = f"{noun} carries" if len(conflicts) == 1 else f"{noun}s carry"
    text = f"{len(conflicts)} {carry} different labels in different rows, such as {example}"
    if audit.conflicts == "refuse":
        raise DataError(f"{text}; mend the labels, or set data.audit.conflicts to drop or warn")
    rows = sum(len(group) for group in conflicts)
    ending = f"; their {rows} rows were dropped" if audit.conflicts == "drop" else ""
    return [text + ending]


def _spelled(label: RawLabel) -> str:
    return f"'{', '.join(label) if isinstance(label, tuple) else label}'"
