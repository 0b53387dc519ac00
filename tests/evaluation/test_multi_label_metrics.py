from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn import metrics as sk

from finetune.errors import DataError, RecipeError, TrainingError
from finetune.evaluation.intervals import resampled_weights, wilson
from finetune.evaluation.multi_label import (
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
)


def scikit_learn(metric: str, logits: np.ndarray, labels: np.ndarray) -> float | None:
    """The reference; macro means over the labels that occur, as truth or (counts) as answer."""
    logits, labels, given = logits.astype(np.float64), labels.astype(int), (logits > 0).astype(int)
    if metric == "loss":
        return sk.log_loss(labels.ravel(), expit(logits).ravel(), labels=[0, 1])
    if metric == "exact_match":
        return sk.accuracy_score(labels, given)
    if metric == "label_accuracy":
        return 1 - sk.hamming_loss(labels, given)
    if metric == "average_precision_macro":
        had = labels.any(axis=0)
        return sk.average_precision_score(labels[:, had], logits[:, had], average="macro") if had.any() else None
    kind, average = metric.split("_")
    seen = np.flatnonzero(labels.any(axis=0) | given.any(axis=0))
    if not len(seen):
        return 0.0
    function = {"f1": sk.f1_score, "precision": sk.precision_score, "recall": sk.recall_score}[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of one label only
        if len(seen) == 1:
            return function(labels[:, seen[0]], given[:, seen[0]], zero_division=0)
        return function(labels, given, labels=seen, average=average, zero_division=0)


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels (N, C); few rows and few different logits, so there are ties, and labels that never occur."""
    rows, classes, seed = draw(st.integers(1, 20)), draw(st.integers(1, 5)), draw(st.integers(0, 10_000))
    generator = np.random.default_rng(seed)
    logits = generator.integers(-3, 3, (rows, classes)) + draw(st.sampled_from([0.0, 0.5]))
    share = draw(st.sampled_from([0.05, 0.3, 0.7]))
    return logits.astype(np.float32), (generator.random((rows, classes)) < share).astype(np.float32)


@settings(max_examples=40)
@given(case=cases())
def test_every_built_in_metric_of_several_labels_equals_scikit_learn(case: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = case
    for metric, value in measure(METRICS, logits, labels).items():
        expected = scikit_learn(metric, logits, labels)
        assert value == (None if expected is None else pytest.approx(expected, abs=1e-12)), metric


@settings(max_examples=10)
@given(case=cases(), seed=st.integers(0, 2**31 - 1))
def test_every_bootstrap_resample_of_decisions_scores_as_scikit_learn_scores_its_rows(
    case: tuple[np.ndarray, np.ndarray], seed: int
) -> None:
    answers = Answers(*(part.astype(np.float64) for part in case))
    (weights,) = resampled_weights(len(answers.labels), 3, seed)
    assert (weights.sum(axis=1) == len(answers.labels)).all()
    for metric, formula in FORMULAS.items():
        for value, counts in zip(formula(answers, weights), weights):
            rows = np.repeat(np.arange(len(counts)), counts.astype(int))
            expected = scikit_learn(metric, answers.logits[rows], answers.labels[rows])
            assert value == pytest.approx(np.nan if expected is None else expected, abs=1e-12, nan_ok=True), metric


@settings(max_examples=20)
@given(case=cases())
def test_per_class_numbers_of_several_labels_equal_scikit_learn(case: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = case
    names = [f"label {k}" for k in range(labels.shape[1])]
    result = evaluate(logits, labels, names, [], resamples=5)
    given = logits > 0
    for k, name in enumerate(names):
        found, truth = result["per_class"][name], labels[:, k].astype(int)
        p, r, f, _ = sk.precision_recall_fscore_support(truth, given[:, k], average="binary", zero_division=0)
        assert (found["precision"], found["recall"], found["f1"]) == pytest.approx((p, r, f))
        assert found["support"] == truth.sum()
        assert found["threshold"] == 0.5
        assert found["confusion"] == sk.confusion_matrix(truth, given[:, k], labels=[0, 1]).tolist()
        average = sk.average_precision_score(truth, logits[:, k]) if truth.any() else None
        assert found["average_precision"] == (None if average is None else pytest.approx(average))


@settings(max_examples=30)
@given(case=cases(), seed=st.integers(0, 100))
def test_the_evaluation_of_several_labels_is_strict_json_and_values_lie_in_their_intervals(
    case: tuple[np.ndarray, np.ndarray], seed: int
) -> None:
    logits, labels = case
    result = evaluate(logits, labels, [str(k) for k in range(labels.shape[1])], METRICS, seed, resamples=20)
    json.dumps(result, allow_nan=False)
    assert list(result) == ["rows", *METRICS, "per_class"]
    for metric in METRICS:
        value, low, high = (result[metric][key] for key in ("value", "low", "high"))
        assert (value is None and low is None and high is None) or low <= value <= high


def test_intervals_of_several_labels_have_the_width_of_the_standard_error() -> None:
    generator = np.random.default_rng(0)
    labels = (generator.random((400, 3)) < 0.4).astype(np.float32)
    logits = generator.normal(size=(400, 3)) + labels * 2 - 1
    result = evaluate(logits, labels, list("abc"), ["label_accuracy", "exact_match", "average_precision_macro"])
    right = ((logits > 0) == labels).mean(axis=1)
    width = result["label_accuracy"]["high"] - result["label_accuracy"]["low"]
    assert width == pytest.approx(2 * 1.96 * right.std() / 20, rel=0.1)
    exact = int((right == 1).sum())
    assert (result["exact_match"]["low"], result["exact_match"]["high"]) == wilson(exact, 400, 0.95)
    assert 0.01 < result["average_precision_macro"]["high"] - result["average_precision_macro"]["low"] < 0.15


def test_average_precision_gets_fewer_resamples_where_there_is_much_to_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def count(formulas: dict, rows: int, resamples: int, seed: int, weights: None) -> dict:
        drawn.append(resamples)
        return {name: np.zeros(resamples) for name in formulas}

    monkeypatch.setattr("finetune.evaluation.multi_label.resample", count)
    labels = np.ones((1000, 400))
    evaluate(labels, labels, [str(k) for k in range(400)], ["average_precision_macro"])
    assert drawn == [1000, 500]


def test_the_same_seed_gives_the_same_intervals_of_decisions() -> None:
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(50, 2)), generator.integers(0, 2, (50, 2))
    first, again, other = (evaluate(logits, labels, ["a", "b"], ["f1_macro"], seed) for seed in (1, 1, 2))
    assert first == again
    assert first["f1_macro"] != other["f1_macro"]


def test_a_logit_of_zero_is_no() -> None:
    assert score("exact_match", np.zeros((2, 2)), np.array([[0, 0], [0, 1]])) == 0.5


def test_huge_logits_of_decisions_give_a_finite_loss() -> None:
    assert score("loss", np.array([[3e38]], dtype=np.float32), np.array([[0.0]])) == pytest.approx(3e38, rel=1e-6)
    assert score("loss", np.array([[800.0, -800.0]]), np.array([[1, 0]])) == 0.0


def test_agreement_of_decisions_is_the_share_of_rows_and_labels() -> None:
    first, other = np.array([[1.0, -1], [2, 2]]), np.array([[3.0, -2], [-1, 1]])
    assert agreement(first, other, np.zeros((2, 2))) == 0.75


def test_a_drop_of_a_metric_of_several_labels_is_positive_where_the_other_is_worse() -> None:
    assert drop("f1_micro", 0.9, 0.7, np.zeros((1, 1))) == pytest.approx(0.2)
    assert drop("loss", 0.1, 0.3, np.zeros((1, 1))) == pytest.approx(0.2)
    assert [m for m in METRICS if not higher_is_better(m)] == ["loss"]


def test_the_hardest_row_has_the_surest_wrong_decisions() -> None:
    logits, labels = np.array([[5.0, -5], [5, 5], [-5, 5]]), np.tile([1.0, 0], (3, 1))
    found = hardness(logits, labels)
    assert found.argsort().tolist() == [0, 1, 2]
    assert found.mean() == pytest.approx(score("loss", logits, labels))


def test_average_precision_without_any_labelled_row_is_refused_as_a_score_and_null_in_the_report() -> None:
    logits, labels = np.ones((3, 2)), np.zeros((3, 2))
    with pytest.raises(
        DataError, match="'average_precision_macro' is undefined because none of the 3 rows has a label"
    ):
        score("average_precision_macro", logits, labels)
    found = evaluate(logits, labels, ["a", "b"], ["average_precision_macro"])["average_precision_macro"]
    assert found == {"value": None, "low": None, "high": None}


@pytest.mark.parametrize(
    ("logits", "labels", "words"),
    [
        (np.zeros((0, 2)), np.zeros((0, 2)), "no rows"),
        (np.zeros((2, 2)), np.zeros((2, 3)), "do not fit"),
        (np.zeros((2, 2)), np.zeros(2), "do not fit"),
        (np.zeros((2, 0)), np.zeros((2, 0)), "do not fit"),
        (np.zeros((1, 2)), np.array([[0.0, 0.4]]), "must be 0 or 1"),
        (np.zeros((1, 2)), np.array([[0.0, np.nan]]), "must be 0 or 1"),
    ],
)
def test_decisions_that_do_not_belong_together_are_refused(logits: np.ndarray, labels: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words):
        score("f1_micro", logits, labels)


def test_non_finite_logits_of_decisions_are_refused_with_the_number_of_rows() -> None:
    logits = np.zeros((4, 2))
    logits[1, 0] = logits[2] = np.nan
    with pytest.raises(TrainingError, match="2 of 4 rows have NaN or infinite logits"):
        evaluate(logits, np.zeros((4, 2)), ["a", "b"], [])


def test_unknown_metrics_and_missing_names_are_refused_for_several_labels() -> None:
    check_metrics(METRICS)
    for call in (lambda: check_metrics(["accuracy"]), lambda: measure(["accuracy"], np.ones((1, 1)), np.ones((1, 1)))):
        with pytest.raises(RecipeError, match="unknown metric 'accuracy'; did you mean 'label_accuracy'"):
            call()
    with pytest.raises(RecipeError, match="3 label names for 2 model outputs"):
        evaluate(np.zeros((1, 2)), np.zeros((1, 2)), list("abc"), [])
