from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import DataError, RecipeError, TrainingError
from finetune.evaluation import EVALUATIONS, next_token
from finetune.evaluation.next_token import by_document, drop, evaluate, measure, score

TALLIES = np.array([[20.0, 10, 4], [3.0, 1, 0], [12.5, 25, 20]])
METRICS = next_token.METRICS


def texts(rows: int, seed: int, mean_length: int = 40) -> np.ndarray:
    """Tallies whose difficulty varies between texts more than chance inside them would, as it does in real ones."""
    generator = np.random.default_rng(seed)
    tokens = generator.poisson(mean_length, rows) + 1
    difficulty = generator.gamma(9.0, 3.0 / 9.0, rows)  # nats a token: 3 on average
    right = generator.binomial(tokens, np.exp(-difficulty / 2))
    return np.stack([difficulty * tokens, tokens, right], axis=1)


@st.composite
def some_tallies(draw: st.DrawFn) -> np.ndarray:
    rows = draw(st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 5000), st.floats(0, 1)), min_size=1, max_size=12))
    tallies = [(nats if tokens else 0.0, tokens, int(tokens * share)) for nats, tokens, share in rows]
    return np.array([*tallies, (2.0, 3, 1)], dtype=np.float64)


def test_perplexity_is_e_to_the_mean_loss_over_all_tokens_not_over_texts() -> None:
    values = measure(METRICS, TALLIES)
    assert values["loss"] == pytest.approx(35.5 / 36)
    assert values["perplexity"] == pytest.approx(math.exp(35.5 / 36))
    assert values["accuracy"] == pytest.approx(24 / 36)
    assert values["loss"] != pytest.approx(np.mean(TALLIES[:, 0] / TALLIES[:, 1]), rel=0.1)


@given(some_tallies())
def test_every_result_is_strict_json_and_its_interval_holds_the_value(tallies: np.ndarray) -> None:
    result = evaluate(tallies, None, (), METRICS, 3, resamples=20)
    json.dumps(result, allow_nan=False)
    assert result["rows"] == len(tallies)
    assert result["tokens"] == tallies[:, 1].sum()
    assert set(result) == {"rows", "tokens", *METRICS}
    for name in METRICS:
        entry = result[name]
        assert entry["value"] == score(name, tallies)
        if entry["low"] is not None:
            assert entry["low"] <= entry["value"] <= entry["high"]


@given(some_tallies(), st.permutations(range(3)))
def test_neither_order_nor_texts_without_targets_change_a_value(tallies: np.ndarray, order: list[int]) -> None:
    more = np.concatenate([tallies[::-1], np.zeros((2, 3))])
    for name in METRICS:
        assert score(name, more) == pytest.approx(score(name, tallies), rel=1e-12)


@pytest.mark.parametrize("nats", [705.0, 709.7, 709.79, 1e5, 1e300])
def test_a_perplexity_that_no_float_holds_becomes_the_largest_one(nats: float) -> None:
    tallies = np.array([[nats, 1, 0], [nats, 1, 0], [nats, 1, 0]])
    result = evaluate(tallies, None, (), METRICS)
    json.dumps(result, allow_nan=False)
    assert math.isfinite(score("perplexity", tallies))
    assert (result["perplexity"]["value"] == next_token.LARGEST) == (nats > 709.785)
    assert math.isfinite(drop("perplexity", 1e-3, next_token.LARGEST))


def test_a_text_known_by_heart_has_a_perplexity_of_one_and_no_minus_zero() -> None:
    result = evaluate(np.array([[-0.0, 4, 4], [-0.0, 2, 2]]), None, (), METRICS)
    assert result["perplexity"]["value"] == 1.0
    assert math.copysign(1, result["loss"]["value"]) == 1


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    tallies = texts(30, 0)
    first, again, other = (evaluate(tallies, None, (), METRICS, seed) for seed in (5, 5, 6))
    assert first == again
    assert first["perplexity"]["low"] != other["perplexity"]["low"]


