from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import expit
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from finetune.errors import DataError, TrainingError
from finetune.evaluation.calibration import (
    TEMPERATURE_RANGE,
    calibration_report,
    decision_calibration_report,
    expected_calibration_error,
    fit_temperature,
    reliability_bins,
    softmax,
)


def draw_labels(logits: np.ndarray, seed: int) -> np.ndarray:
    """Labels drawn from softmax(logits), so that these logits are perfectly calibrated."""
    generator = np.random.default_rng(seed)
    return (softmax(logits).cumsum(axis=1) > generator.random((len(logits), 1))).argmax(axis=1)


@st.composite
def scored_rows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    rows, classes, seed = draw(st.integers(1, 40)), draw(st.integers(2, 6)), draw(st.integers(0, 10_000))
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(rows, classes)) * draw(st.floats(0.1, 20))
    return logits.astype(np.float32), generator.integers(0, classes, rows)


@settings(deadline=None, max_examples=20)
@given(rows=scored_rows())
def test_no_temperature_in_the_range_has_a_smaller_loss(rows: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = rows

    def loss(log_temperature: float) -> float:
        return log_loss(
            labels, softmax(logits / np.exp(log_temperature)).clip(1e-300), labels=np.arange(logits.shape[1])
        )

    temperature = fit_temperature(logits, labels)
    if (logits.argmax(axis=1) == labels).all():
        assert temperature == 1.0
        return
    best = minimize_scalar(loss, bounds=np.log(TEMPERATURE_RANGE), method="bounded", options={"xatol": 1e-9})
    assert TEMPERATURE_RANGE[0] <= temperature <= TEMPERATURE_RANGE[1]
    assert loss(np.log(temperature)) <= best.fun + 1e-7


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_that_spoiled_calibrated_logits_is_found(temperature: float) -> None:
    honest = np.random.default_rng(0).normal(size=(20_000, 4)) * 2
    assert fit_temperature(honest * temperature, draw_labels(honest, 1)) == pytest.approx(temperature, rel=0.05)


def test_rows_that_are_all_right_keep_the_temperature_at_one() -> None:
    logits = np.array([[5.0, 0.0], [0.0, 0.2], [3.0, 3.0]])
    assert fit_temperature(logits, np.array([0, 1, 1])) == 1.0
    assert fit_temperature(np.zeros((3, 2)), np.array([0, 1, 1])) == 1.0


def test_logits_that_point_the_wrong_way_are_flattened_to_the_end_of_the_range() -> None:
    assert fit_temperature(np.array([[4.0, 0.0], [0.0, 4.0]]), np.array([1, 0])) == TEMPERATURE_RANGE[1]


def test_logits_that_are_far_too_small_are_sharpened_to_the_end_of_the_range() -> None:
    logits = np.array([[1e-3, 0.0]] * 99 + [[1e-9, 0.0]])
    assert fit_temperature(logits, np.array([0] * 99 + [1])) == TEMPERATURE_RANGE[0]


@settings(deadline=None, max_examples=50)
@given(rows=scored_rows(), bins=st.integers(2, 20))
def test_bins_equal_scikit_learn_s_calibration_curve(rows: tuple[np.ndarray, np.ndarray], bins: int) -> None:
    logits, labels = rows
    probabilities = softmax(logits)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    expected = calibration_curve(right, confidence, n_bins=bins, pos_label=True)
    filled = [b for b in reliability_bins(probabilities, labels, bins) if b["count"]]
    np.testing.assert_allclose([b["accuracy"] for b in filled], expected[0])
    np.testing.assert_allclose([b["confidence"] for b in filled], expected[1])
    counts = np.array([b["count"] for b in filled])
    assert counts.sum() == len(labels)
    ece = (counts / len(labels) * np.abs(expected[0] - expected[1])).sum()
    assert expected_calibration_error(probabilities, labels, bins) == pytest.approx(ece)


def test_calibration_error_of_a_case_worked_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.4, 0.6]])
    labels = np.array([0, 1, 1, 1])
    # Two bins: all in (0.5, 1]; accuracy 3/4, confidence 3.1/4. Ten bins: |1.8 - 1|/4, |0.7 - 1|/4 and |0.6 - 1|/4.
    assert expected_calibration_error(probabilities, labels, 2) == pytest.approx(0.025)
    assert expected_calibration_error(probabilities, labels, 10) == pytest.approx((0.8 + 0.3 + 0.4) / 4)


def test_a_confidence_of_exactly_one_and_an_edge_fall_into_the_bin_below() -> None:
    bins = reliability_bins(np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([0, 0]), 4)
    assert [b["count"] for b in bins] == [0, 1, 0, 1]
    assert bins[0]["confidence"] is None
    assert bins[0]["accuracy"] is None


