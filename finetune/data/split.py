"""Which rows train, validate and test: seeded, stratified, stable, and never dividing a group of duplicates."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class _Group:
    """Rows that must stay together; `key` is the smallest key of its rows, `stratum` the one that most of them have."""

    key: int
    stratum: int
    rows: tuple[int, ...]


def assign_splits(
    keys: Sequence[int],
    groups: Sequence[int],
    strata: Sequence[int],
    shares: Mapping[str, float],
    *,
    rest: str = "train",
    at_least_one: bool = True,
) -> list[str]:
    """The split of every row.

    `keys` order the rows (a hash of seed and input, so that order does not depend on where a row stood), `groups` says
    which rows belong together, `shares` is the share of rows for every split but `rest`. Per stratum groups are taken
    in key order: each goes to the first split that has room for all its rows, else to `rest`. So a new row displaces
    about one row at each border between splits, not all of them. With `at_least_one` every split gets at least one row
    of each stratum as far as the stratum has groups enough; `rest` is served first.
    """
    members: dict[int, list[_Group]] = defaultdict(list)
    for group in _collect(keys, groups, strata):
        members[group.stratum].append(group)
    sizes = {stratum: sum(len(group.rows) for group in found) for stratum, found in members.items()}
    rooms = _rooms(sizes, shares)
    result = [rest] * len(keys)
    for stratum, found in members.items():
        room = {split: max(int(at_least_one), rooms[split][stratum]) for split in shares}
        for split, chosen in _divide(found, room, at_least_one=at_least_one).items():
            for group in chosen:
                for row in group.rows:
                    result[row] = split
    return result


def _rooms(sizes: Mapping[int, int], shares: Mapping[str, float]) -> dict[str, dict[int, int]]:
    """Rows of each stratum for each split: rounded, then mended so that they add up to the split's share of all rows.

    Where the rounded numbers miss it, those that were rounded farthest the wrong way give way first: the method of the
    largest remainder.
    """
    left = dict(sizes)
    rooms: dict[str, dict[int, int]] = {}
    for split, share in shares.items():
        room = {stratum: min(left[stratum], int(size * share + 0.5)) for stratum, size in sizes.items()}
        missing = int(sum(sizes.values()) * share + 0.5) - sum(room.values())
        step = 1 if missing > 0 else -1
        able = [stratum for stratum in sizes if 0 <= room[stratum] + step <= left[stratum]]
        able.sort(key=lambda stratum: (step * (room[stratum] - sizes[stratum] * share), stratum))
        for stratum in able[: abs(missing)]:
            room[stratum] += step
        rooms[split] = room
        left = {stratum: left[stratum] - room[stratum] for stratum in sizes}
    return rooms


def _collect(keys: Sequence[int], groups: Sequence[int], strata: Sequence[int]) -> list[_Group]:
    rows: dict[int, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        rows[group].append(row)
    collected = []
    for members in rows.values():
        votes = Counter(strata[row] for row in members)
        stratum = min(votes, key=lambda number: (-votes[number], number))
        collected.append(_Group(min(keys[row] for row in members), stratum, tuple(members)))
    return sorted(collected, key=lambda group: group.key)


def _divide(groups: list[_Group], room: dict[str, int], *, at_least_one: bool) -> dict[str, list[_Group]]:
    """Groups for every split that has room; what is in none of them belongs to the rest."""
    chosen: dict[str, list[_Group]] = {split: [] for split in room}
    left: list[_Group] = []
    for group in groups:
        split = next((name for name in room if len(group.rows) <= room[name]), None)
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


def least_sample(sizes: Sequence[int], splits: int) -> int:
    """The smallest `limit` with which `sample_rows`, by strata of these sizes and with the luckiest keys, leaves two rows to
    every stratum and `splits` rows to one: with fewer a split has no row of any stratum, or training none of some."""

    def before(rank: int, size: int) -> int:
        """Rows whose share of their stratum, rank / size, is smaller."""
        return sum(-(-rank * other // size) for other in sizes)

    rarest, most = min(sizes), max(sizes)
    return max(before(1, rarest) + list(sizes).count(rarest), before(splits - 1, most) + 1)


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
