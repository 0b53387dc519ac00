from __future__ import annotations

import json
import math

import numpy as np
import pytest

from finetune.errors import DataError
from finetune.evaluation import unigram_baselines
from finetune.evaluation.unigram import unigram_tallies

TRAIN = [[2, 2, 3, -100], [2, -100, -100], []]
TEST = [[-100, 2, 1], [3, 3, 2, -100]]


def test_a_token_is_as_likely_as_it_is_frequent_in_training_plus_one() -> None:
    # Four training tokens and a vocabulary of five: shares (1, 1, 4, 2, 1) of nine.
    tallies = unigram_tallies(TRAIN, TEST, 5)
    expected = [[-math.log(4 / 9) - math.log(1 / 9), 2, 1], [-2 * math.log(2 / 9) - math.log(4 / 9), 3, 1]]
    np.testing.assert_allclose(tallies, expected)


def test_the_baseline_is_reported_as_the_others_are() -> None:
    result = unigram_baselines(TRAIN, TEST, 5, ("perplexity", "accuracy", "loss"))
    assert list(result) == ["unigram"]
    assert list(result["unigram"]) == ["perplexity", "accuracy", "loss", "seconds"]
    assert result["unigram"]["accuracy"] == 2 / 5
    assert result["unigram"]["perplexity"] == pytest.approx(math.exp(result["unigram"]["loss"] or 0))
    json.dumps(result, allow_nan=False)


def test_without_training_text_every_token_is_equally_likely() -> None:
    assert unigram_baselines([], TEST, 50, ("perplexity",))["unigram"]["perplexity"] == pytest.approx(50)


def test_on_tokens_drawn_independently_the_perplexity_is_that_of_their_entropy() -> None:
    generator = np.random.default_rng(0)
    shares = np.array([0.5, 0.25, 0.125, 0.125])
    train, test = (generator.choice(4, (50, 400), p=shares).tolist() for _ in range(2))
    found = unigram_baselines(train, test, 4, ("loss", "accuracy"))["unigram"]
    assert found["loss"] == pytest.approx(1.75 * math.log(2), abs=0.02)
    assert found["accuracy"] == pytest.approx(0.5, abs=0.02)


def test_ids_beyond_the_vocabulary_and_texts_without_targets_are_refused() -> None:
    with pytest.raises(DataError, match="token id 3 is beyond the 3"):
        unigram_baselines(TRAIN, TEST, 3, ("loss",))
    with pytest.raises(DataError, match="no sequence has a token to predict"):
        unigram_baselines(TRAIN, [[-100]], 5, ("loss",))
