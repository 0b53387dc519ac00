"""Rows that count by a weight: every metric, its interval, and what stays a count of rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax
from sklearn import metrics as sk

from finetune.errors import DataError
from finetune.evaluation import EVALUATIONS
from finetune.evaluation.intervals import effective_rows, resample_counts, resample_means, resampled_weights, wilson

WEIGHTED = ("single_label", "multi_label", "regression")
NAMES = {"single_label": list("abc"), "multi_label": list("abc"), "regression": []}


def rows(target: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels that go together more often than not, with ties, and with labels that may be absent."""
    generator = np.random.default_rng(seed)
    if target == "regression":
        labels = generator.integers(0, 9, count) / 2
        return (labels + generator.integers(-4, 5, count) / 3)[:, None], labels
    logits = generator.integers(-4, 5, (count, 3)) / 2 + 0.25
    if target == "multi_label":
        return logits, (logits + generator.normal(size=logits.shape) * 2 > 0.8).astype(np.float64)
    return logits, (logits + generator.normal(size=logits.shape) * 2).argmax(axis=1)


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, np.ndarray, np.ndarray, np.random.Generator]:
    target, count, seed = draw(st.sampled_from(WEIGHTED)), draw(st.integers(1, 25)), draw(st.integers(0, 10_000))
    return target, *rows(target, count, seed), np.random.default_rng(seed)


