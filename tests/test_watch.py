"""What a run tells while it goes on, and how it heeds a wish to stop."""

from __future__ import annotations

import pytest

from finetune.errors import Interrupted
from finetune.train.events import Event, Notice, StageEnded, StageStarted
from finetune.watch import Watch


def test_stages_of_one_name_add_up_and_are_told() -> None:
    told: list[Event] = []
    watch = Watch([told.append], lambda: False)
    for text in ("first", "second"):
        with watch.stage("evaluation", "rows") as say:
            say(text)
    assert [event.summary for event in told if isinstance(event, StageEnded)] == ["first", "second"]
    assert sum(isinstance(event, StageStarted) for event in told) == 2
    assert 0 <= watch.timings["evaluation"] <= watch.elapsed()


def test_a_wish_to_stop_is_heeded_before_each_stage_and_each_step_of_one() -> None:
    told: list[Event] = []
    wishes = iter([False, False, True, True])
    watch = Watch([told.append], lambda: next(wishes))
    with watch.stage("export"):
        watch.step("first step")
        with pytest.raises(Interrupted, match=r"^stopped before: second step$"):
            watch.step("second step")
    assert [event.message for event in told if isinstance(event, Notice)] == ["first step"]
    with pytest.raises(Interrupted, match=r"^stopped before report$"), watch.stage("report"):
        pytest.fail("the stage began")