@pytest.mark.parametrize("metric", METRICS)
def test_intervals_hold_the_true_ratio_about_as_often_as_they_promise(metric: str) -> None:
    everything = texts(400_000, 99)
    truth, held, draws = score(metric, everything), 0, 400
    for draw in range(draws):
        part = everything[draw * 60 : (draw + 1) * 60]
        entry = evaluate(part, None, (), (metric,), draw, resamples=200)[metric]
        held += entry["low"] <= truth <= entry["high"]
    # Four standard errors of a share of 400; a percentile bootstrap of 60 texts falls a little short of 95 %.
    assert 0.90 <= held / draws <= 0.98


def test_intervals_come_from_texts_and_are_wider_than_if_tokens_were_independent() -> None:
    tallies = texts(60, 1, mean_length=500)
    entry = evaluate(tallies, None, (), ("accuracy",))["accuracy"]
    share, tokens = entry["value"], tallies[:, 1].sum()
    naive = 2 * 1.96 * math.sqrt(share * (1 - share) / tokens)
    assert entry["high"] - entry["low"] > 3 * naive


def test_the_interval_of_perplexity_is_that_of_the_loss() -> None:
    result = evaluate(texts(40, 2), None, (), METRICS, 1)
    for end in ("low", "value", "high"):
        assert result["perplexity"][end] == pytest.approx(math.exp(result["loss"][end]), rel=0.002)


@pytest.mark.parametrize("tallies", [[[6.0, 3, 1]], [[6.0, 3, 1], [0.0, 0, 0]]])
def test_one_text_with_targets_has_no_interval(tallies: list[list[float]]) -> None:
    result = evaluate(np.array(tallies), None, (), METRICS)
    assert result["perplexity"] == {"value": pytest.approx(math.exp(2)), "low": None, "high": None}


@pytest.mark.parametrize(
    ("tallies", "kind", "words"),
    [
        (np.zeros((0, 3)), DataError, "no sequences"),
        (np.zeros((2, 3)), DataError, "no sequence has a token to predict"),
        (np.zeros((2, 4)), DataError, r"not \(N, 3\)"),
        (np.zeros(3), DataError, r"not \(N, 3\)"),
        (np.array([[1.0, 2, 3]]), DataError, "more tokens right"),
        (np.array([[1.0, 2, -1]]), DataError, "fewer than none"),
        (np.array([[np.nan, 2, 1], [1, 2, 1]]), TrainingError, "1 of 2 sequences have a NaN or infinite loss"),
        (np.array([[np.inf, 2, 1]]), TrainingError, "NaN or infinite loss"),
    ],
)
def test_tallies_that_cannot_be_are_refused_in_one_sentence(tallies: np.ndarray, kind: type, words: str) -> None:
    for call in (
        lambda: score("loss", tallies),
        lambda: evaluate(tallies, None, (), METRICS),
        lambda: next_token.hardness(tallies),
        lambda: next_token.agreement(tallies, tallies),
    ):
        with pytest.raises(kind, match=words):
            call()


def test_metrics_of_another_target_and_of_the_evaluate_library_are_refused() -> None:
    for name in ("f1_macro", "perplexty"):
        with pytest.raises(RecipeError, match="unknown metric"):
            next_token.check_metrics([name])
    with pytest.raises(RecipeError, match="did you mean 'perplexity'"):
        score("perplexty", TALLIES)
    for call in (
        lambda: next_token.check_metrics(["evaluate:bleu"]),
        lambda: measure(["evaluate:bleu"], TALLIES),
        lambda: evaluate(TALLIES, None, (), ["evaluate:bleu"]),
    ):
        with pytest.raises(RecipeError, match="cannot score a language model"):
            call()


def test_only_accuracy_rises() -> None:
    assert [next_token.higher_is_better(name) for name in ("perplexity", "loss", "accuracy")] == [False, False, True]


