from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import DataError, TrainingError
from finetune.evaluation.conformal import half_width, interval_report
from finetune.evaluation.intervals import wilson


@given(rows=st.integers(1, 300), tenths=st.integers(1, 9))
def test_the_half_width_is_the_finite_sample_quantile_of_the_errors(rows: int, tenths: int) -> None:
    errors = np.arange(1, rows + 1, dtype=np.float64)
    signs = np.where(np.arange(rows) % 2, 1, -1)
    place = math.ceil((rows + 1) * Fraction(tenths, 10))
    found = half_width((errors * signs)[::-1, None], np.zeros(rows), tenths / 10)
    assert found == (place if place <= rows else None)


def test_nine_rows_are_the_fewest_that_can_promise_nine_in_ten() -> None:
    report = interval_report(np.ones((8, 1)), np.zeros(8), np.ones((3, 1)), np.zeros(3), 15)
    nothing = dict.fromkeys(["interval", "width", "coverage", "coverage_low", "coverage_high"])
    assert report == {**nothing, "level": 0.9, "rows": 8}
    assert half_width(np.arange(9.0)[:, None], np.zeros(9)) == 8


def test_the_interval_holds_nine_in_ten_of_rows_of_the_same_source() -> None:
    generator = np.random.default_rng(0)
    labels = generator.normal(size=(60, 400))
    answers = labels + generator.standard_t(3, size=labels.shape)  # nothing is assumed about the errors
    shares = [
        interval_report(a[:100, None], y[:100], a[100:, None], y[100:], 15)["coverage"] for a, y in zip(answers, labels)
    ]
    # On average (101·0.9 rounded up)/101, give or take the standard error of 60 means.
    assert np.mean(shares) == pytest.approx(91 / 101, abs=3 * np.std(shares) / math.sqrt(60))


def test_the_interval_is_fitted_on_validation_and_measured_on_test() -> None:
    validation, test = np.linspace(-1, 1, 99)[:, None], np.linspace(-2, 2, 200)[:, None]
    report = interval_report(validation, np.zeros(99), test, np.zeros(200), 15)
    assert report["interval"] == np.sort(np.abs(validation[:, 0]))[89]
    assert report["width"] == 2 * report["interval"]
    held = int((np.abs(test) <= report["interval"]).sum())
    assert report["coverage"] == held / 200 < 0.5
    assert (report["coverage_low"], report["coverage_high"]) == wilson(held, 200, 0.95)
    json.dumps(report, allow_nan=False)


def test_answers_that_are_not_finite_are_refused_in_either_split() -> None:
    good, bad, labels = np.zeros((2, 1)), np.array([[np.nan], [0.0]]), np.zeros(2)
    for splits in ((bad, labels, good, labels), (good, labels, bad, labels)):
        with pytest.raises(TrainingError, match="1 of 2 rows"):
            interval_report(*splits, 15)
    with pytest.raises(DataError, match="no rows"):
        half_width(np.zeros((0, 1)), np.zeros(0))


def test_the_promise_is_about_new_rows_so_weights_do_not_move_it() -> None:
    generator = np.random.default_rng(0)
    answers, labels, weights = generator.normal(size=(40, 1)), generator.normal(size=40), generator.random(40) + 0.1
    plain = interval_report(answers, labels, answers, labels, 15)
    assert interval_report(answers, labels, answers, labels, 15, weights, weights) == plain
    assert plain["interval"] > 0
