from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from finetune.errors import DataError, RecipeError, TrainingError
from finetune.evaluation.intervals import resampled_weights
from finetune.evaluation.regression import (
    FORMULAS,
    METRICS,
    Answers,
    agreement,
    check_metrics,
    drop,
    evaluate,
    hardness,
    higher_is_better,
    measure,
    score,
    spread,
)


def reference(metric: str, answers: np.ndarray, labels: np.ndarray) -> float | None:
    """scikit-learn and scipy; None where the labels are constant, 0 for correlations where the answers are."""
    if metric in ("r2", "pearson", "spearman") and len(np.unique(labels)) == 1:
        return None
    if metric == "r2":
        return sk.r2_score(labels, answers)
    if metric in ("pearson", "spearman"):
        if len(np.unique(answers)) == 1:
            return 0.0
        function = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}[metric]
        return float(function(labels, answers).statistic)
    functions = {"mae": sk.mean_absolute_error, "rmse": sk.root_mean_squared_error, "loss": sk.mean_squared_error}
    return functions[metric](labels, answers)


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Answers and labels (N,), often few different values, so that there are ties and constant columns."""
    rows, seed, values = draw(st.integers(1, 15)), draw(st.integers(0, 10_000)), draw(st.sampled_from([1, 2, 4, 1000]))
    generator = np.random.default_rng(seed)
    answers, labels = generator.integers(0, values, rows) / 3, generator.integers(0, max(2, values // 2), rows) / 3
    return answers.astype(np.float32), (labels * draw(st.sampled_from([1, 1e-4, 1e5]))).astype(np.float32)


@settings(max_examples=80)
@given(case=cases())
def test_every_built_in_metric_of_numbers_equals_scikit_learn_and_scipy(case: tuple[np.ndarray, np.ndarray]) -> None:
    answers, labels = (part.astype(np.float64) for part in case)
    for metric, value in measure(METRICS, answers[:, None], labels).items():
        expected = reference(metric, answers, labels)
        assert value == (None if expected is None else pytest.approx(expected, rel=1e-9, abs=1e-9)), metric


@settings(max_examples=30)
@given(case=cases(), seed=st.integers(0, 2**31 - 1))
def test_every_bootstrap_resample_of_numbers_scores_as_scikit_learn_scores_its_rows(
    case: tuple[np.ndarray, np.ndarray], seed: int
) -> None:
    rows = Answers(*(part.astype(np.float64) for part in case))
    (weights,) = resampled_weights(len(rows.labels), 3, seed)
    for metric, formula in FORMULAS.items():
        for value, counts in zip(formula(rows, weights), weights):
            drawn = np.repeat(np.arange(len(counts)), counts.astype(int))
            expected = reference(metric, rows.answers[drawn], rows.labels[drawn])
            expected = np.nan if expected is None else expected
            assert value == pytest.approx(expected, rel=1e-9, abs=1e-9, nan_ok=True), metric


@settings(max_examples=30)
@given(case=cases(), seed=st.integers(0, 100))
def test_the_evaluation_of_numbers_is_strict_json_and_values_lie_in_their_intervals(
    case: tuple[np.ndarray, np.ndarray], seed: int
) -> None:
    answers, labels = case
    result = evaluate(answers[:, None], labels, (), METRICS, seed, resamples=20)
    json.dumps(result, allow_nan=False)
    assert list(result) == ["rows", *METRICS, "label_std", "residuals", "points", "histogram"]
    for metric in METRICS:
        value, low, high = (result[metric][key] for key in ("value", "low", "high"))
        assert (value is None and low is None and high is None) or low <= value <= high
    assert sum(result["histogram"]["labels"]) == sum(result["histogram"]["answers"]) == len(labels)


def test_intervals_of_numbers_have_the_width_of_the_standard_error() -> None:
    generator = np.random.default_rng(0)
    labels = generator.normal(size=400)
    answers = labels + generator.normal(size=400)
    result = evaluate(answers[:, None], labels, (), ["mae", "pearson"], resamples=2000)
    width = result["mae"]["high"] - result["mae"]["low"]
    assert width == pytest.approx(2 * 1.96 * np.abs(answers - labels).std() / 20, rel=0.1)
    fisher = stats.pearsonr(labels, answers).confidence_interval(0.95)
    assert (result["pearson"]["low"], result["pearson"]["high"]) == pytest.approx(fisher, abs=0.02)


def test_a_bootstrap_in_small_parts_draws_the_same_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.evaluation.intervals._CHUNK", 100)
    parts = list(resampled_weights(10, 25, 0))
    assert [len(part) for part in parts] == [2] * 12 + [1]
    assert all((part.sum(axis=1) == 10).all() for part in parts)


def test_residuals_points_and_histogram_describe_the_answers() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 3000) / 3
    answers = labels + generator.normal(size=3000) * 0.1 + 0.5
    result = evaluate(answers[:, None], labels, (), ["mae"], resamples=10)
    errors, residuals = answers - labels, result["residuals"]
    assert list(residuals) == ["min", "p05", "p25", "median", "p75", "p95", "max", "mean"]
    assert list(residuals.values())[:-1] == pytest.approx(np.quantile(errors, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]))
    assert residuals["mean"] == pytest.approx(errors.mean())
    points = np.array(result["points"])
    assert points.shape == (500, 2)
    pairs = {(float(truth), float(answer)) for truth, answer in zip(labels, answers)}
    assert {(float(truth), float(answer)) for truth, answer in points} <= pairs
    # Each of the four labels has a quarter of the rows, and so of the points.
    assert np.unique(points[:, 0], return_counts=True)[1] == pytest.approx(np.full(4, 125), abs=10)
    expected = np.histogram(labels, result["histogram"]["edges"])[0].tolist()
    assert result["histogram"]["labels"] == expected
    assert result["histogram"]["edges"][0] == min(labels.min(), answers.min())
    assert len(result["histogram"]["edges"]) == 21
    assert result["label_std"] == pytest.approx(labels.std())


def test_few_rows_give_each_row_as_a_point() -> None:
    result = evaluate(np.array([[3.0], [1.0]]), np.array([2.0, 1.0]), (), [], resamples=5)
    assert result["points"] == [[1.0, 1.0], [2.0, 3.0]]


@pytest.mark.parametrize("value", [0.0, 1e30, -2.0])
def test_constant_labels_have_errors_but_no_correlation(value: float) -> None:
    labels, answers = np.full(5, value), np.full((5, 1), value)
    result = evaluate(answers, labels, (), METRICS, resamples=5)
    assert result["mae"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert result["r2"] == result["pearson"] == result["spearman"] == {"value": None, "low": None, "high": None}
    assert sum(result["histogram"]["labels"]) == 5
    with pytest.raises(DataError, match="'r2' is undefined because all 5 labels are equal; add rows or choose mae"):
        score("r2", answers, labels)


def test_agreement_of_numbers_allows_a_twentieth_of_the_labels_spread() -> None:
    labels = np.array([0.0, 20.0])  # standard deviation 10
    first = np.array([[1.0], [2.0]])
    assert agreement(first, first + np.array([[0.49], [0.51]]), labels) == 0.5
    assert agreement(first, first, np.array([3.0, 3.0])) == 1.0


@settings(max_examples=40)
@given(case=cases(), scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100))
def test_drop_and_agreement_do_not_depend_on_the_labels_unit(
    case: tuple[np.ndarray, np.ndarray], scale: float, shift: float
) -> None:
    answers, labels = (part.astype(np.float64) for part in case)
    assume(labels.std() > 0.1)
    other = answers + np.random.default_rng(0).normal(size=len(answers)) * 0.1
    for metric in METRICS:
        units = []
        for factor, offset in ((1.0, 0.0), (scale, shift)):
            y = labels * factor + offset
            scores = [score(metric, (a * factor + offset)[:, None], y) for a in (answers, other)]
            units.append(drop(metric, scores[0], scores[1], y))
        assert units[0] == pytest.approx(units[1], rel=1e-4, abs=1e-6), metric


def test_a_drop_of_an_error_is_in_units_of_the_labels_spread_and_positive_where_worse() -> None:
    labels = np.array([0.0, 20.0])
    assert drop("mae", 1.0, 3.0, labels) == pytest.approx(0.2)
    assert drop("rmse", 3.0, 1.0, labels) == pytest.approx(-0.2)
    assert drop("loss", 1.0, 11.0, labels) == pytest.approx(0.1)
    assert drop("r2", 0.9, 0.8, labels) == pytest.approx(0.1)
    assert [m for m in METRICS if higher_is_better(m)] == ["r2", "pearson", "spearman"]


def test_a_spread_can_always_divide() -> None:
    assert [spread(np.array(labels)) for labels in ([1.0, 3.0], [-4.0, -4.0], [0.0])] == [1.0, 4.0, 1.0]


def test_the_hardest_row_is_the_one_that_is_furthest_off() -> None:
    assert hardness(np.array([[1.0], [5.0], [-3.0]]), np.array([1.5, 4.0, 0.0])).tolist() == [0.5, 1.0, 3.0]


@pytest.mark.parametrize(
    ("logits", "labels", "words"),
    [
        (np.zeros((0, 1)), np.zeros(0), "no rows"),
        (np.zeros((2, 2)), np.zeros(2), "do not fit"),
        (np.zeros((2, 1)), np.zeros((2, 1)), "do not fit"),
        (np.zeros((3, 1)), np.zeros(2), "do not fit"),
        (np.zeros((2, 1)), np.array([0.0, np.nan]), "1 of 2 labels are NaN or infinite"),
    ],
)
def test_numbers_that_do_not_belong_together_are_refused(logits: np.ndarray, labels: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words):
        score("mae", logits, labels)


def test_answers_may_come_with_or_without_their_own_axis() -> None:
    labels = np.array([1.0, 2.0, 4.0])
    assert score("mae", labels + 1, labels) == score("mae", labels[:, None] + 1, labels) == 1.0


def test_non_finite_answers_are_refused_with_the_number_of_rows() -> None:
    with pytest.raises(TrainingError, match="1 of 2 rows have NaN or infinite logits"):
        score("mae", np.array([[np.inf], [0.0]]), np.zeros(2))


def test_unknown_metrics_are_refused_for_numbers() -> None:
    check_metrics(METRICS)
    for call in (lambda: check_metrics(["pearsn"]), lambda: higher_is_better("pearsn")):
        with pytest.raises(RecipeError, match="unknown metric 'pearsn'; did you mean 'pearson'"):
            call()