def test_a_drop_of_perplexity_is_a_share_and_one_of_accuracy_a_difference() -> None:
    assert drop("perplexity", 20.0, 20.2) == pytest.approx(0.01)
    assert drop("loss", 2.0, 1.9) == pytest.approx(-0.05)
    assert drop("accuracy", 0.5, 0.48) == pytest.approx(0.02)
    assert drop("accuracy", 0.5, 0.52) == pytest.approx(-0.02)
    assert drop("loss", 0.0, 0.0) == 0.0
    assert 1e9 < drop("loss", 0.0, 0.5) <= next_token.LARGEST


def test_forms_agree_on_a_text_whose_perplexity_moves_by_at_most_five_percent() -> None:
    reference = np.array([[20.0, 10, 4], [2000.0, 1000, 0], [0.0, 0, 0], [30.0, 10, 1]])
    close, far = 10 * math.log(1.049), 10 * math.log(1.051)
    moved = reference + np.array([[close, 0, 0], [-close * 100, 0, 0], [0, 0, 0], [far, 0, 0]])
    assert next_token.agreement(reference, moved) == pytest.approx(2 / 3)
    assert next_token.agreement(moved, reference) == pytest.approx(2 / 3)
    with pytest.raises(DataError, match="different tokens"):
        next_token.agreement(reference, reference[[1, 0, 2, 3]])


def test_hardness_is_the_loss_of_each_text() -> None:
    assert next_token.hardness(np.vstack([TALLIES, [[0, 0, 0]]])).tolist() == [2.0, 3.0, 0.5, 0.0]


def test_pieces_of_one_document_are_one_row_wherever_they_stand() -> None:
    tallies = np.array([[1.0, 1, 0], [2.0, 2, 1], [4.0, 4, 1], [8.0, 8, 1], [16.0, 16, 1]])
    assert by_document(tallies, [(7,), (3,), (7,), (4,), (7,)]).tolist() == [[21, 21, 2], [2, 2, 1], [8, 8, 1]]
    # Block 0 holds documents 1 and 2, block 3 documents 2 and 5: all three hang together.
    packed = by_document(tallies, [(1, 2), (3,), (5,), (2, 5), (3, 9)])
    assert packed.tolist() == [[13, 13, 2], [18, 18, 2]]
    with pytest.raises(DataError, match="2 sequences do not fit tallies of 5"):
        by_document(tallies, [(0,), (1,)])


@given(st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=3), min_size=1, max_size=30))
def test_documents_that_share_no_sequence_stay_apart_and_nothing_is_lost(rows: list[list[int]]) -> None:
    tallies = np.ones((len(rows), 3)) * (1 + np.arange(len(rows)))[:, None]
    summed = by_document(tallies, rows)
    assert summed.sum() == tallies.sum()
    clusters: list[set[int]] = []
    for own in rows:
        touched = [cluster for cluster in clusters if cluster & set(own)]
        clusters = [cluster for cluster in clusters if cluster not in touched] + [set(own).union(*touched)]
    assert len(summed) == len(clusters)


def test_ignoring_that_pieces_belong_together_would_promise_too_much() -> None:
    documents = texts(40, 3)
    pieces = np.repeat(documents, 10, axis=0)
    rows = [(place // 10,) for place in range(400)]
    apart, together = (evaluate(t, None, (), ("loss",))["loss"] for t in (pieces, by_document(pieces, rows)))
    assert together["value"] == pytest.approx(apart["value"])
    assert together["high"] - together["low"] > 2 * (apart["high"] - apart["low"])


def test_the_entry_of_the_target_asks_for_no_labels_and_offers_no_calibration() -> None:
    entry: Any = EVALUATIONS["next_token"]
    assert entry.calibrate is None
    assert entry.score("perplexity", TALLIES, np.zeros(3)) == entry.score("perplexity", TALLIES, np.zeros((3, 40)))
