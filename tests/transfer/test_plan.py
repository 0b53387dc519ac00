"""A recipe and a number of layer groups become phases."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import RecipeError
from finetune.recipe import L2SPSettings, PhaseSettings, TrainSettings, TransferSettings
from finetune.transfer.learning_rates import discriminative_lrs
from finetune.transfer.plan import Plan, build_plan

TRAIN = TrainSettings()


def plan(groups: int = 8, train: TrainSettings = TRAIN, **transfer: Any) -> Plan:
    return build_plan(TransferSettings(**transfer), train, groups)


@pytest.mark.parametrize(
    ("transfer", "counts", "names"),
    [
        ({}, [1, 2, 3, 4, 5, 6, 7, 8], ["head", "top 2", "top 3", "top 4", "top 5", "top 6", "top 7", "all"]),
        ({"unfreeze": "gradual", "step": 2}, [1, 3, 5, 7, 8], ["head", "top 3", "top 5", "top 7", "all"]),
        ({"unfreeze": "gradual", "step": 2, "depth": 4}, [1, 3, 4], ["head", "top 3", "top 4"]),
        ({"unfreeze": "lp_ft"}, [1, 8], ["head", "all"]),
        ({"unfreeze": "lp_ft", "depth": 3}, [1, 3], ["head", "top 3"]),
        ({"unfreeze": "head_only"}, [1], ["head"]),
        ({"unfreeze": "full"}, [8], ["all"]),
        ({"unfreeze": "full", "depth": 2}, [2], ["top 2"]),
        ({"unfreeze": "full", "depth": 8}, [8], ["all"]),
    ],
)
def test_the_ways_to_unfreeze(transfer: dict[str, Any], counts: list[int], names: list[str]) -> None:
    found = plan(**transfer)
    assert [phase.trainable for phase in found.phases] == [tuple(range(8 - count, 8)) for count in counts]
    assert [phase.count for phase in found.phases] == counts
    assert [phase.name for phase in found.phases] == names
    assert found.may_train == found.phases[-1].trainable


def test_head_epochs_are_for_the_head_alone() -> None:
    assert [p.epochs for p in plan(4, head_epochs=3, epochs=2).phases] == [3, 2, 2, 2]
    assert [p.epochs for p in plan(4, unfreeze="full", head_epochs=3, epochs=2).phases] == [2]
    assert [p.epochs for p in plan(4, unfreeze="head_only", head_epochs=3, epochs=2).phases] == [3]


@given(groups=st.integers(2, 30), step=st.integers(1, 30), top=st.floats(1e-6, 1e-2), decay=st.floats(0.3, 1.0))
def test_frozen_groups_have_no_rate_and_unfreezing_changes_no_other(
    groups: int, step: int, top: float, decay: float
) -> None:
    rates = discriminative_lrs(top, decay, groups)
    for phase in plan(groups, step=step, learning_rate=top, decay=decay).phases:
        frozen = groups - len(phase.trainable)
        assert phase.learning_rates == (*[0.0] * frozen, *rates[frozen:])


def test_the_head_alone_may_have_a_rate_of_its_own() -> None:
    found = plan(4, unfreeze="lp_ft", learning_rate=1e-4, head_learning_rate=1e-2, decay=0.5)
    assert found.phases[0].learning_rates == (0.0, 0.0, 0.0, 1e-2)
    assert found.phases[1].learning_rates == pytest.approx((1.25e-5, 2.5e-5, 5e-5, 1e-4))


def test_what_a_phase_leaves_out_falls_back() -> None:
    train = TrainSettings(schedule="cosine", warmup=0.2)
    phases = (
        PhaseSettings(trainable=1),
        PhaseSettings(
            trainable="all", epochs=4, name="thaw", learning_rate=3e-3, decay=0.5, schedule="constant", patience=2
        ),
        PhaseSettings(trainable=2, image_size=96),
    )
    shared = {"learning_rate": 1e-3, "head_learning_rate": 2e-3, "decay": 1.0, "patience": 7}
    head, thaw, two = plan(3, train, phases=phases, **shared).phases
    assert (head.name, head.epochs, head.schedule, head.patience, head.warmup) == ("head", 1, "cosine", 7, 0.2)
    assert head.learning_rates == (0.0, 0.0, 2e-3)
    assert (thaw.name, thaw.epochs, thaw.schedule, thaw.patience) == ("thaw", 4, "constant", 2)
    assert thaw.learning_rates == pytest.approx((7.5e-4, 1.5e-3, 3e-3))
    assert (two.name, two.learning_rates) == ("top 2", (0.0, 1e-3, 1e-3))
    assert (head.image_size, thaw.image_size, two.image_size) == (None, None, 96)


def test_a_depth_that_the_backbone_does_not_have_is_refused() -> None:
    for unfreeze in ("gradual", "lp_ft", "full"):
        with pytest.raises(RecipeError, match=r"^transfer\.depth: 9, but this backbone has only 8 layer groups"):
            plan(8, unfreeze=unfreeze, depth=9)
    assert plan(8, depth=8).may_train == plan(8, depth="all").may_train == tuple(range(8))


def test_a_phase_that_trains_more_than_there_is_is_refused_by_its_place() -> None:
    phases = (PhaseSettings(trainable=1), PhaseSettings(trainable=9))
    with pytest.raises(RecipeError, match=r"^transfer\.phases\[1\]\.trainable: 9, but this backbone has only 8"):
        plan(8, phases=phases)


@pytest.mark.parametrize(
    ("transfer", "key", "phase"),
    [
        ({"learning_rate": 1e-2, "l2sp": {"alpha": 100.0}}, "alpha", "head"),
        ({"learning_rate": 1e-4, "head_learning_rate": 1e-2, "l2sp": {"alpha": 200.0}}, "alpha", "head"),
        ({"learning_rate": 1e-4, "l2sp": {"beta": 1e5}}, "beta", "head"),
        ({"unfreeze": "auto", "head_learning_rate": 1e-4, "learning_rate": 1e-1, "l2sp": {"alpha": 10.0}}, "alpha", "auto"),
        (
            {"phases": (PhaseSettings(trainable=1), PhaseSettings(trainable=3, learning_rate=0.5)), "l2sp": {"alpha": 2.0}},
            "alpha",
            "top 3",
        ),
    ],
)  # fmt: skip
def test_a_decoupled_pull_past_its_target_is_refused(transfer: dict[str, Any], key: str, phase: str) -> None:
    strengths = transfer.pop("l2sp")
    with pytest.raises(RecipeError, match=rf"^transfer\.l2sp\.{key}: .* in phase '{phase}'"):
        plan(8, **transfer, l2sp=L2SPSettings(coupling="decoupled", **strengths))
    plan(8, **transfer, l2sp=L2SPSettings(coupling="loss", **strengths))


def test_a_strong_decoupled_pull_that_stays_short_of_its_target_is_fine() -> None:
    plan(8, learning_rate=1e-3, l2sp=L2SPSettings(coupling="decoupled", alpha=900.0, beta=900.0))


def test_auto_trains_the_head_and_then_what_it_will_choose() -> None:
    found = plan(6, unfreeze="auto", auto_groups=2, head_epochs=3, epochs=4, learning_rate=1e-3, head_learning_rate=1e-2, decay=0.5)  # fmt: skip
    head, auto = found.phases
    assert (head.name, head.trainable, head.epochs, head.choose) == ("head", (5,), 3, 0)
    assert head.learning_rates == (0.0, 0.0, 0.0, 0.0, 0.0, 1e-2)
    assert (auto.name, auto.trainable, auto.epochs, auto.choose, auto.count) == ("auto", (5,), 4, 2, 3)
    assert found.may_train == auto.may_train == (0, 1, 2, 3, 4, 5)


def test_a_phase_that_has_chosen_has_the_discriminative_rates_of_its_depths() -> None:
    auto = plan(6, unfreeze="auto", auto_groups=2, learning_rate=1e-3, decay=0.5).phases[1]
    chosen = auto.chosen([4, 1])
    assert (chosen.trainable, chosen.choose, chosen.count) == ((1, 4, 5), 0, 3)
    assert chosen.may_train == (1, 4, 5)
    assert chosen.learning_rates == pytest.approx((0.0, 1e-3 / 16, 0.0, 0.0, 5e-4, 1e-3))
    assert auto.choose == 2, "the plan itself stays as it is"


def test_auto_cannot_choose_more_groups_than_there_are_below_the_head() -> None:
    assert plan(4, unfreeze="auto", auto_groups=3).phases[1].count == 4
    with pytest.raises(
        RecipeError, match=r"^transfer\.auto_groups: 4, but this backbone has only 3 layer groups below the head"
    ):
        plan(4, unfreeze="auto", auto_groups=4)
