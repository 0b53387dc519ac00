"""What the numbers of each target are said to mean, for texts and for images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import finetune
from finetune.bundle import Bundle
from finetune.serve import MultiLabelPrediction, Prediction, Predictor, RegressionPrediction
from finetune.serve.answers import TARGETS

INPUTS = {
    False: ["ball goal", "money", "the vote", "", "bank vote money"],
    True: [np.random.default_rng(index).integers(0, 256, (9, 7, 3), dtype=np.uint8) for index in range(5)],
}


@pytest.mark.parametrize("image", [False, True])
def test_multi_label_gives_each_label_its_own_probability(make_bundle, image):
    predictor = Predictor(make_bundle(image=image, target="multi_label", temperature=2.0), threads=1)
    answers = predictor.predict(INPUTS[image])
    expected = 1 / (1 + np.exp(-predictor.logits(INPUTS[image]).astype(float) / 2))
    np.testing.assert_allclose([list(answer.probabilities.values()) for answer in answers], expected, rtol=1e-9)
    for answer, row in zip(answers, expected, strict=True):
        assert isinstance(answer, MultiLabelPrediction)
        assert tuple(answer.probabilities) == predictor.labels
        assert answer.labels == tuple(label for label, p in zip(predictor.labels, row) if p > 0.5)


def test_a_label_is_given_above_even_odds_as_evaluation_counts_it(bundle):
    opened = Bundle.open(bundle, verify=False)
    answers = TARGETS["multi_label"].answers(np.array([[-1.0, 1e-6, 2.0], [-1.0, 0.0, -3.0]]), opened)
    assert [answer.labels for answer in answers] == [("politics", "sport"), ()]


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("interval", [None, 0.0, 0.75])
def test_regression_gives_the_value_and_its_interval(make_bundle, image, interval):
    predictor = Predictor(make_bundle(image=image, target="regression", interval=interval), threads=1)
    answers = predictor.predict(INPUTS[image])
    values = predictor.logits(INPUTS[image])
    assert values.shape == (5, 1)
    assert predictor.labels == ()
    for answer, value in zip(answers, values[:, 0].tolist(), strict=True):
        assert isinstance(answer, RegressionPrediction)
        assert answer.value == value
        bounds = (None, None) if interval is None else (value - interval, value + interval)
        assert (answer.low, answer.high) == bounds


@pytest.mark.parametrize(("target", "labels"), [("single_label", ["a", "b"]), ("multi_label", ["a"])])
def test_a_model_with_another_number_of_outputs_is_refused(make_bundle, target, labels):
    with pytest.raises(finetune.FinetuneError, match="gave numbers of shape"):
        Predictor(make_bundle(target=target, labels=labels)).predict("ball")


@given(rows=st.lists(st.lists(st.floats(-1e30, 1e30), min_size=3, max_size=3), max_size=4))
def test_any_finite_numbers_make_probabilities(bundle, rows):
    opened = Bundle.open(bundle, verify=False)
    logits = np.array(rows, dtype=np.float64).reshape(-1, 3)
    for name in ("single_label", "multi_label"):
        for answer in TARGETS[name].answers(logits, opened):
            chances = list(answer.probabilities.values())
            assert all(0 <= chance <= 1 for chance in chances)
            if isinstance(answer, Prediction):
                assert sum(chances) == pytest.approx(1)


@pytest.mark.parametrize("target", TARGETS)
def test_cells_go_with_their_columns(make_bundle, target):
    predictor = Predictor(make_bundle(target=target, interval=0.5), threads=1)
    (answer,) = predictor.predict("ball")
    columns = TARGETS[target].columns(predictor.labels)
    cells = TARGETS[target].cells(answer)
    assert [type(cell) for cell in cells] == list(columns.values())


def test_the_answers_types_are_public():
    assert finetune.MultiLabelPrediction is MultiLabelPrediction
    assert finetune.RegressionPrediction is RegressionPrediction
    assert finetune.Prediction is Prediction
