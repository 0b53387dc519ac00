"""The order of batches: every row once, a pure function of its arguments, little padding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.batches import epoch_steps, evaluation_batches, share

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=300)
sizes = st.integers(1, 40)
numbers = st.integers(0, 2**31 - 1)


def padding(steps: list[list[int]], of_row: np.ndarray) -> int:
    """Tokens computed in vain."""
    return sum(int(of_row[step].max()) * len(step) - int(of_row[step].sum()) for step in steps)


@given(lengths, sizes, numbers, st.integers(0, 9), st.integers(0, 9), st.booleans())
def test_an_epoch_has_every_row_once_in_full_batches(
    of_row: list[int], size: int, seed: int, phase: int, epoch: int, bucket: bool
) -> None:
    steps = epoch_steps(of_row, size, seed=seed, phase=phase, epoch=epoch, bucket=bucket)
    assert sorted(row for step in steps for row in step) == list(range(len(of_row)))
    assert len(steps) == -(-len(of_row) // size)
    assert sum(len(step) != size for step in steps) <= 1


@given(lengths, sizes, numbers, st.integers(0, 9), st.integers(0, 9), st.booleans())
def test_the_order_depends_on_nothing_else(
    of_row: list[int], size: int, seed: int, phase: int, epoch: int, bucket: bool
) -> None:
    first = epoch_steps(of_row, size, seed=seed, phase=phase, epoch=epoch, bucket=bucket)
    np.random.seed(0)
    epoch_steps(of_row, size, seed=seed, phase=phase, epoch=epoch + 1, bucket=bucket)
    assert epoch_steps(of_row, size, seed=seed, phase=phase, epoch=epoch, bucket=bucket) == first


@pytest.mark.parametrize("bucket", [True, False])
@pytest.mark.parametrize("change", [{"seed": 1}, {"phase": 1}, {"epoch": 1}])
def test_another_seed_phase_or_epoch_gives_another_order(change: dict[str, int], bucket: bool) -> None:
    of_row = [1 + i % 30 for i in range(200)]
    base = {"seed": 0, "phase": 0, "epoch": 0}
    one = epoch_steps(of_row, 8, **base, bucket=bucket)
    other = epoch_steps(of_row, 8, **{**base, **change}, bucket=bucket)
    assert one != other
    assert {frozenset(step) for step in one} != {frozenset(step) for step in other}


@given(numbers, sizes)
def test_buckets_waste_less_than_half_of_the_padding(seed: int, size: int) -> None:
    of_row = np.random.default_rng(seed).integers(1, 129, size=20 * max(size, 2))
    plain, bucketed = (
        padding(epoch_steps(of_row.tolist(), max(size, 2), seed=seed, phase=0, epoch=0, bucket=bucket), of_row)
        for bucket in (False, True)
    )
    assert bucketed < plain / 2


def test_batches_of_a_small_data_set_are_not_the_same_rows_in_every_epoch() -> None:
    of_row = list(range(1, 41))
    seen = [
        {frozenset(step) for step in epoch_steps(of_row, 5, seed=0, phase=0, epoch=epoch, bucket=True)}
        for epoch in range(4)
    ]
    assert all(not one & other for i, one in enumerate(seen) for other in seen[:i])


def test_lengths_do_not_rise_over_an_epoch() -> None:
    """Sorted buckets must be shuffled again, or each would go from short to long texts."""
    of_row = np.random.default_rng(0).integers(1, 129, size=1600)
    steps = epoch_steps(of_row.tolist(), 10, seed=0, phase=0, epoch=0, bucket=True)
    means = np.array([of_row[step].mean() for step in steps])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.3


@given(st.lists(st.integers(0, 999), min_size=1, max_size=50, unique=True), st.integers(1, 60))
def test_parts_of_a_step_share_its_rows_evenly(step: list[int], parts: int) -> None:
    shares = [share(step, part, parts) for part in range(parts)]
    assert all(shares), "every process computes something in every step"
    assert sorted(row for part in shares for row, weight in part if weight == 1) == sorted(step)
    assert {weight for part in shares for _, weight in part} <= {0.0, 1.0}
    counted = [sum(weight for _, weight in part) for part in shares]
    assert max(counted) - min(counted) <= 1
    assert counted == sorted(counted, reverse=True), "empty parts come last"


@given(lengths, sizes)
def test_evaluation_has_every_row_once_longest_first(of_row: list[int], size: int) -> None:
    batches = evaluation_batches(of_row, size)
    order = [row for batch in batches for row in batch]
    assert sorted(order) == list(range(len(of_row)))
    assert [of_row[row] for row in order] == sorted(of_row, reverse=True)
    assert {len(batch) for batch in batches[:-1]} <= {size}
