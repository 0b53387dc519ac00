"""What is wrong with the rows before anything is trained on them: duplicates, conflicting labels, leaks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.data.rows import SPLITS, RawLabel

EXAMPLES = 10
NearPairs = Callable[[Sequence[str]], list[tuple[int, int, float]]]
"""Pairs i < j of distinct identities that are near duplicates, with their similarity."""


@dataclass(frozen=True)
class Duplicates:
    """For every row the number of its input (identical ones share it) and of its group; near pairs of input numbers.

    A group is what must stay in one split: inputs connected by a chain of near duplicates, and all their copies.
    """

    input_ids: tuple[int, ...]
    groups: tuple[int, ...]
    pairs: tuple[tuple[int, int, float], ...]


def find_duplicates(identities: Sequence[str], near: NearPairs) -> Duplicates:
    """Exact duplicates, which share an identity, and near ones, which `near` finds among the distinct identities."""
    numbers: dict[str, int] = {}
    ids = tuple(numbers.setdefault(identity, len(numbers)) for identity in identities)
    pairs = near(list(numbers))
    leader = _union_find(len(numbers), pairs)
    return Duplicates(ids, tuple(leader[number] for number in ids), tuple(pairs))


def copies_of(identities: Sequence[str]) -> list[list[int]]:
    """Row numbers of every input that occurs more than once, in row order."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, identity in enumerate(identities):
        rows[identity].append(row)
    return [members for members in rows.values() if len(members) > 1]


def conflicting(copies: Sequence[Sequence[int]], labels: Sequence[RawLabel]) -> list[list[int]]:
    """The groups of identical inputs that carry different labels."""
    return [list(rows) for rows in copies if len({labels[row] for row in rows}) > 1]


def find_leaks(duplicates: Duplicates, splits: Sequence[str]) -> Iterator[tuple[str, str, int, int, float]]:
    """Rows that have an exact or near duplicate in an earlier split: (earlier, later, earlier row, later row, similarity).

    Each row of a later split comes at most once per earlier split, with its most similar partner there.
    """
    first_row: dict[tuple[int, str], int] = {}
    for row, number in enumerate(duplicates.input_ids):
        first_row.setdefault((number, splits[row]), row)
    partners: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for a, b, similarity in duplicates.pairs:
        partners[a].append((similarity, b))
        partners[b].append((similarity, a))
    for row, number in enumerate(duplicates.input_ids):
        nearby = [(1.0, number), *sorted(partners.get(number, ()), reverse=True)]
        for earlier in SPLITS[: SPLITS.index(splits[row])]:
            for similarity, other in nearby:
                if (other, earlier) in first_row:
                    yield earlier, splits[row], first_row[other, earlier], row, similarity
                    break


def describe_duplicates(duplicates: Duplicates, places: Sequence[str]) -> dict[str, Any]:
    """The near-duplicate part of the audit: surplus rows are those beyond the first input of each group."""
    near_groups: dict[int, set[int]] = defaultdict(set)
    group_of = dict(zip(duplicates.input_ids, duplicates.groups, strict=True))
    for number, group in group_of.items():
        near_groups[group].add(number)
    sizes = [len(members) for members in near_groups.values() if len(members) > 1]
    first: dict[int, str] = {}
    for number, place in zip(duplicates.input_ids, places, strict=True):
        first.setdefault(number, place)
    return {
        "near_duplicate_groups": len(sizes),
        "near_duplicate_rows": sum(sizes) - len(sizes),
        "near_examples": [
            {"places": [first[a], first[b]], "similarity": round(similarity, 4)}
            for a, b, similarity in duplicates.pairs[:EXAMPLES]
        ],
    }


def describe_leaks(duplicates: Duplicates, splits: Sequence[str], places: Sequence[str]) -> dict[str, Any]:
    """The leak part of the audit, by pair of splits."""
    counts = {f"{SPLITS[a]}/{SPLITS[b]}": 0 for a in range(3) for b in range(a + 1, 3)}
    examples: list[dict[str, Any]] = []
    for earlier, later, row, other, similarity in find_leaks(duplicates, splits):
        counts[f"{earlier}/{later}"] += 1
        if len(examples) < EXAMPLES:
            pair = [places[row], places[other]]
            examples.append({"splits": [earlier, later], "places": pair, "similarity": round(similarity, 4)})
    return {"leaks": counts, "leak_examples": examples}


def _union_find(size: int, pairs: Sequence[tuple[int, int, float]]) -> list[int]:
    """The smallest member of every item's connected component."""
    parent = list(range(size))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for a, b, _ in pairs:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    return [root(item) for item in range(size)]
