from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from finetune.errors import DataError, RecipeError, TrainingError
from finetune.evaluation.counts import Counts
from finetune.evaluation.intervals import percentiles, resample_counts, resample_means, wilson
from finetune.evaluation.single_label import (
    COUNT_METRICS,
    METRICS,
    agreement,
    check_metrics,
    drop,
    evaluate,
    hardness,
    higher_is_better,
    score,
)


def scikit_learn(metric: str, labels: np.ndarray, predictions: np.ndarray) -> float:
    """The reference, with scikit-learn's defaults apart from zero_division."""
    if metric == "accuracy":
        return sk.accuracy_score(labels, predictions)
    if metric == "balanced_accuracy":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return sk.balanced_accuracy_score(labels, predictions)
    kind, average = metric.split("_")
    function = {"f1": sk.f1_score, "precision": sk.precision_score, "recall": sk.recall_score}[kind]
    return function(labels, predictions, average=average, zero_division=0)


def one_hot(predictions: np.ndarray, classes: int) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[predictions]


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, np.ndarray, np.ndarray]:
    """Number of classes, true and predicted labels; few rows, so classes are often absent or never predicted."""
    classes = draw(st.integers(2, 7))
    rows = draw(st.integers(1, 25))
    column = st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows)
    return classes, np.array(draw(column)), np.array(draw(column))


@settings(deadline=None, max_examples=60)
@given(case=cases())
def test_every_built_in_metric_equals_scikit_learn_without_a_warning(case: tuple[int, np.ndarray, np.ndarray]) -> None:
    classes, labels, predictions = case
    for metric in COUNT_METRICS:
        assert score(metric, one_hot(predictions, classes), labels) == pytest.approx(
            scikit_learn(metric, labels, predictions), abs=1e-12
        )


@settings(deadline=None, max_examples=40)
@given(case=cases())
def test_per_class_numbers_and_confusion_equal_scikit_learn(case: tuple[int, np.ndarray, np.ndarray]) -> None:
    classes, labels, predictions = case
    names = [f"label {i}" for i in range(classes)]
    result = evaluate(one_hot(predictions, classes), labels, names, ["accuracy"], resamples=10)
    every = list(range(classes))
    expected = sk.precision_recall_fscore_support(labels, predictions, labels=every, zero_division=0)
    found = [[result["per_class"][n][key] for n in names] for key in ("precision", "recall", "f1", "support")]
    np.testing.assert_allclose(found, expected)
    assert result["confusion"] == sk.confusion_matrix(labels, predictions, labels=every).tolist()


@settings(deadline=None, max_examples=25)
@given(case=cases(), seed=st.integers(0, 2**31 - 1))
def test_every_bootstrap_resample_scores_as_scikit_learn_scores_its_rows(
    case: tuple[int, np.ndarray, np.ndarray], seed: int
) -> None:
    classes, labels, predictions = case
    counts = resample_counts(labels, predictions, classes, 4, seed)
    # The same draw, spelled out row by row.
    confusion = sk.confusion_matrix(labels, predictions, labels=list(range(classes)))
    truth, predicted = np.nonzero(confusion)
    cells = confusion[truth, predicted]
    drawn = np.random.default_rng(seed).multinomial(len(labels), cells / len(labels), size=4)
    for resample, cell_counts in enumerate(drawn):
        rows = np.repeat(np.arange(len(cells)), cell_counts)
        for metric, formula in COUNT_METRICS.items():
            assert formula(counts)[resample] == pytest.approx(
                scikit_learn(metric, truth[rows], predicted[rows]), abs=1e-12
            )


def test_a_bootstrap_in_small_chunks_keeps_its_size_and_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, predicted = np.repeat([0, 0, 1, 1, 1], [30, 5, 2, 40, 3]), np.repeat([0, 1, 0, 1, 2], [30, 5, 2, 40, 3])
    whole = resample_counts(truth, predicted, 3, 200, 1)
    monkeypatch.setattr("finetune.evaluation.intervals._CHUNK", 15)
    parts = resample_counts(truth, predicted, 3, 200, 1)
    np.testing.assert_array_equal(whole.hits, parts.hits)
    np.testing.assert_array_equal(whole.predicted, parts.predicted)
    assert (parts.truth.sum(axis=1) == 80).all()
    assert resample_means(np.arange(10.0), 33, 0).shape == (33,)