def test_the_report_is_fitted_on_validation_and_measured_on_test() -> None:
    honest = np.random.default_rng(0).normal(size=(3000, 3)) * 2
    validation, test = honest[:1500] * 3, honest[1500:] * 3
    validation_labels, test_labels = draw_labels(honest[:1500], 1), draw_labels(honest[1500:], 2)
    report = calibration_report(validation, validation_labels, test, test_labels, 15)
    assert report["temperature"] == fit_temperature(validation, validation_labels) != fit_temperature(test, test_labels)
    scaled = softmax(test / report["temperature"])
    assert report["ece_before"] == expected_calibration_error(softmax(test), test_labels, 15)
    assert report["ece_after"] == expected_calibration_error(scaled, test_labels, 15) < 0.3 * report["ece_before"]
    assert report["nll_after"] == pytest.approx(log_loss(test_labels, scaled))
    assert report["nll_after"] < report["nll_before"]
    truth = np.eye(3)[test_labels]
    assert report["brier_before"] == pytest.approx(((softmax(test) - truth) ** 2).sum(axis=1).mean())
    assert report["brier_after"] == pytest.approx(((scaled - truth) ** 2).sum(axis=1).mean())
    assert report["brier_after"] < report["brier_before"]
    assert sum(b["count"] for b in report["bins_after"]) == 1500
    assert len(report["bins_before"]) == 15
    json.dumps(report, allow_nan=False)


@settings(deadline=None, max_examples=30)
@given(rows=scored_rows())
def test_the_report_of_any_rows_is_strict_json(rows: tuple[np.ndarray, np.ndarray]) -> None:
    json.dumps(calibration_report(*rows, *rows, 15), allow_nan=False)


def test_non_finite_logits_are_refused_in_either_split() -> None:
    good, bad, labels = np.zeros((2, 2)), np.array([[0.0, np.nan], [0.0, 0.0]]), np.array([0, 1])
    for splits in ((bad, labels, good, labels), (good, labels, bad, labels)):
        with pytest.raises(TrainingError, match="1 of 2 rows"):
            calibration_report(*splits, 15)


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(DataError, match="no rows"):
        fit_temperature(np.zeros((0, 2)), np.zeros(0, dtype=int))


def test_softmax_of_huge_logits_is_finite_and_sums_to_one() -> None:
    probabilities = softmax(np.array([[3e38, -3e38, 0.0], [-1e5, -1e5, -1e5]], dtype=np.float32))
    np.testing.assert_allclose(probabilities, [[1, 0, 0], [1 / 3] * 3])


def decided(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits (rows, 3) and labels drawn from them, so that these logits are perfectly calibrated."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(rows, 3)) * 2 - 1
    return logits, (generator.random(logits.shape) < expit(logits)).astype(np.float32)


def test_decisions_on_several_labels_share_one_temperature() -> None:
    (validation, validation_labels), (test, test_labels) = decided(1500, 0), decided(1500, 1)
    report = decision_calibration_report(validation * 3, validation_labels, test * 3, test_labels, 10)
    assert report["temperature"] == pytest.approx(3, rel=0.05)
    truth, scaled = test_labels.ravel(), expit(test * 3 / report["temperature"]).ravel()
    assert report["nll_after"] == pytest.approx(log_loss(truth, scaled))
    assert report["nll_before"] == pytest.approx(log_loss(truth, expit(test * 3).ravel()))
    # Over both answers, so twice scikit-learn's binary score.
    assert report["brier_after"] == pytest.approx(2 * brier_score_loss(truth, scaled))
    confidence, right = np.maximum(scaled, 1 - scaled), (scaled > 0.5) == truth
    accuracy, mean = calibration_curve(right, confidence, n_bins=10, pos_label=True)
    filled = [b for b in report["bins_after"] if b["count"]]
    np.testing.assert_allclose([b["accuracy"] for b in filled], accuracy)
    np.testing.assert_allclose([b["confidence"] for b in filled], mean)
    assert sum(b["count"] for b in report["bins_after"]) == 4500
    assert report["ece_after"] < 0.3 * report["ece_before"]
    json.dumps(report, allow_nan=False)


def test_decisions_that_are_all_right_keep_the_temperature_at_one() -> None:
    labels = np.array([[1, 0], [0, 1]], dtype=np.float32)
    report = decision_calibration_report(labels * 4 - 2, labels, labels * 4 - 2, labels, 5)
    assert report["temperature"] == 1.0
    assert report["bins_before"] == report["bins_after"]


def test_decisions_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="do not fit"):
        decision_calibration_report(np.zeros((2, 3)), np.zeros((2, 2)), np.zeros((2, 2)), np.zeros((2, 2)), 5)


