"""Rates over depth follow the paper's formula; rates over time start, peak and end where each schedule says."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.recipe import TrainSettings
from finetune.transfer.learning_rates import SCHEDULES, discriminative_lrs, rate_factor

WARMUPS = st.floats(0, 1, exclude_max=True)
# (factor at the very start, factor at the very end)
ENDS = {
    "slanted_triangular": (1 / 32, 1 / 32),
    "one_cycle": (1 / 25, 1 / 250_000),
    "cosine": (0.0, 0.0),
    "linear": (0.0, 0.0),
    "constant": (0.0, 1.0),
}


@given(top=st.floats(1e-8, 1.0), decay=st.floats(0.01, 1.0), depth=st.integers(1, 40))
def test_neighbouring_groups_differ_by_the_decay_and_the_head_has_the_top_rate(
    top: float, decay: float, depth: int
) -> None:
    rates = discriminative_lrs(top, decay, depth)
    assert len(rates) == depth
    assert rates[-1] == top
    for level, rate in enumerate(rates, start=1):
        assert rate == pytest.approx(top * decay ** (depth - level), rel=1e-12)
    assert rates == sorted(rates)


def test_the_papers_decay_gives_the_papers_rates() -> None:
    assert discriminative_lrs(0.01, 1 / 2.6, 3) == pytest.approx([0.01 / 2.6**2, 0.01 / 2.6, 0.01])


def test_every_schedule_of_the_recipe_exists() -> None:
    annotation = str(TrainSettings.model_fields["schedule"].annotation)
    assert set(ENDS) == set(SCHEDULES)
    for name in SCHEDULES:
        assert f"'{name}'" in annotation


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.1, 0.25, 0.9])
def test_start_peak_and_end(name: str, warmup: float) -> None:
    schedule = SCHEDULES[name]
    start, end = ENDS[name]
    assert schedule(0.0, warmup) == pytest.approx(start, abs=1e-12)
    assert schedule(warmup, warmup) == pytest.approx(1.0, abs=1e-12)
    assert schedule(1.0, warmup) == pytest.approx(end, abs=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_without_warmup_it_starts_at_the_peak(name: str) -> None:
    assert SCHEDULES[name](0.0, 0.0) == pytest.approx(1.0, abs=1e-12)
    assert SCHEDULES[name](1.0, 0.0) == pytest.approx(ENDS[name][1], abs=1e-12)


def test_the_middle_of_each_slope_is_what_its_formula_says() -> None:
    halfway_up, halfway_down = 0.1, 0.6
    expected = {
        "slanted_triangular": (16.5 / 32, 16.5 / 32),
        "one_cycle": ((1 / 25 + 1) / 2, (1 + 1 / 250_000) / 2),
        "cosine": (0.5, 0.5),
        "linear": (0.5, 0.5),
        "constant": (0.5, 1.0),
    }
    for name, (up, down) in expected.items():
        assert SCHEDULES[name](halfway_up, 0.2) == pytest.approx(up)
        assert SCHEDULES[name](halfway_down, 0.2) == pytest.approx(down)
    quarter_of_a_cosine = (1 + math.cos(math.pi / 4)) / 2
    assert SCHEDULES["cosine"](0.4, 0.2) == pytest.approx(quarter_of_a_cosine)


@given(name=st.sampled_from(sorted(SCHEDULES)), steps=st.integers(1, 400), warmup=WARMUPS)
def test_every_step_has_a_positive_rate_and_none_exceeds_the_peak(name: str, steps: int, warmup: float) -> None:
    for step in {0, steps // 3, steps // 2, steps - 1}:
        assert 0 < rate_factor(name, step, steps, warmup) <= 1 + 1e-12


@given(name=st.sampled_from(sorted(SCHEDULES)), steps=st.integers(2, 300), warmup=WARMUPS)
def test_it_rises_to_the_warmup_and_never_afterwards(name: str, steps: int, warmup: float) -> None:
    factors = [rate_factor(name, step, steps, warmup) for step in range(steps)]
    middle = [(step + 0.5) / steps for step in range(steps)]
    rising = [f for f, at in zip(factors, middle, strict=True) if at < warmup]
    falling = [f for f, at in zip(factors, middle, strict=True) if at >= warmup]
    assert all(later > earlier for earlier, later in pairwise(rising))
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(falling))
    if name == "constant":
        assert all(f == 1 for f in falling)
    else:
        assert all(later < earlier for earlier, later in pairwise(falling))


@given(
    name=st.sampled_from(sorted(SCHEDULES)), at=st.floats(0, 1), gap=st.floats(1e-9, 1e-4), warmup=st.floats(0.01, 0.99)
)
def test_it_makes_no_jumps(name: str, at: float, gap: float, warmup: float) -> None:
    near = min(1.0, at + gap)
    steepest = (math.pi / 2) / min(warmup, 1 - warmup)
    jump = abs(SCHEDULES[name](near, warmup) - SCHEDULES[name](at, warmup))
    assert jump <= steepest * (near - at) * (1 + 1e-6) + 1e-9


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 0.99])
def test_a_phase_of_one_step_has_a_rate(name: str, warmup: float) -> None:
    assert 0 < rate_factor(name, 0, 1, warmup) <= 1


@pytest.mark.parametrize("step", [-1, 5, 6])
def test_a_step_outside_the_phase_is_a_mistake(step: int) -> None:
    with pytest.raises(ValueError, match="outside a phase of 5 steps"):
        rate_factor("linear", step, 5, 0.1)