def test_resampled_counts_scatter_around_the_measured_ones() -> None:
    truth, predicted = np.repeat([0, 0, 1, 1], [60, 20, 5, 115]), np.repeat([0, 1, 0, 1], [60, 20, 5, 115])
    counts = Counts.of(np.array([[60, 20], [5, 115]]))
    drawn = resample_counts(truth, predicted, 2, 4000, 0)
    np.testing.assert_allclose(drawn.hits.mean(axis=0), counts.hits, rtol=0.02)
    np.testing.assert_allclose(drawn.predicted.mean(axis=0), counts.predicted, rtol=0.02)
    # The variance of a binomial count, n·p·(1 − p).
    assert drawn.hits[:, 0].var() == pytest.approx(200 * 0.3 * 0.7, rel=0.1)


def test_loss_equals_scikit_learn_and_its_interval_has_the_width_of_the_standard_error() -> None:
    generator = np.random.default_rng(3)
    logits = generator.normal(size=(400, 4)).astype(np.float32)
    labels = generator.integers(0, 4, size=400)
    result = evaluate(logits, labels, list("abcd"), ["loss"], resamples=3000)
    probabilities = np.exp(logits.astype(np.float64))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    assert result["loss"]["value"] == pytest.approx(sk.log_loss(labels, probabilities), rel=1e-9)
    rows = -np.log(probabilities[np.arange(400), labels])
    assert result["loss"]["high"] - result["loss"]["low"] == pytest.approx(2 * 1.96 * rows.std() / 20, rel=0.08)


@pytest.mark.parametrize(
    ("successes", "rows", "low", "high"),
    # Newcombe 1998, table I, method 3 (score without continuity correction).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_matches_the_published_examples(successes: int, rows: int, low: float, high: float) -> None:
    assert wilson(successes, rows, 0.95) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("share", "rows"), [(0.0, 10), (0.5, 40), (0.955, 223), (0.8, 12.5), (1.0, 7)])
def test_ends_of_a_wilson_interval_solve_its_equation_also_for_an_effective_number_of_rows(
    share: float, rows: float
) -> None:
    for end in wilson(share * rows, rows, 0.95):
        if 0 < end < 1:
            assert abs(share - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / rows), abs=1e-6)


@settings(deadline=None)
@given(rows=st.integers(1, 10_000), data=st.data())
def test_wilson_interval_contains_the_proportion_and_stays_within_zero_and_one(rows: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, rows))
    low, high = wilson(successes, rows, 0.95)
    assert 0 <= low <= successes / rows <= high <= 1
    assert low < high


def test_accuracy_has_a_wilson_interval_and_so_has_every_micro_average() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2, 0, 1, 2, 0])
    predictions = np.array([0, 0, 1, 1, 2, 2, 0, 1, 0, 1])
    names = ["accuracy", "f1_micro", "precision_micro", "recall_micro"]
    result = evaluate(one_hot(predictions, 3), labels, list("abc"), names)
    low, high = wilson(8, 10, 0.95)
    assert all(result[name] == {"value": 0.8, "low": low, "high": high} for name in names)


@settings(deadline=None, max_examples=30)
@given(case=cases(), confidence=st.sampled_from([0.5, 0.95, 0.99]))
def test_every_value_lies_in_its_interval_and_the_result_is_strict_json(
    case: tuple[int, np.ndarray, np.ndarray], confidence: float
) -> None:
    classes, labels, predictions = case
    names = [str(i) for i in range(classes)]
    result = evaluate(one_hot(predictions, classes), labels, names, METRICS, confidence=confidence, resamples=50)
    json.dumps(result, allow_nan=False)
    assert all(result[m]["low"] <= result[m]["value"] <= result[m]["high"] for m in METRICS)


def test_a_bootstrap_interval_is_widened_to_a_value_outside_it() -> None:
    samples = np.linspace(0.2, 0.6, 101)
    assert percentiles(0.9, samples, 0.5) == pytest.approx((0.3, 0.9))
    assert percentiles(0.1, samples, 0.5) == pytest.approx((0.1, 0.5))
    assert percentiles(0.4, samples, 0.5) == pytest.approx((0.3, 0.5))


