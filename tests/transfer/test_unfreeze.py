"""Which layer groups train in which phase, for every depth of network."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from finetune.transfer.unfreeze import full, gradual, head_only, lp_ft

GROUPS = st.integers(1, 60)
DEPTH = st.none() | st.integers(1, 70)


@given(groups=GROUPS, step=st.integers(1, 70), depth=DEPTH)
def test_gradual_starts_with_the_head_adds_steps_and_ends_at_its_depth(
    groups: int, step: int, depth: int | None
) -> None:
    counts = gradual(groups, step=step, depth=depth)
    assert counts[0] == 1
    assert counts[-1] == min(groups, groups if depth is None else depth)
    added = [later - earlier for earlier, later in pairwise(counts)]
    assert all(n == step for n in added[:-1])
    assert not added or 1 <= added[-1] <= step


@given(groups=GROUPS)
def test_gradual_by_one_unfreezes_every_group_once(groups: int) -> None:
    assert gradual(groups) == list(range(1, groups + 1))


@given(groups=GROUPS, depth=DEPTH)
def test_lp_ft_is_the_head_and_then_everything_to_its_depth(groups: int, depth: int | None) -> None:
    last = min(groups, groups if depth is None else depth)
    assert lp_ft(groups, depth=depth) == ([1, last] if last > 1 else [1])
    assert lp_ft(groups, depth=depth) == gradual(groups, step=70, depth=depth)


@given(groups=GROUPS, depth=DEPTH)
def test_head_only_and_full_are_one_phase(groups: int, depth: int | None) -> None:
    assert head_only(groups) == [1]
    assert full(groups, depth=depth) == [min(groups, groups if depth is None else depth)]
