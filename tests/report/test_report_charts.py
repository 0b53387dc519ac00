"""Scales, ticks and the charts drawn with them."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from report_samples import gradual, make_bins, make_history

from finetune.report import charts, quality_charts, svg, units

GROUPS = ["embeddings", "layer.0", "layer.1", "classifier"]


@given(low=st.floats(-1e6, 1e6), span=st.floats(0, 1e6))
@example(low=0.0, span=5e-324)
@example(low=5e-324, span=0.0)
@example(low=-1e-291, span=2e-291)
@settings(deadline=None)
def test_linear_ticks_cover_the_values_and_rise(low: float, span: float) -> None:
    ticks = svg.linear_ticks(low, low + span)
    assert 2 <= len(ticks) <= 8
    assert ticks == sorted(set(ticks))
    slack = 1e-6 * max(1.0, abs(low), span)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= low + span - slack


@given(low=st.floats(-12, 6), decades=st.floats(0, 8))
@settings(deadline=None)
def test_log_ticks_cover_the_values_and_rise(low: float, decades: float) -> None:
    first, last = 10**low, 10 ** (low + decades)
    ticks = svg.log_ticks(first, last)
    assert len(ticks) >= 2
    assert ticks == sorted(set(ticks))
    assert ticks[0] <= first * (1 + 1e-6)
    assert ticks[-1] >= last * (1 - 1e-6)


@pytest.mark.parametrize("rate", [1e-4, 2e-4, 5e-4, 3e-5, 1.0])
def test_a_single_rate_lies_inside_its_log_axis(rate: float) -> None:
    ticks = svg.log_ticks(rate, rate)
    assert ticks[0] <= rate <= ticks[-1]
    assert ticks[0] < ticks[-1]


def test_scale_maps_ends_to_ends_and_keeps_values_inside() -> None:
    scale = svg.Scale(1e-4, 1e-2, 100, 0, log=True)
    assert (scale(1e-4), scale(1e-3), scale(1e-2)) == pytest.approx((100, 50, 0))
    assert (scale(0.0), scale(5.0)) == (100, 0)


def test_spans_follow_the_history_and_name_what_thaws() -> None:
    plan = gradual(GROUPS, epochs=2, head_epochs=3)[:3]
    plan[1]["epochs_run"] = 1
    spans = charts.spans(make_history(plan, GROUPS), plan)
    assert [(s.start, s.end) for s in spans] == [(0, 3), (3, 4), (4, 6)]
    assert [s.thawed for s in spans] == [("classifier",), ("layer.1",), ("layer.0",)]


def test_epoch_chart_marks_each_unfreezing_once() -> None:
    plan = gradual(GROUPS, epochs=1, head_epochs=2)
    history = make_history(plan, GROUPS)
    series = charts.Series("loss", "red", tuple((i + 1.0, row["train_loss"]) for i, row in enumerate(history)))
    drawn = charts.epoch_chart("A chart.", charts.spans(history, plan), [series], units.significant, units.plain)
    assert drawn.count('class="thaw"') == 3
    assert "unfreezes layer.0" in drawn
    assert drawn.count('class="dot"') == len(history)


def test_epoch_chart_without_values_is_left_out() -> None:
    span = charts.Span(1, "head", 0, 1, ())
    empty = charts.Series("loss", "red", ((1.0, None),))
    assert charts.epoch_chart("A chart.", [span], [empty], units.significant, units.plain) == ""


def test_line_breaks_where_a_value_is_missing() -> None:
    path = svg.polyline([(0, 0), (1, 1), None, (3, 3), (4, 4)])
    assert re.findall(r"[ML]", path) == ["M", "L", "M", "L"]


def test_freeze_map_fills_exactly_the_groups_that_trained() -> None:
    drawn = charts.freeze_map(GROUPS, gradual(GROUPS, epochs=1, head_epochs=1))
    assert drawn.count('class="trains"') == 1 + 2 + 3 + 4
    assert drawn.count('class="frozen"') == 3 + 2 + 1
    assert drawn.count('class="new"') == 4
    assert drawn.index(">classifier<") < drawn.index(">embeddings<")


def test_confusion_matrix_tells_right_from_wrong() -> None:
    drawn = quality_charts.confusion_matrix(["a", "b"], [[8, 2], [0, 10]])
    assert drawn.count('class="right"') == 2
    assert drawn.count('class="wrong"') == 1
    assert drawn.count('class="empty"') == 1
    assert "a taken for b: 2 of 10" in drawn
    assert "18 of 20 rows lie on the diagonal" in drawn


def test_confusion_matrix_of_a_label_without_rows_is_drawn() -> None:
    assert "nan" not in quality_charts.confusion_matrix(["a", "b"], [[0, 0], [1, 3]])


def test_confusion_matrix_of_many_labels_draws_only_cells_with_rows() -> None:
    names, diagonal = [f"label {i}" for i in range(50)], [[int(i == j) for j in range(50)] for i in range(50)]
    drawn = quality_charts.confusion_matrix(names, diagonal)
    assert (drawn.count('class="right"'), drawn.count('class="empty"')) == (50, 1)
    assert quality_charts.confusion_matrix(["x"] * 101, [[0] * 101] * 101) == ""


def test_reliability_draws_only_bins_with_rows() -> None:
    bins = make_bins(200, 0.1)
    filled = sum(1 for b in bins if b["count"])
    assert quality_charts.reliability(bins, 0.02, "before").count('class="bubble"') == filled
    assert quality_charts.reliability([b | {"count": 0} for b in bins], 0.02, "before") == ""


def test_interval_chart_draws_a_bar_only_where_an_interval_is_known() -> None:
    rows = [
        quality_charts.Estimate("baseline", 0.5, None, None),
        quality_charts.Estimate("ours", 0.9, 0.85, 0.94, ours=True),
    ]
    drawn = quality_charts.intervals(rows, "accuracy", "accuracy")
    assert drawn.count('class="whisker') == 1
    assert drawn.count('class="estimate') == 2
    assert "85.0–94.0" in drawn
