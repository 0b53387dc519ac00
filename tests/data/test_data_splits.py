from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.near import text_key
from finetune.data.split import assign_splits, sample_rows

SHARES = {"test": 0.1, "validation": 0.1}


def keys(count: int, seed: int = 0) -> list[int]:
    return [text_key(f"text {number}", seed) for number in range(count)]


def test_single_rows_fill_the_shares_exactly_for_every_label() -> None:
    labels = [0] * 600 + [1] * 300 + [2] * 100
    splits = assign_splits(keys(1000), range(1000), labels, SHARES)
    assert Counter(splits) == {"train": 800, "validation": 100, "test": 100}
    for label, count in ((0, 60), (1, 30), (2, 10)):
        assert sum(s == "test" and at == label for s, at in zip(splits, labels, strict=True)) == count


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), min_size=1, max_size=120),
    st.integers(0, 5),
    st.booleans(),
)
@settings(deadline=None)
def test_groups_are_never_divided_and_labels_reach_every_split(
    rows: list[tuple[int, int]], seed: int, stratify: bool
) -> None:
    groups, labels = [group for group, _ in rows], [group % 3 for group, _ in rows]
    strata = labels if stratify else [0] * len(labels)
    splits = assign_splits(keys(len(rows), seed), groups, strata, SHARES, at_least_one=stratify)
    for group in set(groups):
        assert len({s for s, g in zip(splits, groups, strict=True) if g == group}) == 1
    if stratify:
        for label in set(labels):
            places = {s for s, at in zip(splits, labels, strict=True) if at == label}
            count = len({g for g, at in zip(groups, labels, strict=True) if at == label})
            assert "train" in places
            assert len(places) == min(3, count)


def test_order_of_rows_does_not_matter() -> None:
    names, labels = keys(200), [number % 4 for number in range(200)]
    splits = assign_splits(names, range(200), labels, SHARES)
    turned = assign_splits(names[::-1], range(200), labels[::-1], SHARES)
    assert turned[::-1] == splits


@pytest.mark.parametrize("new", range(20))
def test_one_more_row_moves_few_others(new: int) -> None:
    names, labels = keys(1000), [number % 2 for number in range(1000)]
    before = assign_splits(names, range(1000), labels, SHARES)
    after = assign_splits([*names, text_key(f"new {new}", 0)], range(1001), [*labels, new % 2], SHARES)
    assert sum(a != b for a, b in zip(before, after[:1000], strict=True)) <= 3


def test_another_seed_gives_another_split() -> None:
    labels = [0] * 200
    one, two = (assign_splits(keys(200, seed), range(200), labels, SHARES) for seed in (0, 1))
    assert one != two


def test_a_group_larger_than_a_share_goes_to_the_rest() -> None:
    for seed in range(20):
        splits = assign_splits(keys(100, seed), [0] * 40 + list(range(1, 61)), [0] * 100, SHARES)
        assert splits[0] == "train"
        assert Counter(splits)["test"] == 10


def test_a_sample_keeps_the_shares_of_strata_and_is_seeded() -> None:
    strata = ["a"] * 900 + ["b"] * 90 + ["c"] * 10
    rows = sample_rows(keys(1000), strata, 100)
    assert rows == sorted(rows)
    counted = Counter(strata[row] for row in rows)
    assert counted["c"] >= 1
    assert abs(counted["b"] - 9) <= 1
    assert counted.total() == 100
    assert sample_rows(keys(1000, 1), strata, 100) != rows
    assert sample_rows(keys(10), strata[:10], 10) == list(range(10))
    assert {strata[row] for row in sample_rows(keys(1000), strata, 3)} == {"a", "b", "c"}


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=25),
    st.sampled_from([{"test": 0.25, "validation": 0.075}, SHARES, {"test": 0.3}, {"test": 0.2, "validation": 0.2}]),
)
def test_shares_of_many_strata_add_up_to_the_share_of_all_rows(sizes: list[int], shares: dict[str, float]) -> None:
    strata = [stratum for stratum, size in enumerate(sizes) for _ in range(size)]
    splits = assign_splits(keys(len(strata)), range(len(strata)), strata, shares, at_least_one=False)
    for split, share in shares.items():
        assert Counter(splits)[split] == int(len(strata) * share + 0.5)
        for stratum, size in enumerate(sizes):
            found = sum(s == split and at == stratum for s, at in zip(splits, strata, strict=True))
            assert abs(found - size * share) < 2


def test_strata_that_round_well_are_left_as_they_round() -> None:
    """510, 386, 417, 511 and 401 rows at a tenth: 51, 39, 42, 51 and 40 are 223 of 2,225 already."""
    sizes = (510, 386, 417, 511, 401)
    strata = [stratum for stratum, size in enumerate(sizes) for _ in range(size)]
    splits = assign_splits(keys(2225), range(2225), strata, SHARES)
    found = Counter(at for split, at in zip(splits, strata, strict=True) if split == "test")
    assert [found[stratum] for stratum in range(5)] == [51, 39, 42, 51, 40]