@settings(deadline=None, max_examples=25)
@given(rows=scored_rows(), seed=st.integers(0, 1000))
def test_a_calibration_of_weights_that_are_whole_is_that_of_repeated_rows(
    rows: tuple[np.ndarray, np.ndarray], seed: int
) -> None:
    logits, labels = rows
    validation, test = np.random.default_rng(seed).integers(1, 5, (2, len(labels)))
    weighted = calibration_report(*rows, *rows, 7, validation.astype(float), test.astype(float))
    many, tested = (np.repeat(np.arange(len(labels)), counts) for counts in (validation, test))
    repeated = calibration_report(logits[many], labels[many], logits[tested], labels[tested], 7)
    assert list(weighted) == list(repeated)
    for name, value in repeated.items():
        if not name.startswith("bins"):
            assert weighted[name] == pytest.approx(value, rel=1e-5, abs=1e-9), name
    # A bin still says how many rows it holds, while its means follow the weights.
    plain = reliability_bins(softmax(logits), labels, 7)
    assert [b["count"] for b in weighted["bins_before"]] == [b["count"] for b in plain]
    for b, expected in zip(weighted["bins_before"], repeated["bins_before"]):
        assert (b["confidence"] is None) == (expected["confidence"] is None)
        if b["confidence"] is not None:
            assert (b["confidence"], b["accuracy"]) == pytest.approx((expected["confidence"], expected["accuracy"]))


def test_the_temperature_follows_the_rows_that_weigh_more() -> None:
    honest = np.random.default_rng(0).normal(size=(4000, 3)) * 2
    logits = np.concatenate([honest[:2000] * 3, honest[2000:] * 0.5])
    labels = draw_labels(honest, 1)
    first, second = (np.where(np.arange(4000) < 2000, *pair) for pair in ((1.0, 1e-3), (1e-3, 1.0)))
    assert fit_temperature(logits, labels, first) == pytest.approx(3, rel=0.15)
    assert fit_temperature(logits, labels, second) == pytest.approx(0.5, rel=0.15)
    assert 0.6 < fit_temperature(logits, labels) < 2.5


def test_weighted_calibration_numbers_equal_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    logits, labels, weights = generator.normal(size=(60, 3)), generator.integers(0, 3, 60), generator.random(60) + 0.1
    report = calibration_report(logits, labels, logits, labels, 10, weights, weights)
    probabilities = softmax(logits)
    assert report["nll_before"] == pytest.approx(log_loss(labels, probabilities, sample_weight=weights))
    errors = ((probabilities - np.eye(3)[labels]) ** 2).sum(axis=1)
    assert report["brier_before"] == pytest.approx(np.average(errors, weights=weights))
    scaled = calibration_report(logits, labels, logits, labels, 10, weights * 40, weights * 0.01)
    for name in ("temperature", "ece_before", "ece_after", "nll_after", "brier_after"):
        assert scaled[name] == pytest.approx(report[name], rel=1e-6), name


def test_every_decision_of_a_row_counts_what_the_row_does() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(50, 3)) * 3
    labels = (generator.random((50, 3)) < expit(logits / 2)).astype(float)
    counts = generator.integers(1, 4, 50)
    many = np.repeat(np.arange(50), counts)
    weighted = decision_calibration_report(logits, labels, logits, labels, 5, counts, counts)
    repeated = decision_calibration_report(logits[many], labels[many], logits[many], labels[many], 5)
    plain = decision_calibration_report(logits, labels, logits, labels, 5)
    for name in ("temperature", "ece_before", "ece_after", "nll_before", "nll_after", "brier_before", "brier_after"):
        assert weighted[name] == pytest.approx(repeated[name], rel=1e-6), name
        assert weighted[name] != pytest.approx(plain[name], rel=1e-6), name
    assert sum(b["count"] for b in weighted["bins_after"]) == 150


@pytest.mark.parametrize("report", [calibration_report, decision_calibration_report])
@pytest.mark.parametrize("weights", [(np.array([1.0, 0.0]), None), (None, np.array([1.0, np.nan])), (np.ones(4), None)])
def test_weights_that_cannot_be_are_refused_in_either_split(report, weights: tuple) -> None:
    labels = np.eye(2) if report is decision_calibration_report else np.array([0, 1])
    with pytest.raises(DataError, match=r"evaluation: .*weights"):
        report(np.eye(2), labels, np.eye(2), labels, 5, *weights)
