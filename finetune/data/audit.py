"""What is wrong with the rows before anything is trained on them: duplicates, conflicting labels, leaks, balance."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.data.near import is_empty, near_pairs
from finetune.data.rows import SPLITS

EXAMPLES = 10
IMBALANCE = 10.0  # from this ratio on, accuracy says little about the small labels
FEW_ROWS = 10


@dataclass(frozen=True)
class Duplicates:
    """For every row the number of its text (identical texts share it) and of its group; near pairs of text numbers.

    A group is what must stay in one split: texts connected by a chain of near duplicates, and all their copies.
    """

    text_ids: tuple[int, ...]
    groups: tuple[int, ...]
    pairs: tuple[tuple[int, int, float], ...]


def find_duplicates(normalised: Sequence[str], threshold: float) -> Duplicates:
    """Exact and near duplicates among normalised texts; see `finetune.data.near`."""
    numbers: dict[str, int] = {}
    ids = tuple(numbers.setdefault(text, len(numbers)) for text in normalised)
    pairs = near_pairs(list(numbers), threshold)
    leader = _union_find(len(numbers), pairs)
    return Duplicates(ids, tuple(leader[number] for number in ids), tuple(pairs))


def copies_of(normalised: Sequence[str]) -> list[list[int]]:
    """Row numbers of every text that occurs more than once, in row order."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, text in enumerate(normalised):
        rows[text].append(row)
    return [members for members in rows.values() if len(members) > 1]


def conflicting(copies: Sequence[Sequence[int]], labels: Sequence[str]) -> list[list[int]]:
    """The groups of identical texts that carry different labels."""
    return [list(rows) for rows in copies if len({labels[row] for row in rows}) > 1]


def find_leaks(duplicates: Duplicates, splits: Sequence[str]) -> Iterator[tuple[str, str, int, int, float]]:
    """Rows that have an exact or near duplicate in an earlier split: (earlier, later, earlier row, later row, similarity).

    Each row of a later split comes at most once per earlier split, with its most similar partner there.
    """
    first_row: dict[tuple[int, str], int] = {}
    for row, text in enumerate(duplicates.text_ids):
        first_row.setdefault((text, splits[row]), row)
    partners: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for a, b, similarity in duplicates.pairs:
        partners[a].append((similarity, b))
        partners[b].append((similarity, a))
    for row, text in enumerate(duplicates.text_ids):
        nearby = [(1.0, text), *sorted(partners.get(text, ()), reverse=True)]
        for earlier in SPLITS[: SPLITS.index(splits[row])]:
            for similarity, other in nearby:
                if (other, earlier) in first_row:
                    yield earlier, splits[row], first_row[other, earlier], row, similarity
                    break


def describe_duplicates(duplicates: Duplicates, places: Sequence[str]) -> dict[str, Any]:
    """The near-duplicate part of the audit: surplus rows are those beyond the first text of each group."""
    near_groups: dict[int, set[int]] = defaultdict(set)
    group_of = dict(zip(duplicates.text_ids, duplicates.groups, strict=True))
    for text, group in group_of.items():
        near_groups[group].add(text)
    sizes = [len(texts) for texts in near_groups.values() if len(texts) > 1]
    first: dict[int, str] = {}
    for text, place in zip(duplicates.text_ids, places, strict=True):
        first.setdefault(text, place)
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


def describe_rows(
    texts: Sequence[str], labels: Sequence[str], splits: Sequence[str], names: Sequence[str]
) -> dict[str, Any]:
    """Rows, label balance, text lengths in characters, and the same per split."""
    counts = Counter(labels)
    lengths = np.array([len(text) for text in texts])
    p50, p95 = (int(value) for value in np.percentile(lengths, (50, 95)))
    per_split = {
        split: Counter(label for label, at in zip(labels, splits, strict=True) if at == split) for split in SPLITS
    }
    return {
        "rows_used": len(texts),
        "labels": {name: counts[name] for name in names},
        "imbalance": round(max(counts.values()) / min(counts.values()), 4),
        "characters": {"p50": p50, "p95": p95, "max": int(lengths.max())},
        "splits": {
            split: {"rows": found.total(), "labels": {name: found[name] for name in names}}
            for split, found in per_split.items()
        },
    }


def balance_warnings(described: Mapping[str, Any]) -> list[str]:
    """Sentences about imbalance, and about labels that a split has too few rows of to be measured."""
    warnings = []
    if described["imbalance"] >= IMBALANCE:
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


def empty_rows(texts: Sequence[str]) -> list[int]:
    """Row numbers of texts that hold nothing visible."""
    return [row for row, text in enumerate(texts) if is_empty(text)]


def _quoted(names: Sequence[str]) -> str:
    more = ", …" if len(names) > 5 else ""
    return ", ".join(f"'{name}'" for name in names[:5]) + more


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