def same(values: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(values) == list(expected)
    for name, value in expected.items():
        assert values[name] == (None if value is None else pytest.approx(value, rel=1e-9, abs=1e-9)), name


def weighted_scikit_learn(target: str, logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """Each metric that scikit-learn knows, with sample_weight."""
    counted: dict[str, Any] = {"sample_weight": weights}
    if target == "regression":
        answers = logits[:, 0]
        return {
            "mae": sk.mean_absolute_error(labels, answers, **counted),
            "rmse": sk.root_mean_squared_error(labels, answers, **counted),
            "r2": sk.r2_score(labels, answers, **counted),
            "pearson": np.cov(labels, answers, aweights=weights)[0, 1]
            / np.sqrt(np.prod(np.diag(np.cov(labels, answers, aweights=weights)))),
            "loss": sk.mean_squared_error(labels, answers, **counted),
        }
    several = target == "multi_label"
    given = (logits > 0).astype(int) if several else logits.argmax(axis=1)
    truth = labels.astype(int)
    result = {
        f"{kind}_{average}": function(truth, given, average=average, zero_division=0, **counted)
        for kind, function in (("f1", sk.f1_score), ("precision", sk.precision_score), ("recall", sk.recall_score))
        for average in ("micro", "macro")
    }
    if several:
        repeated = np.repeat(weights, labels.shape[1])
        return result | {
            "exact_match": sk.accuracy_score(truth, given, **counted),
            "label_accuracy": 1 - sk.hamming_loss(truth, given, **counted),
            "average_precision_macro": sk.average_precision_score(truth, logits, average="macro", **counted),
            "loss": sk.log_loss(truth.ravel(), expit(logits).ravel(), sample_weight=repeated),
        }
    return result | {
        "accuracy": sk.accuracy_score(truth, given, **counted),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, given, **counted),
        "loss": sk.log_loss(truth, softmax(logits, axis=1), **counted),
    }


@pytest.mark.parametrize("target", WEIGHTED)
@pytest.mark.parametrize("seed", range(5))
def test_every_metric_of_weighted_rows_equals_scikit_learn_with_sample_weight(target: str, seed: int) -> None:
    logits, labels = rows(target, 60, seed)
    weights = np.random.default_rng(seed).choice([1 / 3, 2 / 3, 1.0, 5.5], 60)
    entry = EVALUATIONS[target]
    expected = weighted_scikit_learn(target, logits, labels, weights)
    assert set(expected) == set(entry.metrics) - {"spearman"}
    found, plain = (entry.measure(entry.metrics, logits, labels, own) for own in (weights, None))
    for metric, value in expected.items():
        assert found[metric] == pytest.approx(value, rel=1e-10), metric
        assert entry.score(metric, logits, labels, weights) == found[metric] != plain[metric]


@pytest.mark.parametrize("seed", range(3))
def test_per_class_numbers_of_weighted_rows_equal_scikit_learn_and_support_stays_a_count(seed: int) -> None:
    weights = np.random.default_rng(seed).random(60) + 0.05
    logits, labels = rows("single_label", 60, seed)
    result = EVALUATIONS["single_label"].evaluate(logits, labels, list("abc"), [], 0, weights)
    given = logits.argmax(axis=1)
    p, r, f, _ = sk.precision_recall_fscore_support(labels, given, sample_weight=weights, zero_division=0)
    for k, name in enumerate("abc"):
        found = result["per_class"][name]
        assert (found["precision"], found["recall"], found["f1"]) == pytest.approx((p[k], r[k], f[k]))
        assert found["support"] == (labels == k).sum()
    assert result["confusion"] == sk.confusion_matrix(labels, given).tolist()

    logits, several = rows("multi_label", 60, seed)
    result = EVALUATIONS["multi_label"].evaluate(logits, several, list("abc"), [], 0, weights)
    for k, name in enumerate("abc"):
        found, truth = result["per_class"][name], several[:, k].astype(int)
        p, r, f, _ = sk.precision_recall_fscore_support(
            truth, logits[:, k] > 0, average="binary", sample_weight=weights, zero_division=0
        )
        assert (found["precision"], found["recall"], found["f1"]) == pytest.approx((p, r, f))
        assert found["average_precision"] == pytest.approx(
            sk.average_precision_score(truth, logits[:, k], sample_weight=weights)
        )
        assert found["support"] == truth.sum()
        assert found["confusion"] == sk.confusion_matrix(truth, logits[:, k] > 0).tolist()


@settings(deadline=None, max_examples=80)
@given(case=cases())
def test_a_weight_that_is_whole_counts_like_that_many_equal_rows(case: tuple) -> None:
    target, logits, labels, generator = case
    entry, counts = EVALUATIONS[target], generator.integers(1, 6, len(labels))
    many = np.repeat(np.arange(len(labels)), counts)
    same(
        entry.measure(entry.metrics, logits, labels, counts),
        entry.measure(entry.metrics, logits[many], labels[many]),
    )


@settings(deadline=None, max_examples=60)
@given(case=cases(), scale=st.floats(1e-3, 1e3))
def test_only_the_proportions_of_weights_matter(case: tuple, scale: float) -> None:
    target, logits, labels, generator = case
    entry, weights = EVALUATIONS[target], generator.random(len(labels)) + 0.01
    first, scaled = (
        entry.evaluate(logits, labels, NAMES[target], entry.metrics, 0, own, resamples=20)
        for own in (weights, weights * scale)
    )
    assert scaled["effective_rows"] == pytest.approx(first["effective_rows"])
    for name in entry.metrics:
        same(scaled[name], first[name])


@settings(deadline=None, max_examples=60)
@given(case=cases())
def test_weights_of_one_give_the_values_of_no_weights(case: tuple) -> None:
    target, logits, labels, _ = case
    entry = EVALUATIONS[target]
    plain, ones = (
        entry.evaluate(logits, labels, NAMES[target], entry.metrics, 0, own, resamples=10)
        for own in (None, np.ones(len(labels)))
    )
    assert list(ones) == [*plain, "effective_rows", "unweighted"]
    assert ones["effective_rows"] == len(labels)
    assert ones["unweighted"] == {name: plain[name]["value"] for name in entry.metrics}
    assert {name: ones[name]["value"] for name in entry.metrics} == ones["unweighted"]
    for key in plain.keys() - set(entry.metrics):
        assert ones[key] == plain[key]


@settings(deadline=None, max_examples=60)
@given(case=cases(), least=st.sampled_from([1e-6, 0.3]))
def test_a_weighted_evaluation_is_strict_json_and_its_values_lie_in_their_intervals(case: tuple, least: float) -> None:
    target, logits, labels, generator = case
    entry, weights = EVALUATIONS[target], generator.random(len(labels)) + least
    result = entry.evaluate(logits, labels, NAMES[target], entry.metrics, 0, weights, resamples=20)
    json.dumps(result, allow_nan=False)
    assert result["rows"] == len(labels)
    assert 1 - 1e-12 <= result["effective_rows"] <= len(labels) * (1 + 1e-12)
    same(result["unweighted"], entry.measure(entry.metrics, logits, labels))
    values = entry.measure(entry.metrics, logits, labels, weights)
    for name in entry.metrics:
        value, low, high = (result[name][key] for key in ("value", "low", "high"))
        assert value == values[name]
        assert (value is None and low is None and high is None) or low <= value <= high


@settings(deadline=None, max_examples=40)
@given(count=st.integers(1, 40), seed=st.integers(0, 1000))
def test_answers_that_are_all_right_score_exactly_one_whatever_their_weights(count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    weights = generator.random(count) + 1e-3
    labels = generator.integers(0, 3, count)
    for target, truth in (("single_label", labels), ("multi_label", np.eye(3)[labels])):
        entry = EVALUATIONS[target]
        result = entry.evaluate(
            np.eye(3)[labels] * 4 - 1, truth, NAMES[target], entry.metrics, 0, weights, resamples=10
        )
        for name in set(entry.metrics) - {"loss", "average_precision_macro"}:
            assert (result[name]["value"], result[name]["high"]) == (1.0, 1.0), name
        share = "accuracy" if target == "single_label" else "exact_match"
        assert result[share]["low"] < 1, "that every row was right is no certainty"


@pytest.mark.parametrize("target", WEIGHTED)
def test_the_same_seed_gives_the_same_weighted_intervals_and_more_rows_narrower_ones(target: str) -> None:
    def evaluated(count: int, seed: int) -> dict[str, Any]:
        logits, labels = rows(target, count, 3)
        weights = np.random.default_rng(5).choice([1 / 3, 1.0], count)
        return EVALUATIONS[target].evaluate(logits, labels, NAMES[target], EVALUATIONS[target].metrics, seed, weights)

    few, again, other, more = evaluated(80, 1), evaluated(80, 1), evaluated(80, 2), evaluated(1280, 1)
    assert few == again
    assert few["loss"] != other["loss"]
    for name in EVALUATIONS[target].metrics:
        wide, narrow = (result[name]["high"] - result[name]["low"] for result in (few, more))
        # Sixteen times the rows make a quarter of the width.
        assert 0.12 < narrow / wide < 0.5, name


@pytest.mark.parametrize(
    ("target", "metric", "values"),
    [
        ("single_label", "loss", EVALUATIONS["single_label"].hardness),
        ("multi_label", "label_accuracy", lambda logits, labels: ((logits > 0) == labels).mean(axis=1)),
        ("regression", "mae", EVALUATIONS["regression"].hardness),
    ],
)
def test_a_weighted_interval_has_the_width_of_the_standard_error_of_a_weighted_mean(
    target: str, metric: str, values: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> None:
    logits, labels = rows(target, 900, 0)
    weights = np.random.default_rng(0).choice([0.1, 1.0, 4.0], 900)
    result = EVALUATIONS[target].evaluate(logits, labels, NAMES[target], [metric], 0, weights, resamples=3000)[metric]
    # The linearised variance of a ratio of two sums over rows (Cochran 1977, chapter 6).
    error = np.sqrt((weights**2 * (values(logits, labels) - result["value"]) ** 2).sum()) / weights.sum()
    assert result["high"] - result["low"] == pytest.approx(2 * 1.96 * error, rel=0.08)


@pytest.mark.parametrize(("target", "share"), [("single_label", "accuracy"), ("multi_label", "exact_match")])
def test_a_share_of_rows_has_wilson_s_interval_of_kish_s_effective_number(target: str, share: str) -> None:
    """Of rows that count alike it is the plain one; of rows of which few count, that of these few."""
    logits, labels = rows(target, 50, 0)
    alike = (logits.argmax(axis=1) == labels) if target == "single_label" else ((logits > 0) == labels).all(axis=1)
    few = np.where(np.arange(50) < 10, 1.0, 1e-9)
    expected = {
        "none": (None, wilson(int(alike.sum()), 50, 0.95)),
        "sevens": (np.full(50, 7.0), wilson(int(alike.sum()), 50, 0.95)),
        "few": (few, wilson(int(alike[:10].sum()), 10, 0.95)),
    }
    for weights, ends in expected.values():
        found = EVALUATIONS[target].evaluate(logits, labels, list("abc"), [share], 0, weights)[share]
        assert (found["low"], found["high"]) == pytest.approx(ends, abs=1e-6)


@given(st.lists(st.floats(1e-30, 1e30), min_size=1, max_size=40))
def test_the_effective_number_of_rows_is_at_most_their_number_and_at_least_one(weights: list[float]) -> None:
    assert 1 - 1e-12 <= effective_rows(np.array(weights)) <= len(weights) * (1 + 1e-12)


def test_weighted_counts_are_drawn_by_rows_and_not_by_weight() -> None:
    truth, predicted = np.repeat([0, 1], [300, 100]), np.repeat([0, 1, 0], [200, 150, 50])
    weights = np.where(truth == 0, 0.5, 10.0)
    drawn = resample_counts(truth, predicted, 2, 4000, 0, weights)
    # Class 1 has a quarter of the rows, and its drawn number the variance of a binomial count n·p·(1 − p), times 10².
    assert drawn.truth[:, 1].mean() == pytest.approx(1000, rel=0.02)
    assert drawn.truth[:, 1].var() == pytest.approx(100 * 400 * 0.25 * 0.75, rel=0.1)
    np.testing.assert_allclose(drawn.truth[:, 0] / 0.5 + drawn.truth[:, 1] / 10, 400)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), kinds=st.integers(1, 4))
def test_counts_of_weighted_resamples_are_those_of_the_drawn_rows(seed: int, kinds: int) -> None:
    generator = np.random.default_rng(seed)
    truth, predicted = generator.integers(0, 3, (2, 30))
    weights = generator.choice(generator.random(kinds) + 0.1, 30)
    found = resample_counts(truth, predicted, 4, 3, seed, weights)
    # The same draw, spelled out: kinds of rows in order, drawn by how many rows each has.
    cells, rows_of = np.unique(np.stack([truth, predicted, weights]), axis=1, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(30, rows_of / 30, size=3)
    for sample, counts in enumerate(drawn):
        confusion = np.zeros((4, 4))
        np.add.at(confusion, (cells[0].astype(int), cells[1].astype(int)), counts * cells[2])
        np.testing.assert_allclose(found.hits[sample], np.diagonal(confusion), atol=1e-12)
        np.testing.assert_allclose(found.truth[sample], confusion.sum(axis=1), atol=1e-12)
        np.testing.assert_allclose(found.predicted[sample], confusion.sum(axis=0), atol=1e-12)


def test_a_weighted_bootstrap_in_small_parts_is_the_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    truth, predicted = generator.integers(0, 3, (2, 40))
    weights, values = generator.random(40) + 0.1, generator.normal(size=40)
    draw = lambda: resample_counts(truth, predicted, 3, 50, 1, weights)  # noqa: E731
    whole, means = draw(), resample_means(values, 50, 1, weights)
    monkeypatch.setattr("finetune.evaluation.intervals._CHUNK", 200)
    np.testing.assert_array_equal(draw().hits, whole.hits)
    np.testing.assert_array_equal(draw().predicted, whole.predicted)
    np.testing.assert_array_equal(resample_means(values, 50, 1, weights), means)
    parts = np.concatenate([*resampled_weights(40, 50, 1, weights)])
    assert parts.shape == (50, 40)
    np.testing.assert_allclose((parts / weights).sum(axis=1), 40)


def test_a_label_of_rows_of_little_weight_moves_no_micro_average() -> None:
    logits, labels = np.eye(2)[[0, 0, 1, 0]], np.array([0, 0, 1, 1])
    entry = EVALUATIONS["single_label"]
    assert entry.score("accuracy", logits, labels) == 0.75
    assert entry.score("accuracy", logits, labels, np.array([1, 1, 1, 1e-9])) == pytest.approx(1, abs=1e-8)
    assert entry.score("accuracy", logits, labels, np.array([1, 1, 1 / 3, 2 / 3])) == pytest.approx(7 / 9)


def test_what_describes_numbers_stays_of_rows() -> None:
    logits, labels = rows("regression", 60, 0)
    weights = np.random.default_rng(0).random(60) + 0.1
    plain, weighted = (
        EVALUATIONS["regression"].evaluate(logits, labels, (), ["mae", "r2"], 0, own) for own in (None, weights)
    )
    for key in ("rows", "label_std", "residuals", "points", "histogram"):
        assert weighted[key] == plain[key]
    assert weighted["unweighted"] == {name: plain[name]["value"] for name in ("mae", "r2", "loss")}
    assert weighted["r2"]["value"] != plain["r2"]["value"]


def test_a_metric_that_is_undefined_stays_so_with_weights() -> None:
    weights = np.array([0.5, 2.0, 1.0])
    found = EVALUATIONS["regression"].evaluate(np.ones((3, 1)), np.ones(3), (), ["r2"], 0, weights)
    assert found["r2"] == {"value": None, "low": None, "high": None}
    assert found["unweighted"] == {"r2": None, "loss": 0.0}
    with pytest.raises(DataError, match="is undefined because none of the 3 rows has a label"):
        EVALUATIONS["multi_label"].score("average_precision_macro", np.ones((3, 2)), np.zeros((3, 2)), weights)


def test_texts_count_by_their_tokens_and_not_by_weights() -> None:
    tallies, entry = np.array([[20.0, 10, 4], [3.0, 1, 0]]), EVALUATIONS["next_token"]
    weights = np.array([1.0, 9.0])
    assert entry.measure(entry.metrics, tallies, weights, weights) == entry.measure(entry.metrics, tallies, weights)
    assert entry.score("loss", tallies, weights, weights) == pytest.approx(23 / 11)
    assert "effective_rows" not in entry.evaluate(tallies, weights, (), ["loss"], 0, weights)


@pytest.mark.parametrize("target", WEIGHTED)
@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (np.array([1.0, 0.0, -2.0]), "2 of 3 weights are not finite numbers above 0; give each row such a weight"),
        (np.array([1.0, np.nan, 1.0]), "1 of 3 weights are not finite numbers above 0"),
        (np.array([1.0, np.inf, 1.0]), "1 of 3 weights are not finite numbers above 0"),
        (np.ones(2), r"weights of shape \(2,\) do not fit 3 rows; give one weight for each row"),
        (np.ones((3, 1)), r"weights of shape \(3, 1\) do not fit 3 rows"),
    ],
)
def test_weights_that_cannot_be_are_refused_in_one_sentence(target: str, weights: np.ndarray, words: str) -> None:
    logits, labels = rows(target, 3, 0)
    entry = EVALUATIONS[target]
    for call in (
        lambda: entry.score("loss", logits, labels, weights),
        lambda: entry.measure(["loss"], logits, labels, weights),
        lambda: entry.evaluate(logits, labels, NAMES[target], ["loss"], 0, weights),
    ):
        with pytest.raises(DataError, match=f"^evaluation: {words}") as caught:
            call()
        assert "\n" not in str(caught.value)