def test_a_wider_confidence_gives_a_wider_interval() -> None:
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(120, 3)), generator.integers(0, 3, 120)
    narrow, wide = (evaluate(logits, labels, list("abc"), ["f1_macro"], confidence=c) for c in (0.5, 0.95))
    for metric in ("f1_macro", "loss"):
        assert wide[metric]["low"] < narrow[metric]["low"] < narrow[metric]["high"] < wide[metric]["high"]


def test_the_same_seed_gives_the_same_intervals_and_another_seed_others() -> None:
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(80, 3)), generator.integers(0, 3, 80)
    first, again, other = (evaluate(logits, labels, list("abc"), ["f1_macro"], seed=s) for s in (7, 7, 8))
    assert first == again
    assert first["loss"] != other["loss"]
    assert first["f1_macro"] != other["f1_macro"]


def test_a_tie_between_logits_goes_to_the_first_label() -> None:
    assert score("accuracy", np.zeros((2, 3)), np.array([0, 2])) == 0.5


def test_huge_logits_give_a_finite_loss() -> None:
    assert score("loss", np.array([[3e38, -3e38]], dtype=np.float32), np.array([1])) == pytest.approx(6e38, rel=1e-6)
    assert score("loss", np.array([[1000.0, -1000.0]]), np.array([0])) == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_logits_are_refused_with_the_number_of_rows(bad: float) -> None:
    logits = np.zeros((5, 2), dtype=np.float32)
    logits[1, 0] = logits[3, 0] = logits[3, 1] = bad
    with pytest.raises(TrainingError, match=r"2 of 5 rows have NaN or infinite logits"):
        score("accuracy", logits, np.zeros(5, dtype=int))
    with pytest.raises(TrainingError, match=r"2 of 5 rows"):
        evaluate(logits, np.zeros(5, dtype=int), ["a", "b"], [])


@pytest.mark.parametrize(
    ("logits", "labels", "words"),
    [
        (np.zeros((0, 2)), np.zeros(0, dtype=int), "no rows"),
        (np.zeros((2, 2)), np.array([0, 2]), "labels run from 0 to 2, but the model has 2 outputs"),
        (np.zeros((2, 2)), np.array([-1, 1]), "labels run from -1"),
        (np.zeros((2, 2)), np.zeros(3, dtype=int), "do not fit"),
        (np.zeros(2), np.zeros(2, dtype=int), "do not fit"),
    ],
)
def test_rows_and_labels_that_do_not_belong_together_are_refused(
    logits: np.ndarray, labels: np.ndarray, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        score("accuracy", logits, labels)


def test_label_names_must_fit_the_outputs() -> None:
    with pytest.raises(RecipeError, match="3 label names for 2 model outputs"):
        evaluate(np.zeros((1, 2)), np.array([0]), list("abc"), [])


def test_an_unknown_metric_is_refused_with_the_nearest_name() -> None:
    for call in (lambda: check_metrics(["accuracy", "f1_makro"]), lambda: higher_is_better("f1_makro")):
        with pytest.raises(RecipeError, match="unknown metric 'f1_makro'; did you mean 'f1_macro'"):
            call()


def test_every_recipe_metric_is_known_and_only_loss_should_fall() -> None:
    check_metrics(METRICS)
    assert [m for m in METRICS if not higher_is_better(m)] == ["loss"]


def test_agreement_is_the_share_of_rows_with_the_same_label() -> None:
    first, other = np.eye(3)[[0, 1, 2, 2]], np.eye(3)[[0, 1, 0, 2]] * 9 + 1
    assert agreement(first, other, np.array([1, 1, 1, 1])) == 0.75
    with pytest.raises(DataError, match="do not fit"):
        agreement(first, other[:3], np.array([1, 1, 1, 1]))


def test_a_drop_is_positive_where_the_other_is_worse() -> None:
    assert drop("accuracy", 0.9, 0.8, np.array([0])) == pytest.approx(0.1)
    assert drop("loss", 0.5, 0.7, np.array([0])) == pytest.approx(0.2)
    assert drop("f1_macro", 0.8, 0.9, np.array([0])) < 0


def test_the_hardest_row_is_the_one_with_the_surest_wrong_answer() -> None:
    logits = np.array([[3.0, 0.0], [0.0, 0.1], [0.0, 5.0]])
    found = hardness(logits, np.array([0, 0, 0]))
    assert found.argsort().tolist() == [0, 1, 2]
    assert found.mean() == pytest.approx(score("loss", logits, np.array([0, 0, 0])))
