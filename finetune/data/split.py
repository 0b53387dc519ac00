"""Which rows train, validate and test: seeded, stratified, stable, and never dividing a group of duplicates."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class _Group:
    """Rows that must stay together; `key` is the smallest key of its rows, `label` the one that most of them have."""

    key: int
    label: int
    rows: tuple[int, ...]


def assign_splits(
    keys: Sequence[int],
    groups: Sequence[int],
    labels: Sequence[int],
    shares: Mapping[str, float],
    *,
    rest: str = "train",
    stratify: bool = True,
) -> list[str]:
    """The split of every row.

    `keys` order the rows (a hash of seed and text, so that order does not depend on where a row stood), `groups` says
    which rows belong together, `shares` is the share of rows for every split but `rest`. Per label (or over all rows,
    if not stratified) groups are taken in key order: each goes to the first split that has room for all its rows,
    else to `rest`. So a new row displaces about one row at each border between splits, not all of them. With
    stratification every split gets at least one row of each label as far as the label has groups enough; `rest` is
    served first.
    """
    strata: dict[int, list[_Group]] = defaultdict(list)
    for group in _collect(keys, groups, labels):
        strata[group.label if stratify else 0].append(group)
    result = [rest] * len(keys)
    for members in strata.values():
        for split, chosen in _divide(members, shares, at_least_one=stratify).items():
            for group in chosen:
                for row in group.rows:
                    result[row] = split
    return result


def _collect(keys: Sequence[int], groups: Sequence[int], labels: Sequence[int]) -> list[_Group]:
    rows: dict[int, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        rows[group].append(row)
    collected = []
    for members in rows.values():
        votes = Counter(labels[row] for row in members)
        label = min(votes, key=lambda name: (-votes[name], name))
        collected.append(_Group(min(keys[row] for row in members), label, tuple(members)))
    return sorted(collected, key=lambda group: group.key)


def _divide(groups: list[_Group], shares: Mapping[str, float], *, at_least_one: bool) -> dict[str, list[_Group]]:
    """Groups for every split of `shares`; what is in none of them belongs to the rest."""
    total = sum(len(group.rows) for group in groups)
    least = 1 if at_least_one else 0
    room = {split: max(least, int(total * share + 0.5)) for split, share in shares.items()}
    chosen: dict[str, list[_Group]] = {split: [] for split in shares}
    left: list[_Group] = []
    for group in groups:
        split = next((name for name in shares if len(group.rows) <= room[name]), None)
        if split is None:
            left.append(group)
        else:
            room[split] -= len(group.rows)
            chosen[split].append(group)
    if at_least_one:
        _serve_everyone(chosen, left)
    return chosen


def _serve_everyone(chosen: dict[str, list[_Group]], left: list[_Group]) -> None:
    """The rest needs a group before anyone else; then every empty split gets the smallest that can be spared."""
    by_size = sorted(chosen, key=lambda split: sum(len(group.rows) for group in chosen[split]), reverse=True)
    if not left:
        giver = next(split for split in by_size if chosen[split])
        left.append(chosen[giver].pop())
    for split in chosen:
        if not chosen[split] and len(left) > 1:
            smallest = min(left, key=lambda group: len(group.rows))
            left.remove(smallest)
            chosen[split].append(smallest)


def sample_rows(keys: Sequence[int], strata: Sequence[object], limit: int) -> list[int]:
    """At most `limit` row numbers in their old order: a seeded sample in which every stratum keeps its share.

    Within a stratum rows stand in key order; the row of rank r among n is taken at r/n, so each first row comes first.
    """
    if limit >= len(keys):
        return list(range(len(keys)))
    members: dict[object, list[int]] = defaultdict(list)
    for row in sorted(range(len(keys)), key=lambda row: (keys[row], row)):
        members[strata[row]].append(row)
    ranked = [(rank / len(rows), keys[row], row) for rows in members.values() for rank, row in enumerate(rows)]
    return sorted(row for _, _, row in sorted(ranked)[:limit])
